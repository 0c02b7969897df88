"""Archives from the web, unpacked only after every name and size in them was checked.

    unpacked("https://host/flowers.tgz", sha256, settings.home / "downloads")      # the folder <sha256>/ in it

An archive is refused as a whole, before a byte of it is written, where a member's name is absolute, leads out, is no
UTF-8, holds a backslash, a drive letter or a control character, stands twice, is a file here and a folder there, or is
too long or too deep; where it is a link, a device or sparse; where there are too many members, or they unpack to more
than the limits below or than the disk has free. Sizes are enforced again while the bytes are written. The folder
appears whole, by a rename.
"""

import gzip
import os
import re
import shutil
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from pipeline.errors import SourceError
from pipeline.reading.downloads import COPY_BYTES, download, free_bytes, locked
from pipeline.reading.members import FILE, FOLDER, Member
from pipeline.reading.tars import TarReader
from pipeline.reading.zips import ZipReader

MAX_UNPACKED_BYTES = 512 << 30
MAX_MEMBERS = 20_000_000
MAX_EXPANSION = 200  # real images pack 2 to 20 times; bombs reach 1,000
FREE_EXPANSION_BYTES = 1 << 20  # small archives may pack better
MAX_NAME_BYTES, MAX_PART_BYTES, MAX_DEPTH = 1024, 255, 16
_DRIVE = re.compile(r"[A-Za-z]:")


def unpacked(url: str, sha256: str, folder: Path) -> Path:
    """The folder with what the archive behind an address holds, fetched unless it is there. Raises SourceError."""
    target, file = folder / sha256, folder / f"{sha256}.download"
    with locked(folder, sha256):
        if target.is_dir():
            return target
        if not file.is_file():
            download(url, sha256, file)
        unpack(file, target, url)
        file.unlink()
    return target


class _Stream(Protocol):
    def read(self, num_bytes: int, /) -> bytes: ...


Members = Callable[[], Iterator[tuple[Member, Callable[[], _Stream]]]]  # each with a way to its content


