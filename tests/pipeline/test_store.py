"""The store's promises, on a folder and on a real S3 server."""

import contextlib
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import AlreadyExists, Changed, NotFound
from pipeline.objects import Entry, in_tree_order
from pipeline.store import Store, open_store
from tests.stores import keys


def together(count: int, work: Callable[[int], None]) -> None:
    """Run `work(i)` in so many threads that begin at once; an error in one is an error here."""
    barrier, errors = threading.Barrier(count), list[BaseException]()

    def begin(i: int) -> None:
        barrier.wait()
        try:
            work(i)
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


# --- What comes back is what was written ---


def test_put_get_stat_delete(store: Store) -> None:
    assert keys(store) == []
    etag = store.put("a/b.bin", b"first")
    assert store.get("a/b.bin") == b"first"
    assert store.get_with_etag("a/b.bin") == (b"first", etag)
    entry = store.stat("a/b.bin")
    assert (entry.key, entry.bytes, entry.etag) == ("a/b.bin", 5, etag)
    assert abs(entry.modified - time.time()) < 60
    [listed] = store.list()
    assert (listed.key, listed.bytes, listed.etag) == ("a/b.bin", 5, etag)
    assert store.put("a/b.bin", b"other") != etag
    store.delete("a/b.bin")
    store.delete("a/b.bin")  # idempotent
    assert keys(store) == []


def test_missing_objects_are_not_found(store: Store) -> None:
    store.put("a/b", b"")
    for key in ("none", "a", "a/b/c", "a/c"):
        for read in (store.get, store.stat, lambda key: store.get_range(key, 0, 1)):
            with pytest.raises(NotFound, match="no object there"):
                read(key)
        store.delete(key)
    assert store.get("a/b") == b""


@pytest.mark.parametrize(("start", "length"), [(0, 4), (3, 4), (8, 10), (10, 1), (99, 1), (2, 0)])
def test_ranges_are_slices(store: Store, start: int, length: int) -> None:
    store.put("digits", b"0123456789")
    assert store.get_range("digits", start, length) == b"0123456789"[start : start + length]


def test_negative_ranges_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="start >= 0"):
        store.get_range("digits", -1, 2)


