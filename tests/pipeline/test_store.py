"""The store's promises, on a folder and on a real S3 server."""

import contextlib
import os
import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import AlreadyExists, AtelierError, Changed, NotFound, StoreError, StoreRefused, UserError
from pipeline.objects import Entry, in_tree_order
from pipeline.store import Store, open_store
from pipeline.weed import WeedState


def keys(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


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


# --- Bad input ---

HOSTILE = ["", "/", "/etc/passwd", "a//b", "a/", "../x", "a/../../x", "a/./b", "..", "a\\b", "a\0b", "a\nb", "\udc80"]
HOSTILE += [".atelier-lock", "a/.atelier-x/b", "x" * 256, "/".join(["y" * 200] * 6)]


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_refused(store: Store, key: str) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.put(key, b""),
        lambda: store.create(key, b""),
        lambda: store.replace(key, b"", "x"),
        lambda: store.stat(key),
        lambda: store.delete(key),
    ]
    if key and not (key.endswith("/") and key != "/"):
        attempts.append(lambda: list(store.list(key)))
    for attempt in attempts:
        with pytest.raises(UserError, match=r"^key: expected names joined by single slashes") as caught:
            attempt()
        assert "\n" not in str(caught.value)


BAD_URIS = ["", "out", "/out", "file://out", "file:///", "file://", "s3://", "s3:///x", "gs://bucket", "s3://B!/x",
            "s3://bucket/../x", "ftp://host/bucket"]  # fmt: skip


