"""Images in a folder, local or `s3://bucket/prefix`; the first subfolder is the class.

Hidden files are passed over. Whatever else is no image of the listed kinds is rejected by name, so that it is
counted. Symbolic links are followed only to files inside the folder.
"""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pipeline.artifacts import Rejected
from pipeline.errors import NotFound, SourceError, UserError
from pipeline.objects import Entry, check_key
from pipeline.sources import Item, SourceBase
from pipeline.store import open_store

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
MAX_FILE_BYTES = 256 << 20
READ_AHEAD_FILES = 8  # hides the latency of an object store; local reads are serial


@dataclass(frozen=True, slots=True)
class _File:
    name: str  # relative to the folder, "/" between the parts
    location: str  # what the reader takes
    bytes: int
    etag: str  # "" for a local file, whose content is hashed instead


@dataclass(frozen=True)
class _Listing:
    entries: list[_File | Rejected]  # sorted by name
    classes: tuple[str, ...]
    read: Callable[[_File], bytes | Rejected]


class Source(SourceBase):
    """A folder of png, jpg, jpeg, webp, bmp, gif, tif or tiff files."""

    kind: Literal["folder"] = "folder"
    path: str = Field(min_length=1)

    @field_validator("path")
    @classmethod
    def _known_scheme(cls, path: str) -> str:
        if "://" in path and not path.startswith("s3://"):
            raise ValueError("expected a local folder or s3://bucket/prefix")
        return path

    @property
    def _remote(self) -> bool:
        return self.path.startswith("s3://")

    def fingerprint(self) -> str:
        listing = self._listing()
        digest = hashlib.sha256(repr(listing.classes).encode())
        for entry in listing.entries:
            digest.update(f"{entry.name}\0{_content_digest(entry)}\n".encode())
        return digest.hexdigest()

    def classes(self) -> tuple[str, ...]:
        return self._listing().classes

    def items(self) -> Iterator[Item | Rejected]:
        listing = self._listing()
        index_of = {name: index for index, name in enumerate(listing.classes)}
        read = _read_ahead(listing) if self._remote else map(listing.read, _files(listing))
        for entry in listing.entries:
            data = next(read) if isinstance(entry, _File) else entry
            if isinstance(data, Rejected):
                yield data
            else:
                yield Item(entry.name, data, index_of[entry.name.split("/")[0]] if index_of else None)

    def num_items(self) -> int:
        return len(self._listing().entries)

    def _listing(self) -> _Listing:
        """What is there. Raises SourceError for a missing or empty folder, and for one without any image."""
        found, classes, read = _list_remote(self.path) if self._remote else _list_local(self.path)
        if not found and not classes:
            raise SourceError(f"{self.path}: expected images ({', '.join(EXTENSIONS)}), got an empty folder")
        entries = [_judge(entry, classes) for entry in sorted(found, key=lambda entry: entry.name)]
        if not any(isinstance(entry, _File) for entry in entries):
            first = f", first {entries[0].name}" if entries else ""
            kinds = ", ".join(EXTENSIONS)
            raise SourceError(
                f"{self.path}: expected images ({kinds}), got none among {len(entries)} other files{first}"
            )
        return _Listing(entries, tuple(sorted(classes)), read)


_Found = tuple[list[_File | Rejected], set[str], Callable[[_File], bytes | Rejected]]


def _list_remote(uri: str) -> _Found:
    store = open_store(uri)

    def read(file: _File) -> bytes | Rejected:
        try:
            return store.get(file.location)
        except NotFound:
            return Rejected(name=file.name, reason="gone before it was read")

    entries = (entry for entry in store.list() if not entry.key.endswith("/"))  # a console's empty folder
    found = [_look_at_object(entry) for entry in entries if not _hidden(entry.key)]
    classes = {entry.name.split("/")[0] for entry in found if "/" in entry.name}
    return found, classes, read


def _look_at_object(entry: Entry) -> _File | Rejected:
    try:
        check_key(entry.key)
    except UserError:
        return Rejected(name=_text(entry.key), reason="its key holds characters or parts that no file can have")
    return _File(entry.key, entry.key, entry.bytes, entry.etag)


def _list_local(path: str) -> _Found:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise SourceError(f"expected a folder of images at {path}, found none (seen from {Path.cwd()})")
    inside = root.resolve()
    found: list[_File | Rejected] = []
    classes: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=_refuse):
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        here = Path(folder)
        linked = [name for name in subfolders if (here / name).is_symlink()]
        subfolders[:] = [name for name in subfolders if name not in linked]
        found += [Rejected(name=_name(here / link, root), reason="a link to a folder") for link in linked]
        found += [_look_at(here / name, root, inside) for name in files if not _hidden(name)]
        if here == root:
            classes = {_text(name) for name in subfolders}
    return found, classes, _read_local


def _look_at(path: Path, root: Path, inside: Path) -> _File | Rejected:
    name = _name(path, root)
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            if not path.resolve().is_relative_to(inside):
                return Rejected(name=name, reason="a link out of the folder")
            found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would wait for ever
            return Rejected(name=name, reason="not a regular file")
        return _File(name, str(path), found.st_size, "")
    except OSError as error:
        return Rejected(name=name, reason=f"cannot be read: {error.strerror}")


def _judge(entry: _File | Rejected, classes: set[str]) -> _File | Rejected:
    """Reject by name and size what can be no sample."""
    if isinstance(entry, Rejected):
        return entry
    if entry.name.rpartition(".")[2].lower() not in EXTENSIONS:
        return Rejected(name=entry.name, reason="not an image")
    if entry.bytes > MAX_FILE_BYTES:
        reason = f"larger than {MAX_FILE_BYTES:,} bytes: {entry.bytes:,}"
        return Rejected(name=entry.name, reason=reason)
    if classes and "/" not in entry.name:
        return Rejected(name=entry.name, reason="beside the class folders, in none of them")
    return entry


def _content_digest(entry: _File | Rejected) -> str:
    if isinstance(entry, Rejected):
        return f"rejected: {entry.reason}"
    if entry.etag:
        return f"{entry.bytes} {entry.etag}"
    try:
        with Path(entry.location).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _read_local(file: _File) -> bytes | Rejected:
    try:
        with Path(file.location).open("rb") as stream:
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        return Rejected(name=file.name, reason=f"cannot be read: {error.strerror}")


def _files(listing: _Listing) -> Iterator[_File]:
    return (entry for entry in listing.entries if isinstance(entry, _File))


def _read_ahead(listing: _Listing) -> Iterator[bytes | Rejected]:
    """The files' bytes in order, with a few reads under way."""
    with ThreadPoolExecutor(READ_AHEAD_FILES) as pool:
        under_way: deque[Future[bytes | Rejected]] = deque()
        for file in _files(listing):
            under_way.append(pool.submit(listing.read, file))
            if len(under_way) >= READ_AHEAD_FILES:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _name(path: Path, root: Path) -> str:
    return _text(path.relative_to(root).as_posix())


def _text(name: str) -> str:
    """The name as one line of valid Unicode: a record is JSON in UTF-8, and a file's name may be any bytes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: expected a folder that can be listed, got {error.strerror}")
