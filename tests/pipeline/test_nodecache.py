"""The node's cache: a shard is decoded once, whoever asks, however a worker ends, and the disk stays within bounds."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline import cachefolder, nodecache
from pipeline.artifacts import Dataset
from pipeline.decoding import Room
from pipeline.errors import IntegrityError
from pipeline.nodecache import Mapped, NodeCache
from pipeline.settings import Settings
from pipeline.store import FileStore
from tests.made import Layout, Part, made_dataset, random_part

PARTS = [random_part(20, (4, 5, 3), first_key=100 * number) for number in range(4)]
FILE_BYTES = 20 * (4 * 5 * 3 + 16)


class Counting(FileStore):
    """A folder that counts what is fetched from it."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.fetched: list[str] = []

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        self.fetched.append(key)
        return super().get_with_etag(key)


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(f"file://{tmp_path}/store")


@pytest.fixture
def dataset(counting: Counting) -> Dataset:
    return made_dataset(counting, PARTS)


def cache_of(tmp_path: Path, max_bytes: int = 10**9) -> tuple[NodeCache, list[str]]:
    said: list[str] = []
    return NodeCache(tmp_path / "cache", max_bytes, said.append), said


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".lock"))


def is_part(found: Mapped, part: Part) -> bool:
    assert part.labels_N is not None
    return (
        np.array_equal(found.images_NCHW, part.images_NHWC.transpose(0, 3, 1, 2))
        and np.array_equal(found.labels_N, part.labels_N)
        and np.array_equal(found.keys_N, part.keys_N)
    )


def test_a_shard_is_fetched_once_and_then_mapped(tmp_path: Path, counting: Counting, dataset: Dataset) -> None:
    for _ in range(2):  # two caches of one folder: two runs
        cache, said = cache_of(tmp_path)
        for _ in range(2):
            for part, shard in zip(PARTS, dataset.shards, strict=True):
                found = cache.decoded(counting, dataset, shard)
                assert is_part(found, part)
                assert found.in_memory_bytes == 0
                with pytest.raises(ValueError, match="read-only"):
                    found.images_NCHW[0] = 0
        assert not said
    assert counting.fetched == [dataset.key_of(shard) for shard in dataset.shards]


@pytest.mark.parametrize("num", [1, 7])
def test_sizes_that_are_no_multiple_of_eight_come_back(tmp_path: Path, counting: Counting, num: int) -> None:
    part = random_part(num, (3, 3, 1))
    made = made_dataset(counting, [part])
    assert is_part(cache_of(tmp_path)[0].decoded(counting, made, made.shards[0]), part)


@pytest.mark.parametrize("layout", ["sample", "block"])
def test_a_shard_is_read_into_arrays_and_left_for_others(tmp_path: Path, counting: Counting, layout: Layout) -> None:
    made = made_dataset(counting, PARTS[:1], layout)
    shard = made.shards[0]
    for _ in range(2):
        room = Room.of(made, shard)
        cache_of(tmp_path)[0].read_into(counting, made, shard, room)
        assert is_part(Mapped(room.images_NCHW, room.labels_N, room.keys_N, 0), PARTS[0])
    if layout == "sample":  # decoded once, and there for who maps it
        assert len(counting.fetched) == 1
        assert files(tmp_path) == [f"{shard.sha256}-3x4x5.v1"]
    else:  # plain pixels in a folder are where they are
        assert not (tmp_path / "cache").exists()
        cache_of(tmp_path)[0].decoded(counting, made, shard)
        counting.fetched.clear()
        cache_of(tmp_path)[0].read_into(counting, made, shard, room)  # a file that is there serves
        assert not counting.fetched


def test_labels_are_zeros_where_there_are_none(tmp_path: Path, counting: Counting) -> None:
    made = made_dataset(counting, [random_part(5, classes=0)])
    assert cache_of(tmp_path)[0].decoded(counting, made, made.shards[0]).labels_N.tolist() == [0] * 5


