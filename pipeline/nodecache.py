"""Decoded shards on the node's disk: each is fetched and decoded once a node, and then mapped into memory.

    shard in the store --open_shard, decode_shard--> <folder>/<sha256>-<c>x<h>x<w>.v1 --mmap--> images, labels, keys

The workers of a node and later runs share the folder. One file a shard, named by what it holds; it is flushed to the
disk under a hidden name and then renamed, so a file that is there is whole, even after a power cut. The worker that
holds a shard's lock decodes it while the others wait; the kernel drops the lock of a killed one, and what it left is
overwritten or removed. The files used least recently go when all would exceed the bound: a worker that has one mapped
keeps it until it lets go. Where the disk is full or read-only, shards are kept in memory, and one line says so.

    cache = NodeCache(folder, max_bytes, say)
    mapped = cache.decoded(store, dataset, shard)      # images_NCHW uint8, labels_N int64, keys_N uint64, read-only
"""

import contextlib
import fcntl
import mmap
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import Dataset, Shard
from pipeline.decoding import Room, decode_into
from pipeline.settings import Settings
from pipeline.shards import open_shard
from pipeline.store import FileStore, Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "v1"  # of the files: images, zeros to a multiple of 8 bytes, labels, keys
MAX_BYTES = 100_000_000_000  # at most, where nothing else is said; else half of what is free
MAX_OPEN_MAPS = 128  # each holds a file handle; a process may have 1,024 by default
NUM_LOCKS = 64  # a shard's is chosen by its digest
DECODE_THREADS = 4
THREADS_FROM_BYTES = 32 << 10  # of an image
SHARE_IN_MEMORY = 0.25  # of the memory that is free: most that is kept there where the disk does not serve

Say = Callable[[str], None]


@dataclass(frozen=True)
class Mapped:
    """A decoded shard, in its order, not to be written to."""

    images_NCHW: "NDArray[np.uint8]"
    labels_N: "NDArray[np.int64]"  # zeros where the dataset carries no labels
    keys_N: "NDArray[np.uint64]"
    in_memory_bytes: int  # 0: a map of a file


class NodeCache:
    """The decoded shards of a node. Safe in threads; several processes may have one of the same folder."""

    def __init__(self, folder: Path, max_bytes: int, say: Say) -> None:
        """`max_bytes` bounds all files together. `say` hears, once, that the disk does not serve."""
        self.folder, self.max_bytes, self._say = folder, max_bytes, say
        self._open: OrderedDict[str, Mapped] = OrderedDict()  # the one used last is last
        self._lock, self._decoding = threading.Lock(), threading.Lock()
        self._warned = False

    @classmethod
    def of(cls, settings: Settings, say: Say) -> "NodeCache":
        """The cache that the environment names; without a size, half of what is free for it, at most 100 GB."""
        folder = settings.cache_folder
        if settings.cache_gb is not None:
            return cls(folder, int(settings.cache_gb * 1e9), say)
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        used = sum(size for _, size, _ in _files(folder))
        return cls(folder, min(MAX_BYTES, (shutil.disk_usage(there).free + used) // 2), say)

    def decoded(self, store: Store, dataset: Dataset, shard: Shard) -> Mapped:
        """The samples of a shard. Raises IntegrityError (as `open_shard`), StoreError."""
        name = _name(dataset, shard)
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
        mapped = self._cached(name, store, dataset, shard, None)
        self._keep(name, mapped)
        return mapped

    def read_into(self, store: Store, dataset: Dataset, shard: Shard, room: Room) -> None:
        """The samples of a shard, copied or decoded into arrays; nothing stays open. Raises as `decoded`.

        Plain pixels in a folder's store are read from there, unless a file is there already: to write another copy
        would cost more than it saves.
        """
        name = _name(dataset, shard)
        plain = dataset.layout == "block" and isinstance(store, FileStore)
        if plain and not (self.folder / name).is_file():
            return self._decode(store, dataset, shard, room)
        mapped = self._cached(name, store, dataset, shard, room)
        if mapped.images_NCHW is not room.images_NCHW:
            room.images_NCHW[:], room.labels_N[:], room.keys_N[:] = mapped.images_NCHW, mapped.labels_N, mapped.keys_N

    def close(self) -> None:
        """Let go of all maps; arrays that are in use stay valid."""
        with self._lock:
            self._open.clear()

    def _keep(self, name: str, mapped: Mapped) -> None:
        """Hold the map for the next time, and let go of those used least recently where they are too many."""
        with self._lock:
            self._open[name] = mapped
            held = sum(one.in_memory_bytes for one in self._open.values())
            most = _memory_bytes() if held else 0
            while len(self._open) > MAX_OPEN_MAPS or (held > most and len(self._open) > 1):
                held -= self._open.popitem(last=False)[1].in_memory_bytes

    def _cached(self, name: str, store: Store, dataset: Dataset, shard: Shard, room: Room | None) -> Mapped:
        """The file of a shard, mapped, or what was decoded into `room` (None: new arrays) where there was no file."""
        try:
            return self._map(name, dataset, shard) or self._made(name, store, dataset, shard, room)
        except OSError as error:  # the cache's: stores raise StoreError
            self._warn(error)
        room = room or Room.of(dataset, shard)
        self._decode(store, dataset, shard, room)
        return _of_room(room)

    def _made(self, name: str, store: Store, dataset: Dataset, shard: Shard, room: Room | None) -> Mapped:
        """Decode a shard and write its file, unless another worker has by now. Raises OSError where nothing is locked.

        Gives what was decoded where `room` is there for it, or where it cannot be written, else the file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / _lock_name(name)):
            if mapped := self._map(name, dataset, shard):
                return mapped
            decoded = room or Room.of(dataset, shard)
            self._decode(store, dataset, shard, decoded)
            try:
                self._write(name, decoded)
                mapped = None if room else self._map(name, dataset, shard)
            except OSError as error:
                self._warn(error)
        return mapped or _of_room(decoded)

    def _decode(self, store: Store, dataset: Dataset, shard: Shard, room: Room) -> None:
        """Fetch, check and decode a shard: several are fetched at a time and one is decoded, as fast as can be."""
        data = open_shard(store, dataset, shard)
        with self._decoding:
            decode_into(data, dataset, shard, room, _num_threads(dataset))

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            self._say(
                f"cache {self.folder}: {error.strerror or error}; decoded shards stay in memory, which is slower; "
                "free some disk, or set ATELIER_CACHE to another folder"
            )

    def _map(self, name: str, dataset: Dataset, shard: Shard) -> Mapped | None:
        """The file of a shard, mapped, which counts as a use; None where none of its size is there. Raises OSError."""
        path = self.folder / name
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != _file_bytes(dataset, shard):
                    return None
                buffer = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if shard.samples else b""
        except (FileNotFoundError, NotADirectoryError):
            return None
        with contextlib.suppress(OSError):  # a cache that is read-only, or a file that has just been removed
            os.utime(path)
        return _arrays(buffer, dataset, shard)

    def _write(self, name: str, room: Room) -> None:
        """Write a shard's file; the caller holds its lock. Raises OSError."""
        images = room.images_NCHW
        parts = (images.data, memoryview(bytes(-images.nbytes % 8)), room.labels_N.data, room.keys_N.data)
        self._make_room(sum(part.nbytes for part in parts))
        unfinished = self.folder / f".{name}"
        try:
            with unfinished.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self.folder / name)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _make_room(self, num_bytes: int) -> None:
        """Remove what killed workers left, then the files used least recently, to make room. Raises OSError."""
        if num_bytes > self.max_bytes:
            raise OSError(
                f"expected room for {num_bytes:,} bytes, got a bound of {self.max_bytes:,} (ATELIER_CACHE_GB)"
            )
        with _locked(self.folder / ".lock"):
            _remove_unfinished(self.folder)
            files = sorted(_files(self.folder))
            excess = sum(size for _, size, _ in files) + num_bytes - self.max_bytes
            for _, size, path in files:
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)
                excess -= size


