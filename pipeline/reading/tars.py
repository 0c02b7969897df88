"""A tar that somebody else wrote, read from front to back by a reader that stops at nothing without a word.

Stock readers end quietly at a damaged header, keep every member in memory, and read extended headers of any size. This
one goes member by member in bounded memory; each oddity is one SourceError that names the archive. It takes pax
(POSIX.1-2001), ustar and GNU's long names. Names are data here, never paths: who writes files checks them first
(`pipeline.reading.archives`). The shards that Atelier writes are read by `pipeline.ustar`, which takes nothing else.

    reader = TarReader(stream, "s3://bucket/shard-000.tar")
    for member in reader:                   # in order; content that is not read is skipped
        data = reader.read(member.bytes)
"""

import io
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.errors import SourceError
from pipeline.reading.members import FILE, FOLDER, Member, decoded, unpacking

BLOCK = 512  # tar's unit
MAX_EXTENDED_BYTES = 1 << 20  # of one extended header
DRAIN_BYTES = 1 << 20
_KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,
    b"5": FOLDER,
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
}


class TarReader:
    """The members of a tar, which is read from front to back. `max_bytes` bounds what is read, unpacked."""

    def __init__(self, stream: BinaryIO, where: str, max_bytes: int = 1 << 62) -> None:
        self.stream = stream
        self.where = where
        self.max_bytes = max_bytes
        self.position = 0
        self._end = 0  # of the member's content and padding
        self._stop = 0  # of its content

    def __iter__(self) -> Iterator[Member]:
        """The members. Raises SourceError where the archive is cut short or a header is damaged."""
        extended: dict[bytes, bytes] = {}
        while (head := self._header()) is not None:
            kind, size = head[156:157], self._number(head[124:136])
            if kind in b"xgLK" and kind:
                self._enter(size)
                extended |= self._extended(kind, size)
                continue
            size = self._size(extended, size)
            member = Member(self._name(head, extended), size, _kind(head, extended))
            self._enter(size if member.kind not in (FOLDER, _KINDS[b"1"], _KINDS[b"2"]) else 0)
            extended = {}
            yield member

    def read(self, num_bytes: int) -> bytes:
        """The next bytes of the member's content, fewer only at its end."""
        num_bytes = min(num_bytes, self._stop - self.position)
        data = self._take(num_bytes)
        if len(data) != num_bytes:
            raise self._short(num_bytes - len(data))
        return data

    def drain(self) -> None:
        """Read what follows the end of the archive, so that a gzip around it makes its own checks."""
        while True:
            with unpacking(self.where):
                data = self.stream.read(min(DRAIN_BYTES, self.max_bytes - self.position + 1))
            if not data:
                return
            self._advance(len(data))
            self.position += len(data)

    def _header(self) -> bytes | None:
        """The next header; None at the end of the archive."""
        if self._end != self.position:
            self._advance(self._end - self.position)
            with unpacking(self.where):
                self.stream.seek(self._end - self.position, io.SEEK_CUR)
            self.position = self._end
        head = self._take(BLOCK)
        if len(head) != BLOCK:
            raise self._short(BLOCK - len(head))
        if not head.strip(b"\0"):
            return None
        if sum(head) - sum(head[148:156]) + 8 * ord(" ") != self._number(head[148:156]):
            raise SourceError(
                f"{self.where}: expected a tar member's header at byte {self.position - BLOCK:,}, got other bytes; "
                "fetch or make the archive again"
            )
        return head

    def _enter(self, size: int) -> None:
        self._stop = self.position + size
        self._end = self._stop + -size % BLOCK

    def _take(self, num_bytes: int) -> bytes:
        self._advance(num_bytes)
        with unpacking(self.where):
            data = self.stream.read(num_bytes)
        self.position += len(data)
        return data

    def _advance(self, num_bytes: int) -> None:
        if self.position + num_bytes > self.max_bytes:
            raise SourceError(
                f"{self.where}: expected at most {self.max_bytes:,} bytes unpacked, got more: a decompression bomb?"
            )

    def _short(self, missing: int) -> SourceError:
        at = self.position
        return SourceError(
            f"{self.where}: expected {missing:,} more bytes at byte {at:,}, got the end: it is cut short; "
            "fetch or make the archive again"
        )

    def _number(self, field: bytes) -> int:
        """Octal, or binary after a byte 0x80."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:])
        digits, _, rest = field.lstrip(b" ").partition(b"\0")
        digits = digits.rstrip(b" ")
        if digits.strip(b"01234567") or rest.strip(b" \0"):
            raise SourceError(f"{self.where}: expected an octal number in a tar header, got {field!r}; make it again")
        return int(digits or b"0", 8)

    def _extended(self, kind: bytes, size: int) -> dict[bytes, bytes]:
        """What an extended header says of the next member."""
        if size > MAX_EXTENDED_BYTES:
            raise SourceError(
                f"{self.where}: expected an extended tar header of at most {MAX_EXTENDED_BYTES:,} bytes, got {size:,}"
            )
        data = self.read(size)
        if kind in b"LK":
            return {b"path" if kind == b"L" else b"linkpath": data.partition(b"\0")[0]}
        records = self._pax(data)
        if kind == b"g" and {b"path", b"size"} & set(records):
            raise SourceError(f"{self.where}: expected each tar member to have its own name, got one for all of them")
        return records if kind == b"x" else {}

    def _pax(self, data: bytes) -> dict[bytes, bytes]:
        """The records `LENGTH KEY=VALUE` + newline."""
        records, start = {}, 0
        while start < len(data):
            digits = data[start : start + 8].partition(b" ")[0]
            stop = start + int(digits) if digits.isdigit() else 0
            key, equals, value = data[start + len(digits) + 1 : stop - 1].partition(b"=")
            if not equals or stop > len(data) or data[stop - 1 : stop] != b"\n":
                raise SourceError(f"{self.where}: expected pax records in a tar header, got {data[start:][:40]!r}")
            records[key] = value
            start = stop
        return records

    def _size(self, extended: dict[bytes, bytes], size: int) -> int:
        stated = extended.get(b"size")
        if stated is None:
            return size
        if not stated.isdigit() or len(stated) > 18:
            raise SourceError(f"{self.where}: expected a size in a pax record, got {stated[:40]!r}")
        return int(stated)

    def _name(self, head: bytes, extended: dict[bytes, bytes]) -> str:
        name = extended.get(b"path")
        if name is None:
            name = head[:100].partition(b"\0")[0]
            prefix = head[345:500].partition(b"\0")[0] if head[257:263] == b"ustar\0" else b""
            name = prefix + b"/" + name if prefix else name
        return decoded(name, self.where)


def _kind(head: bytes, extended: dict[bytes, bytes]) -> str:
    if any(key.startswith(b"GNU.sparse.") for key in extended):
        return _KINDS[b"S"]
    flag = head[156:157]
    kind = _KINDS.get(flag, f"a member of type {flag!r}")
    return FOLDER if flag == b"\0" and head[:100].partition(b"\0")[0].endswith(b"/") else kind
