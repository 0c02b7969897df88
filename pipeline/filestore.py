"""`file:///folder`: a folder that keeps an object store's promises, for a laptop or a shared disk.

An object is written to a file with a reserved name beside its place, flushed to the disk, and renamed into place
(`put`, `replace`) or linked there (`create`: a link, unlike a rename, fails where a file is). A process that is killed
leaves at most such a reserved file, which no listing shows. Renames and deletions happen under a lock on the root's
lock file (the kernel drops it with its process), so `replace` compares and renames in one step; all who share a folder
must open it by the same root.

The etag is the size and the time of change in nanoseconds, which is set so that it differs from the predecessor's: a
hash of the content would make every listing read every byte.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat as stat_bits
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from pipeline.errors import AlreadyExists, AtelierError, Changed, NotFound, StoreError, StoreRefused
from pipeline.objects import RESERVED, Entry, Store, check_key, check_prefix, check_range, opened

COPY_BYTES = 2**20


class FileStore(Store):
    """The objects under one folder, which is made by the first write. URIs may escape characters (`%20`)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.root = Path(unquote(uri.removeprefix("file://")))

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        with self._reading(key), self._path(key).open("rb") as file:
            return file.read(), _etag_of(os.fstat(file.fileno()))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        check_range(start, length)
        with self._reading(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def stat(self, key: str) -> Entry:
        with self._reading(key):
            found = self._path(key).stat()
            if stat_bits.S_ISDIR(found.st_mode):
                raise IsADirectoryError
            return _entry_of(key, found)

    def put(self, key: str, data: bytes | Path) -> str:
        path = self._path(key)
        with opened(data) as source, self._writing(key), _written(path, source) as finished, self._locked():
            return _move(finished, path)

    def create(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with opened(data) as source, self._writing(key), _written(path, source) as finished:
            try:
                os.link(finished, path)
            except FileExistsError:
                raise AlreadyExists(f"{self.uri}/{key}: expected no object there, found one") from None
            _flush_folder(path.parent)
            return _etag_of(finished.stat())

    def replace(self, key: str, data: bytes, etag: str) -> str:
        path = self._path(key)
        with opened(data) as source, self._writing(key), _written(path, source) as finished, self._locked():
            found = _etag_of(path.stat()) if path.is_file() else "no object"
            if found != etag:
                raise Changed(f"{self.uri}/{key}: expected etag {etag}, found {found}; read it again and retry")
            return _move(finished, path)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._writing(key):
            if not path.is_file():  # where there is nothing to delete, make no lock file either
                return
            with self._locked():
                path.unlink(missing_ok=True)
            _flush_folder(path.parent)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        check_prefix(prefix)
        folder = prefix.rpartition("/")[0]
        with self._reading(prefix):
            yield from _walk(self.root / folder, f"{folder}/" if folder else "", prefix)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the root's lock: against other processes and, as each opens the file anew, other threads."""
        with (self.root / f"{RESERVED}lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Turn the operating system's errors into ours."""
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFound(f"{self.uri}/{key}: no object there") from None
        except OSError as error:
            raise self._explained(error, key) from None

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        """As `_reading`, where a folder in the way means something else."""
        try:
            yield
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            raise StoreError(
                f"{self.uri}/{key}: expected that no key is the folder of another, found one; choose another key"
            ) from None
        except OSError as error:
            raise self._explained(error, key) from None

    def _explained(self, error: OSError, key: str) -> AtelierError:
        where = f"{self.uri}/{key}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(f"{where}: no space left on the disk of {self.root}; free some, then run this again")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StoreRefused(
                f"{where}: expected a folder that you may use, got '{error.strerror}'; "
                f"check the owner and mode of {self.root}"
            )
        return StoreError(f"{where}: the file system answered '{error.strerror or error}'")


def _etag_of(found: os.stat_result) -> str:
    return f"{found.st_size:x}-{found.st_mtime_ns:x}"


def _entry_of(key: str, found: os.stat_result) -> Entry:
    return Entry(key, found.st_size, _etag_of(found), found.st_mtime_ns / 1e9)


@contextlib.contextmanager
def _written(path: Path, source: BinaryIO) -> Iterator[Path]:
    """A finished file on the disk beside `path`, which is gone at the end unless it was renamed."""
    _make_folder(path.parent)
    finished = path.parent / f"{RESERVED}{uuid.uuid4().hex}"
    try:
        with finished.open("xb") as file:
            shutil.copyfileobj(source, file, COPY_BYTES)
            file.flush()
            now = time.time_ns()  # the kernel's own stamps move in steps of milliseconds
            os.utime(file.fileno(), ns=(now, now))
            os.fsync(file.fileno())
        yield finished
    finally:
        finished.unlink(missing_ok=True)


def _move(finished: Path, path: Path) -> str:
    """Rename into place, under the lock; gives the etag."""
    with contextlib.suppress(FileNotFoundError):
        before = path.stat().st_mtime_ns
        if finished.stat().st_mtime_ns <= before:  # a clock set back must not give an old etag again
            os.utime(finished, ns=(before + 1, before + 1))
    etag = _etag_of(finished.stat())
    finished.replace(path)
    _flush_folder(path.parent)
    return etag


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they outlive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path, start: str, prefix: str) -> Iterator[Entry]:
    """The objects under `folder`, whose keys begin with `start`, in the order of the tree."""
    try:
        with os.scandir(folder) as scanned:
            names = sorted((item.name, item.is_dir()) for item in scanned)
    except (FileNotFoundError, NotADirectoryError):  # nothing was put there, or it was removed meanwhile
        return
    for name, is_folder in names:
        key = start + name
        if name.startswith(RESERVED) or not (key.startswith(prefix) or prefix.startswith(f"{key}/")):
            continue
        if is_folder:
            yield from _walk(folder / name, f"{key}/", prefix)
        elif key.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                yield _entry_of(key, (folder / name).stat())
