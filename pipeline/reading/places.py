"""A folder or a bucket as a place of files: listed lazily, read whole or opened (`pipeline.reading.locations`).

A file's mark is another one after its content changed: locally its size and time of change, in a bucket its size and
etag, from the web the SHA-256 of what was fetched. Hidden files are passed over, symbolic links are followed only to
files inside the folder.
"""

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

from pipeline.artifacts import Rejected
from pipeline.errors import NotFound, SourceError, UserError
from pipeline.objects import Entry, Store, check_key
from pipeline.store import open_store

BLOCK_BYTES = 4 << 20  # of one request to a store


class File(NamedTuple):
    """A file: `name` is its path as one printable line; `at` is the exact one, quoted, where that is another."""

    name: str
    mark: str
    bytes: int
    at: str = ""

    @property
    def address(self) -> str:
        """What `read` and `open` take."""
        return address(self.name, self.at)


def address(name: str, at: str) -> str:
    """The exact path of a file in its location, from the fields that a record can hold."""
    return os.fsdecode(unquote_to_bytes(at)) if at else name


class ChangedError(OSError):
    """A file is gone, or not the one that was listed."""


class Location(ABC):
    """A folder of files, or one file (`only`)."""

    remote = False  # whether reads have a latency that is worth hiding
    checks_marks = False  # whether `read` sees every change, not only that of a file's size

    def __init__(self, path: str, only: str | None = None, shown: str | None = None) -> None:
        self.path = path
        self.only = only
        self.shown = shown  # the name of the only file, where it is stored under another one

    def files(self) -> Iterator[File | Rejected]:
        """The files in the order of the tree (by the first part of the name, then the second), lazily."""
        if self.only is None:
            yield from self._listed()
        elif found := self.find(self.only):
            yield found._replace(name=self.shown, at=quote(self.only)) if self.shown else found

    def folders(self) -> tuple[str, ...] | None:
        """The names of the folders at the top, sorted; None where only a whole listing could say."""
        return None

    @abstractmethod
    def _listed(self) -> Iterator[File | Rejected]:
        """The files of the folder."""

    @abstractmethod
    def find(self, name: str) -> File | None:
        """The file of that name, if there is one."""

    @abstractmethod
    def read(self, address: str, num_bytes: int, mark: str) -> bytes:
        """A file's content. Raises ChangedError where it is gone or not the one that was listed, or another OSError."""

    @abstractmethod
    def open(self, address: str) -> BinaryIO:
        """A file to read from, forward or at random. Raises SourceError where it cannot be read."""

    def where(self, name: str) -> str:
        """What to call a file in an error."""
        return self.path if self.only else f"{self.path.rstrip('/')}/{name}"