def test_many_threads_fetch_a_shard_once(tmp_path: Path, counting: Counting, dataset: Dataset) -> None:
    cache, _ = cache_of(tmp_path)
    found: list[Mapped] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.decoded(counting, dataset, dataset.shards[0])))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(is_part(one, PARTS[0]) for one in found)
    assert len(counting.fetched) == 1


CHILD = """
import sys
from pathlib import Path
from tests.pipeline.test_nodecache import Counting, cache_of
from pipeline.artifacts import Dataset
store, folder = Counting(sys.argv[1]), Path(sys.argv[2])
dataset = Dataset.model_validate_json((folder / "dataset.json").read_bytes())
{before}
for shard in dataset.shards:
    cache_of(folder)[0].decoded(store, dataset, shard)
print(len(store.fetched))
"""


def child(store: FileStore, dataset: Dataset, tmp_path: Path, before: str = "") -> subprocess.Popen[str]:
    """A worker of its own process that reads all shards and prints how many it fetched."""
    (tmp_path / "dataset.json").write_bytes(dataset.to_bytes())
    command = [sys.executable, "-c", CHILD.format(before=before), store.uri, str(tmp_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_processes_of_a_node_fetch_each_shard_once(tmp_path: Path, counting: Counting, dataset: Dataset) -> None:
    children = [child(counting, dataset, tmp_path) for _ in range(3)]
    outputs = [one.communicate(timeout=60)[0] for one in children]
    assert [one.returncode for one in children] == [0, 0, 0]
    assert sum(map(int, outputs)) == len(PARTS)
    assert len(files(tmp_path)) == len(PARTS)


def test_a_killed_writer_leaves_nothing_that_stays(tmp_path: Path, counting: Counting, dataset: Dataset) -> None:
    killed = child(counting, dataset, tmp_path, "import os; os.fsync = lambda file: os.kill(os.getpid(), 9)")
    assert killed.wait(60) == -signal.SIGKILL
    assert [name[0] for name in files(tmp_path)] == ["."]  # its unfinished file
    cache, _ = cache_of(tmp_path)
    assert is_part(cache.decoded(counting, dataset, dataset.shards[-1]), PARTS[-1])  # of another shard
    assert files(tmp_path) == [f"{dataset.shards[-1].sha256}-3x4x5.v1"]
    assert is_part(cache.decoded(counting, dataset, dataset.shards[0]), PARTS[0])


def test_a_file_of_the_wrong_size_is_made_again(tmp_path: Path, counting: Counting, dataset: Dataset) -> None:
    cache_of(tmp_path)[0].decoded(counting, dataset, dataset.shards[0])
    path = tmp_path / "cache" / files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert is_part(cache_of(tmp_path)[0].decoded(counting, dataset, dataset.shards[0]), PARTS[0])
    assert path.stat().st_size == FILE_BYTES


def test_the_files_used_least_recently_go(tmp_path: Path, counting: Counting, dataset: Dataset) -> None:
    cache, said = cache_of(tmp_path, max_bytes=3 * FILE_BYTES)
    first = cache.decoded(counting, dataset, dataset.shards[0])
    for number, shard in enumerate(dataset.shards[1:3]):
        cache.decoded(counting, dataset, shard)
        os.utime(tmp_path / "cache" / f"{shard.sha256}-3x4x5.v1", (number + 1, number + 1))
    cache.decoded(counting, dataset, dataset.shards[3])
    kept = {name.partition("-")[0] for name in files(tmp_path)}
    assert kept == {dataset.shards[number].sha256 for number in (0, 2, 3)}
    os.utime(tmp_path / "cache" / f"{dataset.shards[0].sha256}-3x4x5.v1", (0, 0))
    cache_of(tmp_path, 3 * FILE_BYTES)[0].decoded(counting, dataset, dataset.shards[1])
    assert f"{dataset.shards[0].sha256}-3x4x5.v1" not in files(tmp_path)
    assert is_part(first, PARTS[0])  # a map outlives its file
    assert not said


def test_a_use_counts(tmp_path: Path, counting: Counting, dataset: Dataset) -> None:
    cache_of(tmp_path)[0].decoded(counting, dataset, dataset.shards[0])
    path = tmp_path / "cache" / files(tmp_path)[0]
    os.utime(path, (1, 1))
    cache_of(tmp_path)[0].decoded(counting, dataset, dataset.shards[0])
    assert path.stat().st_mtime > 1


def test_a_bound_that_is_too_small_and_a_folder_that_cannot_be_leave_shards_in_memory(
    tmp_path: Path, counting: Counting, dataset: Dataset
) -> None:
    (tmp_path / "file").write_bytes(b"")
    said: list[str] = []
    for cache in (
        NodeCache(tmp_path / "cache", FILE_BYTES - 1, said.append),
        NodeCache(tmp_path / "file" / "cache", 10**9, said.append),
    ):
        for _ in range(2):
            for part, shard in zip(PARTS, dataset.shards, strict=True):
                found = cache.decoded(counting, dataset, shard)
                assert is_part(found, part)
                assert found.in_memory_bytes == FILE_BYTES
    assert len(said) == 2  # one line each
    assert "ATELIER_CACHE" in said[0]
    assert "Not a directory" in said[1]
    assert len(counting.fetched) == 2 * len(PARTS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_shards_in_memory(
    tmp_path: Path, counting: Counting, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, said = cache_of(tmp_path)
    (tmp_path / "cache").mkdir()
    for shard in dataset.shards:  # the kernel refuses what is written there: no space left on device
        (tmp_path / "cache" / f".{shard.sha256}-3x4x5.v1").symlink_to("/dev/full")
    monkeypatch.setattr(cachefolder, "_remove_unfinished", lambda folder: None)  # leave the links in place
    assert is_part(cache.decoded(counting, dataset, dataset.shards[0]), PARTS[0])
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_open_maps_are_bounded_and_let_go(tmp_path: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodecache, "MAX_OPEN_MAPS", 3)
    made = made_dataset(counting, [random_part(3, first_key=10 * number) for number in range(12)])
    cache, _ = cache_of(tmp_path)
    process = psutil.Process()

    def num_maps() -> int:
        return sum(str(tmp_path) in one.path for one in process.memory_maps())

    handles = process.num_fds()
    for shard in made.shards:
        cache.decoded(counting, made, shard)
    assert num_maps() == 3
    assert process.num_fds() <= handles + 3
    cache.close()
    assert num_maps() == 0
    assert process.num_fds() == handles


def test_what_is_in_memory_is_bounded(
    tmp_path: Path, counting: Counting, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodecache, "_memory_bytes", lambda: 2 * FILE_BYTES)
    cache = NodeCache(tmp_path / "cache", 0, lambda line: None)
    for shard in dataset.shards:
        cache.decoded(counting, dataset, shard)
    cache.decoded(counting, dataset, dataset.shards[-2])  # still there
    cache.decoded(counting, dataset, dataset.shards[0])  # fetched again
    assert len(counting.fetched) == len(PARTS) + 1


def test_a_damaged_shard_enters_no_cache(
    tmp_path: Path, counting: Counting, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.shards.RETRY_WAITS_SECONDS", ())
    counting.put(dataset.key_of(dataset.shards[0]), b"other bytes")
    with pytest.raises(IntegrityError, match="atelier repair"):
        cache_of(tmp_path)[0].decoded(counting, dataset, dataset.shards[0])
    assert files(tmp_path) == []


def test_the_environment_names_folder_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path))
    monkeypatch.delenv("ATELIER_CACHE", raising=False)
    monkeypatch.delenv("ATELIER_CACHE_GB", raising=False)
    cache = NodeCache.of(Settings.from_environment(), print)
    assert cache.folder == tmp_path / "cache"
    assert 0 < cache.max_bytes <= cachefolder.MAX_BYTES
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("ATELIER_CACHE_GB", "0.5")
    cache = NodeCache.of(Settings.from_environment(), print)
    assert (cache.folder, cache.max_bytes) == (tmp_path / "elsewhere", 500_000_000)
