"""The store where things break: connections that are cut, writers that are killed, disks that are full."""

import contextlib
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

from pipeline.errors import AlreadyExists, Changed, StoreError
from pipeline.store import Store, open_store
from pipeline.weed import WeedState
from tests.stores import keys

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