def test_large_objects_from_bytes_and_from_a_file(store: Store, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(20 * 2**20 + 7)
    (tmp_path / "source").write_bytes(data)
    for key, source in (("bytes", data), ("file", tmp_path / "source")):
        etag = store.put(key, source)
        assert store.get_with_etag(key) == (data, etag)
        assert store.get_range(key, 17 * 2**20 - 3, 9) == data[17 * 2**20 - 3 : 17 * 2**20 + 6]
        assert store.stat(key).bytes == len(data)
        assert store.replace(key, b"small", etag) != etag


def test_prefix_is_a_prefix_of_the_text(store: Store) -> None:
    for key in ("runs/ab/x", "runs/abc/y", "runs/b/z", "run", "samples/ab"):
        store.put(key, b"")
    assert keys(store, "runs/ab") == ["runs/ab/x", "runs/abc/y"]
    assert keys(store, "runs/ab/") == ["runs/ab/x"]
    assert keys(store, "run") == ["run", "runs/ab/x", "runs/abc/y", "runs/b/z"]
    assert keys(store, "runs/none/") == []


def test_listing_is_complete_and_in_tree_order_over_pages(store: Store) -> None:
    names = ["b/1", "b-0", "b.txt", "b0", "b/a b", "b/c+d%20", "é/ü", "z", "B", "b/1.5/x", "b!/x"]
    names += [f"many/{i:04}{end}" for i in range(350) for end in ("/x", ".png", "-1")]

    def write(worker: int) -> None:
        for name in names[worker::4]:
            store.put(name, name.encode())

    together(4, write)
    assert keys(store) == sorted(names, key=lambda name: name.split("/"))
    assert all(store.get(name) == name.encode() for name in names[:11])


def test_stores_do_not_see_their_neighbours(store: Store) -> None:
    inner = open_store(f"{store.uri}/inner")
    inner.put("x", b"in")
    store.put("innermost", b"out")
    assert keys(inner) == ["x"]
    assert keys(store) == ["inner/x", "innermost"]


def test_pickled_store_works(store: Store) -> None:
    store.put("x", b"1")
    again = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own bytes, as Ray does it
    assert (again.uri, again.get("x"), repr(again)) == (store.uri, b"1", repr(store))


def test_forked_child_connects_anew(store: Store) -> None:
    store.put("x", b"1")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if store.get("x") == b"1" and store.put("y", b"2") else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert store.get("y") == b"2"


# --- Conditions ---


def test_create_once(store: Store) -> None:
    etag = store.create("a/x", b"first")
    with pytest.raises(AlreadyExists, match="found one"):
        store.create("a/x", b"second")
    assert store.get_with_etag("a/x") == (b"first", etag)
    store.delete("a/x")
    store.create("a/x", b"third")
    assert keys(store) == ["a/x"]


def test_replace_needs_the_present_etag(store: Store) -> None:
    first = store.put("x", b"one")
    second = store.replace("x", b"two", first)
    assert store.get_with_etag("x") == (b"two", second)
    for stale in (first, "nonsense"):
        with pytest.raises(Changed, match="read it again"):
            store.replace("x", b"lost", stale)
    store.delete("x")
    with pytest.raises(Changed):
        store.replace("x", b"lost", second)
    assert keys(store) == []


def test_one_of_many_creators_wins(store: Store) -> None:
    for round_number in range(5):
        winners = list[int]()

        def create(i: int, key: str = f"race/{round_number}", winners: list[int] = winners) -> None:
            with contextlib.suppress(AlreadyExists):
                store.create(key, b"%d" % i)
                winners.append(i)

        together(8, create)
        assert [b"%d" % i for i in winners] == [store.get(f"race/{round_number}")]


def test_no_update_is_lost(store: Store) -> None:
    store.put("counter", b"0")

    def count(_: int) -> None:
        for _ in range(10):
            while True:
                data, etag = store.get_with_etag("counter")
                with contextlib.suppress(Changed):
                    store.replace("counter", b"%d" % (int(data) + 1), etag)
                    break

    together(4, count)
    assert store.get("counter") == b"40"


COUNT_IN_PROCESS = """
import contextlib, sys
from pipeline.errors import Changed
from pipeline.store import open_store
store = open_store(sys.argv[1])
for _ in range(20):
    while True:
        data, etag = store.get_with_etag("counter")
        with contextlib.suppress(Changed):
            store.replace("counter", b"%d" % (int(data) + 1), etag)
            break
"""


def test_no_update_is_lost_among_processes(store: Store) -> None:
    store.put("counter", b"0")
    command = [sys.executable, "-c", COUNT_IN_PROCESS, store.uri]
    children = [subprocess.Popen(command) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert store.get("counter") == b"60"


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_an_etag_never_returns_when_the_clock_goes_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    etags = [store.put("x", b"same") for _ in range(3)]
    assert len(set(etags)) == 3


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_store_is_a_dictionary(store: Store, data: st.DataObject) -> None:
    for entry in list(store.list()):
        store.delete(entry.key)
    model, etags = dict[str, bytes](), dict[str, str]()
    some_key = st.sampled_from(["a", "b.d", "b/c", "b/e/f", "b-0", "é/x y+%41"])
    for _ in range(data.draw(st.integers(1, 12), label="operations")):
        verb = data.draw(st.sampled_from(["put", "create", "replace", "stale", "delete"]))
        key, value = data.draw(some_key), data.draw(st.binary(max_size=6))
        if verb == "put":
            etags[key], model[key] = store.put(key, value), value
        elif verb == "delete":
            store.delete(key)
            model.pop(key, None)
        elif verb == "create" and key not in model:
            etags[key], model[key] = store.create(key, value), value
        elif verb == "create":
            with pytest.raises(AlreadyExists):
                store.create(key, value)
        elif verb == "replace" and key in model:
            etags[key], model[key] = store.replace(key, value, etags[key]), value
        else:
            with pytest.raises(Changed):
                store.replace(key, value, "0-0")
    assert {key: store.get(key) for key in keys(store)} == model
    assert keys(store) == sorted(model, key=lambda key: key.split("/"))
    assert {entry.key: entry.etag for entry in store.list()} == {key: etags[key] for key in model}


# --- The order of listings ---

some_keys = st.lists(
    st.lists(st.text("ab0.-!", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join), unique=True
)


@given(some_keys, st.booleans())
def test_both_orders_of_servers_become_tree_order(names: list[str], tree_order: bool) -> None:
    arriving = sorted(names, key=lambda name: name.split("/") if tree_order else [name])
    given_back = [entry.key for entry in in_tree_order(Entry(name, 0, "", 0.0) for name in arriving)]
    assert given_back == sorted(names, key=lambda name: name.split("/"))


def test_tree_order_does_not_wait_for_the_last_page() -> None:
    arrived = list[str]()

    def server() -> Iterator[Entry]:
        for i in range(1000):
            arrived.append(f"shards/{i:04}.tar")
            yield Entry(arrived[-1], 0, "", 0.0)

    assert next(in_tree_order(server())).key == "shards/0000.tar"
    assert len(arrived) == 2


def test_importing_the_store_does_not_import_boto3() -> None:
    code = "import sys, pipeline.store, pipeline.weed; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