def _num_threads(dataset: Dataset) -> int:
    """Small images are decoded by one: handing over Python's lock would cost more than it gains."""
    small = dataset.channels * dataset.height * dataset.width < THREADS_FROM_BYTES
    return 1 if small or dataset.layout == "block" else min(DECODE_THREADS, os.cpu_count() or 1)


def _of_room(room: Room) -> Mapped:
    return Mapped(room.images_NCHW, room.labels_N, room.keys_N, room.num_bytes)


def _arrays(buffer: "mmap.mmap | bytes", dataset: Dataset, shard: Shard) -> Mapped:
    """Views of a file's parts; the map ends with the last of them."""
    import numpy as np

    num, shape = shard.samples, (dataset.channels, dataset.height, dataset.width)
    num_bytes = num * dataset.channels * dataset.height * dataset.width
    labels_at = num_bytes + -num_bytes % 8
    return Mapped(
        np.frombuffer(buffer, np.uint8, num_bytes).reshape(num, *shape),
        np.frombuffer(buffer, np.int64, num, labels_at),
        np.frombuffer(buffer, np.uint64, num, labels_at + 8 * num),
        in_memory_bytes=0,
    )


def _name(dataset: Dataset, shard: Shard) -> str:
    return f"{shard.sha256}-{dataset.channels}x{dataset.height}x{dataset.width}.{FORMAT}"


def _file_bytes(dataset: Dataset, shard: Shard) -> int:
    images = shard.samples * dataset.channels * dataset.height * dataset.width
    return images + -images % 8 + 16 * shard.samples


def _lock_name(name: str) -> str:
    return f".lock-{int(name.lstrip('.')[:4], 16) % NUM_LOCKS:02d}"


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file against other processes and threads. Raises OSError (BlockingIOError without `wait`)."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_unfinished(folder: Path) -> None:
    """Remove the hidden files of shards that nobody writes any more: whoever writes one holds its lock."""
    for path in folder.glob(f".*.{FORMAT}"):
        with contextlib.suppress(BlockingIOError), _locked(folder / _lock_name(path.name), wait=False):
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each finished file was used last (seconds), its bytes and its path; of older formats too."""
    if not folder.is_dir():
        return
    for path in folder.glob("[0-9a-f]*.v*"):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            yield found.st_mtime, found.st_size, path


def _memory_bytes() -> int:
    import psutil

    return int(SHARE_IN_MEMORY * psutil.virtual_memory().available)