@pytest.mark.parametrize("uri", BAD_URIS)
def test_bad_uris_are_the_users_mistake(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        open_store(uri)
    assert "\n" not in str(caught.value)


def test_uris_lose_their_last_slash() -> None:
    assert open_store("s3://bucket/a/b/").uri == "s3://bucket/a/b"
    assert open_store("s3://bucket/").uri == "s3://bucket"
    assert open_store("file:///out/").uri == "file:///out"


def test_escaped_file_uri(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    open_store(folder.as_uri()).put("x", b"1")
    assert (folder / "x").read_bytes() == b"1"
    assert open_store(f"file://{folder}").get("x") == b"1"


def refused(uri: str, expected: str) -> None:
    """Every way to use the store ends in one clear line."""
    store = open_store(uri)
    attempts: list[Callable[[], object]] = [
        lambda: store.get("x"),
        lambda: store.stat("x"),
        lambda: store.put("x", b"1"),
        lambda: store.create("x", b"1"),
        lambda: list(store.list()),
    ]
    for attempt in attempts:
        with pytest.raises(StoreRefused, match=expected) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert caught.value.exit_status == 2


def test_missing_bucket(s3_uri: str) -> None:
    refused("s3://no-such-bucket/x", "no-such-bucket does not exist; make it")


def test_wrong_keys(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(s3_uri)
    for attempt in (lambda: store.get("x"), lambda: store.put("x", b"")):
        with pytest.raises(StoreRefused, match="check AWS_SECRET_ACCESS_KEY"):
            attempt()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StoreRefused, match="check AWS_ACCESS_KEY_ID"):
        open_store(s3_uri).get("x")
    with pytest.raises(StoreRefused, match="may not do this"):  # the reply to HEAD has no body that says why
        open_store(s3_uri).stat("x")


def test_no_keys_at_all(s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    refused(s3_uri, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def test_dead_endpoint(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.ATTEMPTS", 1)  # the wait between attempts is botocore's affair
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="is the store running") as failed:
        open_store(s3_uri).get("x")
    assert not isinstance(failed.value, UserError), "an outage is tried again"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "no url")
    with pytest.raises(StoreRefused, match="must be a URL"):
        open_store(s3_uri).get("x")


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_a_key_cannot_be_a_folder_too(store: Store) -> None:
    store.put("a", b"1")
    store.put("b/c", b"2")
    for key in ("a/x", "a/x/y", "b"):
        with pytest.raises(StoreError, match="no key is the folder of another"):
            store.put(key, b"")
    assert keys(store) == ["a", "b/c"]


# --- Broken connections ---


class Proxy:
    """Forwards to the server; cuts its n-th connection after `cuts[n]` bytes of the reply have come back."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self.port, self.cuts = port, cuts
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed at the test's end
            while True:
                client = self.listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.port))
                limit = self.cuts.pop(0) if self.cuts else 1 << 40
                threading.Thread(target=self._pump, args=(client, server, 1 << 40), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, limit), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, limit: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if data.startswith(b"HTTP/1.1 100"):  # no reply yet: the server asks for the body
                    target.sendall(data)
                    continue
                target.sendall(data[:limit])
                limit -= len(data)
                if limit <= 0:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_lost_replies(weed_server: WeedState, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server did what was asked, the reply was lost, and the request sent again meets its own object."""
    direct = open_store(s3_uri)
    taken = direct.create("taken", b"theirs")

    def broken(cuts: list[int]) -> Store:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", Proxy(weed_server.s3_port, cuts).url)
        return open_store(s3_uri)

    etag = broken([0]).create("mine", b"ours")
    assert direct.get_with_etag("mine") == (b"ours", etag)
    etag = broken([0]).replace("mine", b"ours 2", etag)
    assert direct.get_with_etag("mine") == (b"ours 2", etag)
    with pytest.raises(AlreadyExists):
        broken([0]).create("taken", b"ours")
    with pytest.raises(Changed):
        broken([0]).replace("mine", b"lost", taken)
    broken([0]).delete("taken")
    large = random.Random(2).randbytes(2 * 2**20)
    broken([0]).put("large", large)
    assert broken([1000, 300_000]).get("large") == large
    assert keys(broken([10])) == ["large", "mine"]


# --- Killed, and no space ---

PUT_FOR_EVER = """
import sys
from pipeline.store import open_store
store = open_store(sys.argv[1])
for i in range(10**6):
    store.put(f"many/{i % 7}", bytes([i % 251]) * 400_000)
    store.create(f"new/{i}", bytes([i % 251]) * 100_000)
    print(i, flush=True)
"""


def test_killed_writer_leaves_whole_objects_only(store: Store) -> None:
    for attempt in range(3):
        child = subprocess.Popen([sys.executable, "-c", PUT_FOR_EVER, store.uri], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(3 + attempt):
            assert child.stdout.readline()
        time.sleep(random.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        entries = list(store.list())
        assert len(entries) >= 6
        for entry in entries:
            data = store.get(entry.key)
            assert entry.bytes == len(data) == (400_000 if entry.key.startswith("many/") else 100_000)
            assert len(set(data)) == 1
        for entry in store.list("new/"):
            store.delete(entry.key)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_no_space_left(tiny_disk: Path) -> None:
    store = open_store(f"file://{tiny_disk}/store")
    etag = store.put("kept", b"1" * 500_000)
    attempts: list[Callable[[], object]] = [
        lambda: store.put("x", b"2" * 900_000),
        lambda: store.put("kept", b"2" * 900_000),
        lambda: store.create("y", b"2" * 900_000),
        lambda: store.replace("kept", b"2" * 900_000, etag),
    ]
    for attempt in attempts:
        with pytest.raises(StoreError, match="no space left on the disk of"):
            attempt()
    assert keys(store) == ["kept"]
    assert store.get_with_etag("kept") == (b"1" * 500_000, etag)
    assert sorted(path.name for path in (tiny_disk / "store").iterdir()) == [".atelier-lock", "kept"]


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """The same without root: the kernel refuses bytes past a limit on the size of files."""
    store = open_store(f"file://{tmp_path}/store")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            store.put("x", b"2" * 900_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_unfinished_and_foreign_files(store: Store, tmp_path: Path) -> None:
    store.put("a/x", b"1")
    (tmp_path / "store" / "a" / ".atelier-0123").write_bytes(b"half")  # what a killed writer leaves
    assert keys(store) == ["a/x"]


def test_folder_that_one_may_not_write_to() -> None:
    with pytest.raises(AtelierError) as caught:
        open_store("file:///proc/atelier").put("x", b"1")
    assert "\n" not in str(caught.value)


def test_importing_the_store_does_not_import_boto3() -> None:
    code = "import sys, pipeline.store, pipeline.weed; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
