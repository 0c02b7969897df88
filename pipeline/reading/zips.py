"""A zip that somebody else wrote, read by its central directory in bounded memory.

The stock reader keeps an object for each member, and lets sizes lie until the bytes are there. Each oddity is one
SourceError that names the archive. It takes members stored or deflated, with zip64 (PKWARE APPNOTE 6.3.10). Names are
data here, never paths: who writes files checks them first (`pipeline.reading.archives`).

    zipped = ZipReader(file, num_bytes, "mnist.npz")
    for member in zipped:
        stream = zipped.open(member)        # checks CRC-32 and size at its end
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.errors import SourceError
from pipeline.reading.members import DEFLATED, FILE, FOLDER, STORED, Member, decoded, unpacking

CHUNK_BYTES = 1 << 20
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class ZipReader:
    """The members of a zip by its central directory. `file` can be read at random."""

    def __init__(self, file: BinaryIO, num_bytes: int, where: str) -> None:
        self.file = file
        self.num_bytes = num_bytes
        self.where = where
        self.num_members, self._begin, self._end = self._directory()

    def __iter__(self) -> Iterator[Member]:
        """The members in the order of the directory. Raises SourceError where one cannot be as stated."""
        at = self._begin
        for _ in range(self.num_members):
            head = self._at(at, _ENTRY.size)
            if head[:4] != b"PK\1\2":
                raise self._damaged("an entry of the directory")
            fields = _ENTRY.unpack(head)
            name_bytes, extra_bytes, comment_bytes = fields[10:13]
            tail = self._at(at + _ENTRY.size, name_bytes + extra_bytes)
            at += _ENTRY.size + name_bytes + extra_bytes + comment_bytes
            if at > self._end:
                raise self._damaged("the end of the directory")
            yield self._member(fields, decoded(tail[:name_bytes], self.where), tail[name_bytes:])

    def open(self, member: Member) -> "ZipStream":
        """The member's content. Raises SourceError where its local header is another one."""
        head = self._at(member.offset, _LOCAL.size)
        signature, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL.unpack(head)
        start = member.offset + _LOCAL.size + name_bytes + extra_bytes
        name = self._at(member.offset + _LOCAL.size, name_bytes)
        same = (name, method, flags & 1) == (member.name.encode(), member.method, 0)
        if signature != b"PK\3\4" or not same or start + member.packed_bytes > self._begin:
            raise self._damaged(f"{member.name!r} where the directory says")
        return ZipStream(self, member, start)

    def _directory(self) -> tuple[int, int, int]:
        """Number of members, first byte and end of the central directory."""
        tail_bytes = min(self.num_bytes, _END.size + 65_535)
        tail = self._at(self.num_bytes - tail_bytes, tail_bytes)
        found = tail.rfind(b"PK\5\6")
        if found < 0 or len(tail) - found < _END.size:
            raise SourceError(f"{self.where}: expected a zip archive with its directory at the end, got none")
        _, disk, first_disk, here, count, size, start, comment_bytes = _END.unpack_from(tail, found)
        end = self.num_bytes - tail_bytes + found
        if comment_bytes != len(tail) - found - _END.size:
            raise self._damaged("its end")
        if 0xFFFF in (count, here) or 0xFFFFFFFF in (size, start):
            *_, disk, first_disk, here, count, size, start, end = self._directory64(end)
        if disk or first_disk or here != count or start + size != end or count * _ENTRY.size > size:
            raise self._damaged("a directory that ends where it says, in one part")
        return count, start, end

    def _directory64(self, end: int) -> tuple[int, ...]:
        locator = _LOCATOR64.unpack(self._at(end - _LOCATOR64.size, _LOCATOR64.size))
        found = _END64.unpack(self._at(locator[2], _END64.size))
        if (locator[0], found[0]) != (b"PK\6\7", b"PK\6\6"):
            raise self._damaged("a zip64 directory")
        return (*found[4:], locator[2])

    def _member(self, fields: tuple[int, ...], name: str, extra: bytes) -> Member:
        _, made_by, _, flags, method, _, _, crc, packed, size, _, _, _, disk, _, attributes, offset = fields
        size, packed, offset = self._wide(name, extra, [size, packed, offset])
        if flags & 1 or disk:
            raise SourceError(f"{self.where}: expected plain members, got {name!r} encrypted or on another disk")
        if method not in (STORED, DEFLATED):
            raise SourceError(
                f"{self.where}: expected members stored or deflated, got {name!r} with method {method}; pack it again"
            )
        if offset + _LOCAL.size + packed > self._begin or (method == STORED and packed != size):
            raise self._damaged(f"room for {name!r}")
        end = offset + _LOCAL.size + len(name.encode()) + packed
        return Member(name, size, _kind_of(name, made_by, attributes), offset, packed, method, crc, end)

    def _wide(self, name: str, extra: bytes, values: list[int]) -> list[int]:
        """Values that do not fit 32 bits stand in the extra field of zip64, in this order."""
        while 0xFFFFFFFF in values:
            if len(extra) < 4:
                raise self._damaged(f"zip64 sizes of {name!r}")
            tag, num_bytes = struct.unpack_from("<2H", extra)
            body, extra = extra[4 : 4 + num_bytes], extra[4 + num_bytes :]
            if tag == 1:
                wanted = [index for index, value in enumerate(values) if value == 0xFFFFFFFF]
                if len(body) < 8 * len(wanted):
                    raise self._damaged(f"zip64 sizes of {name!r}")
                for index, value in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", body), strict=True):
                    values[index] = value
                break
        return values

    def _at(self, start: int, num_bytes: int) -> bytes:
        if start < 0 or start + num_bytes > self.num_bytes:
            raise self._damaged(f"bytes {start:,} to {start + num_bytes:,} of {self.num_bytes:,}")
        self.file.seek(start)
        data = self.file.read(num_bytes)
        if len(data) != num_bytes:
            raise self._damaged(f"{num_bytes:,} bytes at byte {start:,}")
        return data

    def _damaged(self, expected: str) -> SourceError:
        return SourceError(f"{self.where}: expected a whole zip archive, found not {expected}; fetch or make it again")


