"""A folder of files by digest on the node's disk, bounded and shared by processes: what `pipeline.nodecache` keeps
decoded shards in, and `pipeline.release.contents` the files of releases.

    <folder>/<hexadecimal digest><anything>.v<format>

A file is flushed to the disk under a hidden name and then renamed, so one that is there is whole, even after a power
cut. Whoever writes one holds its lock; the kernel drops the lock of a killed writer, and what it left is overwritten or
removed. The files used least recently go when all would exceed the bound.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.settings import Settings

MAX_BYTES = 100_000_000_000  # at most, where nothing else is said; else half of what is free
NUM_LOCKS = 64  # a file's is chosen by its digest


@dataclass(frozen=True)
class CacheFolder:
    """The folder and the bound on all its files together. Its methods raise OSError where the disk does not serve."""

    folder: Path
    max_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The folder that the environment names; without a size, half of what is free for it, at most 100 GB."""
        folder = settings.cache_folder
        if settings.cache_gb is not None:
            return cls(folder, int(settings.cache_gb * 1e9))
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        used = sum(size for _, size, _ in files(folder))
        return cls(folder, min(MAX_BYTES, (shutil.disk_usage(there).free + used) // 2))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Hold the lock of a file against other processes and threads; the folder is made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / _lock_name(name)):
            yield

    def read(self, name: str) -> bytes | None:
        """A file's bytes, which counts as a use; None where it is not there."""
        path = self.folder / name
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        self.used(name)
        return data

    def used(self, name: str) -> None:
        """Note that a file was used now."""
        with contextlib.suppress(OSError):  # a cache that is read-only, or a file that has just been removed
            os.utime(self.folder / name)

    def write(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write a file of these parts; the caller holds its lock."""
        self._make_room(sum(memoryview(part).nbytes for part in parts))
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
        """Remove what killed workers left, then the files used least recently, to make room."""
        if num_bytes > self.max_bytes:
            raise OSError(
                f"expected room for {num_bytes:,} bytes, got a bound of {self.max_bytes:,} (ATELIER_CACHE_GB)"
            )
        with _locked(self.folder / ".lock"):
            _remove_unfinished(self.folder)
            found = sorted(files(self.folder))
            excess = sum(size for _, size, _ in found) + num_bytes - self.max_bytes
            for _, size, path in found:
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)
                excess -= size


def files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each finished file was used last (seconds), its bytes and its path; of older formats too."""
    if not folder.is_dir():
        return
    for path in folder.glob("[0-9a-f]*.v*"):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            yield found.st_mtime, found.st_size, path


def _lock_name(name: str) -> str:
    return f".lock-{int(name.lstrip('.')[:4], 16) % NUM_LOCKS:02d}"


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file against other processes and threads. Raises OSError (BlockingIOError without `wait`)."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_unfinished(folder: Path) -> None:
    """Remove the hidden files that nobody writes any more: whoever writes one holds its lock."""
    for path in folder.glob(".[0-9a-f]*.v*"):
        with contextlib.suppress(BlockingIOError), _locked(folder / _lock_name(path.name), wait=False):
            path.unlink(missing_ok=True)