class Folder(Location):
    """A local folder. Files that were unpacked or fetched are marked by the `seal`, not by their times."""

    checks_marks = True

    def __init__(
        self, root: Path, path: str, only: str | None = None, seal: str = "", shown: str | None = None
    ) -> None:
        super().__init__(path, only, shown)
        self.root = str(root)
        self.seal = seal

    def folders(self) -> tuple[str, ...]:
        names, folders = scanned(self.root)
        return tuple(printable(name) for name in names if name in folders and not Path(self.root, name).is_symlink())

    def _listed(self) -> Iterator[File | Rejected]:
        inside = os.path.realpath(self.root)
        names, folders = scanned(self.root)
        pending = [("", iter(names), folders)]
        while pending:
            start, rest, folders = pending[-1]
            for name in rest:
                path = start + name
                if name in folders:
                    if (deeper := self._entered(path)) is not None:
                        pending.append((f"{path}/", iter(deeper[0]), deeper[1]))
                        break
                    yield Rejected(name=printable(path), reason="a link to a folder")
                else:
                    yield self._file(path, inside)
            else:
                pending.pop()

    def _entered(self, path: str) -> "tuple[list[str], set[str]] | None":
        """A folder's entries; None for a link."""
        full = f"{self.root}/{path}"
        return None if Path(full).is_symlink() else scanned(full)

    def find(self, name: str) -> File | None:
        found = self._file(name, os.path.realpath(self.root))
        return found if isinstance(found, File) else None

    def _file(self, path: str, inside: str) -> File | Rejected:
        full = f"{self.root}/{path}"
        try:
            found = os.lstat(full)
            if stat.S_ISLNK(found.st_mode):
                if not os.path.realpath(full).startswith(f"{inside}/") and self.only is None:
                    return Rejected(name=printable(path), reason="a link out of the folder")
                found = Path(full).stat()
        except OSError as error:
            return Rejected(name=printable(path), reason=f"cannot be read: {error.strerror}")
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would wait for ever
            return Rejected(name=printable(path), reason="not a regular file")
        return _file(path, self._mark(found), found.st_size)

    def _mark(self, found: os.stat_result) -> str:
        return f"{found.st_size:x}-{self.seal or format(found.st_mtime_ns, 'x')}"

    def read(self, address: str, num_bytes: int, mark: str) -> bytes:
        try:
            descriptor = os.open(f"{self.root}/{address}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ChangedError from None
        try:
            data = b""
            if self._mark(os.fstat(descriptor)) == mark:
                data = os.read(descriptor, num_bytes + 1)
                while len(data) < num_bytes and (more := os.read(descriptor, num_bytes + 1 - len(data))):
                    data += more  # one read gives at most 2 GiB, and less on some file systems
                if len(data) == num_bytes:
                    return data
            raise ChangedError
        finally:
            os.close(descriptor)

    def open(self, address: str) -> BinaryIO:
        try:
            return Path(self.root, address).open("rb", buffering=1 << 20)
        except OSError as error:
            raise SourceError(f"{self.where(address)}: expected a file to read, got {error.strerror}") from None


@lru_cache(maxsize=8)
def _connected(uri: str) -> Store:
    """A store that this process keeps: a new client takes a tenth of a second, and a place is opened for each piece."""
    return open_store(uri)


class Bucket(Location):
    """A prefix of a bucket."""

    remote = True

    def __init__(self, uri: str, path: str, only: str | None = None) -> None:
        super().__init__(path, only)
        self.store = _connected(uri)

    def _listed(self) -> Iterator[File | Rejected]:
        for entry in self.store.list():
            if entry.key.endswith("/") or any(_is_hidden(part) for part in entry.key.split("/")):
                continue  # the former is a console's empty folder
            try:
                check_key(entry.key)
            except UserError:
                reason = "its key holds characters or parts that no file can have"
                yield Rejected(name=printable(entry.key), reason=reason)
            else:
                yield _object(entry)

    def find(self, name: str) -> File | None:
        try:
            return _object(self.store.stat(name))
        except NotFound:
            return None

    def read(self, address: str, num_bytes: int, mark: str) -> bytes:
        try:
            data = self.store.get_range(address, 0, num_bytes + 1)
        except NotFound:
            raise ChangedError from None
        if len(data) != num_bytes:
            raise ChangedError
        return data

    def open(self, address: str) -> BinaryIO:
        try:
            num_bytes = self.store.stat(address).bytes
        except NotFound:
            raise SourceError(f"{self.where(address)}: expected an object to read, found none; run again") from None
        ranges = _Ranges(self.store, address, num_bytes)
        return cast(BinaryIO, io.BufferedReader(ranges, BLOCK_BYTES))


class _Ranges(io.RawIOBase):
    """An object as a file, by ranged requests."""

    def __init__(self, store: Store, key: str, num_bytes: int) -> None:
        self._store, self._key, self._num_bytes, self._at = store, key, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is not public
        num_bytes = min(len(buffer), self._num_bytes - self._at)
        if num_bytes <= 0:
            return 0
        data = self._store.get_range(self._key, self._at, num_bytes)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def scanned(folder: str) -> tuple[list[str], set[str]]:
    """A folder's names, sorted, and which of them are folders (or links to some). Hidden ones are passed over."""
    names, folders = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_hidden(entry.name):
                    names.append(entry.name)
                    if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry).is_dir()):
                        folders.add(entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: expected a folder to list, got {error.strerror}; check its mode") from None
    names.sort()
    return names, folders


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # macOS adds the latter to zips, full of hidden files


def _file(path: str, mark: str, num_bytes: int) -> File:
    name = printable(path)
    return File(name, mark, num_bytes, "" if name == path else quote_from_bytes(os.fsencode(path)))


def _object(entry: Entry) -> File:
    return _file(entry.key, f"{entry.bytes:x}-{entry.etag}", entry.bytes)


def printable(name: str) -> str:
    """The name as one line of Unicode, another one for each name: a record is JSON, a file's name may be any bytes."""
    if name.isprintable() and "\\" not in name:
        return name
    text = os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