def unpack(archive: Path, target: Path, where: str) -> None:
    """Unpack a tar, a gzipped tar or a zip into a folder that appears whole. Raises SourceError naming `where`."""
    work = target.with_name(f"{target.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed; ours is the lock
    try:
        with archive.open("rb") as file:
            members = _opened(file, archive.stat().st_size, where)
            _check(members, archive.stat().st_size, free_bytes(target.parent), where)
            work.mkdir()
            for member, content in members():
                _write(work / _relative(member.name), member, content, where)
        os.sync()  # the rename must not outlive a power cut without the bytes
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _opened(file: BinaryIO, num_bytes: int, where: str) -> Members:
    """The members of an archive by its first bytes, as often as they are asked for."""
    magic = file.read(4)
    if magic[:2] == b"PK":
        reader = ZipReader(file, num_bytes, where)
        _check_count(reader.num_members, where)
        return lambda: ((member, _later(reader, member)) for member in reader)
    most = num_bytes if magic[:2] != b"\x1f\x8b" else min(_most_bytes(num_bytes), MAX_UNPACKED_BYTES)

    def members() -> Iterator[tuple[Member, Callable[[], _Stream]]]:
        file.seek(0)
        with closing(gzip.open(file) if magic[:2] == b"\x1f\x8b" else _Kept(file)) as stream:
            tar = TarReader(cast(BinaryIO, stream), where, most)
            for member in tar:
                yield member, lambda: tar
            tar.drain()

    return members


class _Kept:
    """A file that stays open when it is closed: the next pass reads it again."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek = file.read, file.seek

    def close(self) -> None:
        """Nothing to do."""


def _later(reader: ZipReader, member: Member) -> Callable[[], _Stream]:
    return lambda: reader.open(member)


def _most_bytes(packed_bytes: int) -> int:
    return MAX_EXPANSION * packed_bytes + FREE_EXPANSION_BYTES


def _check(members: Members, packed_bytes: int, free_bytes: int, where: str) -> None:
    """Refuse an archive by its index: names, kinds, sizes, and what would lie in another's place."""
    names, folders, spans = array("q"), array("q"), (array("Q"), array("Q"))
    total, last_folder = 0, ""
    most = min(MAX_UNPACKED_BYTES, _most_bytes(packed_bytes), free_bytes)
    for member, _ in members():
        name = _checked_name(member, where)
        total += member.bytes if member.kind == FILE else 0
        if total > most:
            raise SourceError(
                f"{where}: expected members of at most {most:,} bytes unpacked (a decompression bomb? a full disk?), "
                f"got more at {member.name!r}"
            )
        if member.kind == FILE:
            names.append(hash(name))
            _check_count(len(names), where)
            spans[0].append(member.offset)
            spans[1].append(member.end)
        parent = name if member.kind == FOLDER else name.rpartition("/")[0]
        if parent != last_folder:
            last_folder = parent
            parts = parent.split("/")
            folders.extend(hash("/".join(parts[:depth])) for depth in range(1, len(parts) + 1))
    if not names:
        raise SourceError(f"{where}: expected an archive with files, got none in it")
    _check_places(members, names, folders, where)
    _check_spans(*spans, where)


def _checked_name(member: Member, where: str) -> str:
    """The member's path, in which nothing can lead out of a folder."""
    name = _relative(member.name)
    parts = name.split("/")
    problem = None
    if member.kind not in (FILE, FOLDER):
        problem = f"is {member.kind}"
    elif member.name.startswith("/") or _DRIVE.match(name):
        problem = "has an absolute name"
    elif {"..", ".", ""} & set(parts) and not (name == "" and member.kind == FOLDER):
        problem = "has a part that is empty, '.' or '..'"
    elif "\\" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        problem = "has a backslash or a control character in its name"
    elif len(name.encode()) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        problem = f"has a name of more than {MAX_NAME_BYTES} bytes, or {MAX_PART_BYTES} in one part"
    elif len(parts) > MAX_DEPTH:
        problem = f"lies in more than {MAX_DEPTH} folders"
    if problem:
        raise SourceError(
            f"{where}: expected files with plain relative names, got member {member.name[:200]!r}, which {problem}; "
            "nothing was unpacked"
        )
    return name


def _relative(name: str) -> str:
    """`./a/b/` is `a/b`."""
    return name.removesuffix("/").removeprefix("./") if name not in (".", "./") else ""


def _check_count(num_members: int, where: str) -> None:
    if num_members > MAX_MEMBERS:
        raise SourceError(f"{where}: expected at most {MAX_MEMBERS:,} members, got more; nothing was unpacked")


def _check_places(members: Members, names: "array[int]", folders: "array[int]", where: str) -> None:
    """Refuse two files of one name, and a file that is a folder too: found by hashes, confirmed by the names."""
    import numpy as np

    values, counts = np.unique(np.frombuffer(names, np.int64), return_counts=True)
    twice = values[counts > 1]
    both = np.intersect1d(values, np.frombuffer(folders, np.int64)) if folders else values[:0]
    suspects = {*twice.tolist(), *both.tolist()}
    if not suspects:
        return
    files, parents = set[str](), set[str]()
    for member, _ in members():
        name = _relative(member.name)
        if member.kind == FILE and hash(name) in suspects:
            if name in files:
                raise SourceError(f"{where}: expected each member once, got {name[:200]!r} twice; nothing was unpacked")
            files.add(name)
        parts = name.split("/")
        parents.update("/".join(parts[:depth]) for depth in range(1, len(parts) + (member.kind == FOLDER)))
    if clash := sorted(files & parents):
        raise SourceError(f"{where}: expected {clash[0][:200]!r} to be a file or a folder, got both; nothing unpacked")


def _check_spans(starts: "array[int]", stops: "array[int]", where: str) -> None:
    """Refuse a zip whose members share bytes (Fifield, "A better zip bomb", WOOT 2019). A tar's spans are empty."""
    import numpy as np

    first, last = np.frombuffer(starts, np.uint64), np.frombuffer(stops, np.uint64)
    order = np.argsort(first, kind="stable")
    if (last[order][:-1] > first[order][1:]).any():
        raise SourceError(f"{where}: expected members that share no bytes, got some that do; nothing was unpacked")


def _write(path: Path, member: Member, content: Callable[[], _Stream], where: str) -> None:
    """One file or folder; its size is the stated one, or the reader raises."""
    if member.kind == FOLDER:
        path.mkdir(parents=True, exist_ok=True)
        return
    stream, left = content(), member.bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        raise SourceError(f"{where}: expected names that this disk tells apart, got {member.name!r} twice") from None
    with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor has no path
        while left:
            data = stream.read(min(left, COPY_BYTES))
            left -= len(data)
            file.write(data)
        if not member.bytes:
            stream.read(0)