class ZipStream:
    """The content of a zip's member. Streams of one archive share its file, one thread at a time."""

    def __init__(self, reader: ZipReader, member: Member, start: int) -> None:
        self._reader, self._member, self._at = reader, member, start
        self._packed_left, self.left = member.packed_bytes, member.bytes
        self._inflate = zlib.decompressobj(-15) if member.method == DEFLATED else None
        self._crc: int | None = 0

    def read(self, num_bytes: int) -> bytes:
        """The next bytes, fewer only at the end. Raises SourceError where they are not what the archive states."""
        wanted, parts = min(num_bytes, self.left), list[bytes]()
        while wanted:
            data = self._some(min(wanted, CHUNK_BYTES))
            if not data:
                raise self._wrong("its size")
            wanted -= len(data)
            self.left -= len(data)
            if self._crc is not None:
                self._crc = zlib.crc32(data, self._crc)
            parts.append(data)
        if not self.left:
            self._finish()
        return b"".join(parts)

    def skip(self, num_bytes: int, *, check: bool) -> None:
        """Pass over bytes. Without `check` a stored member's CRC-32 cannot be verified later."""
        if self._inflate is None and not check:
            num_bytes = min(num_bytes, self.left)
            self._at, self._packed_left, self.left = (
                self._at + num_bytes,
                self._packed_left - num_bytes,
                self.left - num_bytes,
            )
            self._crc = None if num_bytes else self._crc
            return
        while num_bytes > 0 and self.left:
            num_bytes -= len(self.read(min(num_bytes, CHUNK_BYTES)))

    def _some(self, num_bytes: int) -> bytes:
        if self._inflate is None:
            return self._packed(num_bytes)
        while True:
            packed = self._inflate.unconsumed_tail or self._packed(1 << 16)
            with unpacking(self._reader.where):
                data = self._inflate.decompress(packed, num_bytes)
            if data or self._inflate.eof or not (packed or self._packed_left):
                return data

    def _packed(self, num_bytes: int) -> bytes:
        num_bytes = min(num_bytes, self._packed_left)
        data = self._reader._at(self._at, num_bytes)
        self._at, self._packed_left = self._at + num_bytes, self._packed_left - num_bytes
        return data

    def _finish(self) -> None:
        if self._inflate is not None and not self._inflate.eof and self._some(1):
            raise self._wrong("its size: it unpacks to more")
        if self._crc is not None and self._crc != self._member.crc:
            raise self._wrong("its CRC-32")

    def _wrong(self, what: str) -> SourceError:
        return SourceError(
            f"{self._reader.where}: expected {self._member.name!r} as the archive states, got other bytes by {what}; "
            "fetch it again"
        )


def _kind_of(name: str, made_by: int, attributes: int) -> str:
    mode = stat.S_IFMT(attributes >> 16) if made_by >> 8 == 3 else 0  # 3: made on Unix
    if name.endswith("/"):
        return FOLDER
    if mode in (0, stat.S_IFREG):
        return FILE
    return "a symbolic link" if mode == stat.S_IFLNK else "neither file nor folder"
