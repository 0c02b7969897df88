"""Decoded shards on the node's disk: each is fetched and decoded once a node, and then mapped into memory.

    shard in the store --open_shard, decode_shard--> <folder>/<sha256>-<c>x<h>x<w>.v1 --mmap--> images, labels, keys

The workers of a node and later runs share the folder (`pipeline.cachefolder`). One file a shard, named by what it
holds. The worker that holds a shard's lock decodes it while the others wait. The files used least recently go when all
would exceed the bound: a worker that has one mapped keeps it until it lets go. Where the disk is full or read-only,
shards are kept in memory, and one line says so.

    cache = NodeCache(folder, max_bytes, say)
    mapped = cache.decoded(store, dataset, shard)      # images_NCHW uint8, labels_N int64, keys_N uint64, read-only
"""

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import Dataset, Shard
from pipeline.cachefolder import CacheFolder
from pipeline.decoding import Room, decode_into
from pipeline.settings import Settings
from pipeline.shards import open_shard
from pipeline.store import FileStore, Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "v1"  # of the files: images, zeros to a multiple of 8 bytes, labels, keys
MAX_OPEN_MAPS = 128  # each holds a file handle; a process may have 1,024 by default
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
        self._files = CacheFolder(folder, max_bytes)
        self._open: OrderedDict[str, Mapped] = OrderedDict()  # the one used last is last
        self._lock, self._decoding = threading.Lock(), threading.Lock()
        self._warned = False

    @classmethod
    def of(cls, settings: Settings, say: Say) -> "NodeCache":
        """The cache that the environment names; without a size, half of what is free for it, at most 100 GB."""
        found = CacheFolder.of(settings)
        return cls(found.folder, found.max_bytes, say)

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
        with self._files.writing(name):
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
        self._files.used(name)
        return _arrays(buffer, dataset, shard)

    def _write(self, name: str, room: Room) -> None:
        """Write a shard's file; the caller holds its lock. Raises OSError."""
        images = room.images_NCHW
        parts = (images.data, memoryview(bytes(-images.nbytes % 8)), room.labels_N.data, room.keys_N.data)
        self._files.write(name, parts)


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


def _memory_bytes() -> int:
    import psutil

    return int(SHARE_IN_MEMORY * psutil.virtual_memory().available)
