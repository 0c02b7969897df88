"""Plain ustar archives (POSIX.1-1988) in memory, byte for byte the same each time.

Files only, with time, owner and group zero, in the order given. The reader takes what the writer writes and refuses
everything else: stock readers drop the rest of a damaged archive without a word. Headers are made and checked by the
array, some 20 times faster than one by one.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 512  # tar's unit
END_OF_ARCHIVE = bytes(2 * BLOCK)
MAX_NAME_BYTES = 100
CHUNK_MEMBERS = 4096  # whose headers are made or checked at once: 2 MiB of them

# The fields of a header after the name: mode, uid, gid; size; mtime; checksum (counts as spaces); type; link; magic.
_SIZE, _SUM = slice(124, 135), slice(148, 154)
_EMPTY = (
    bytes(MAX_NAME_BYTES)
    + b"0000644\0"
    + b"0000000\0" * 2
    + b"00000000000\0" * 2
    + b" " * 8
    + b"0"
    + bytes(100)
    + b"ustar\x0000"
).ljust(BLOCK, b"\0")
_PADDING = tuple(bytes(-size % BLOCK) for size in range(BLOCK))  # by the size of the content, modulo BLOCK


def write_archive(names: Sequence[str], contents: Sequence[bytes]) -> bytes:
    """An archive of files; names are ASCII and at most 100 bytes. Raises ValueError for a longer one."""
    parts: list[bytes] = []
    for at in range(0, len(names), CHUNK_MEMBERS):
        some = contents[at : at + CHUNK_MEMBERS]
        encoded = [name.encode("ascii") for name in names[at : at + CHUNK_MEMBERS]]
        if max(map(len, encoded)) > MAX_NAME_BYTES:
            raise ValueError(f"tar: expected names of at most {MAX_NAME_BYTES} bytes, got {max(encoded, key=len)!r}")
        heads = _headers(encoded, [len(content) for content in some]).tobytes()
        for number, content in enumerate(some):
            parts += (heads[number * BLOCK : (number + 1) * BLOCK], content, _PADDING[len(content) % BLOCK])
    return b"".join([*parts, END_OF_ARCHIVE])


def read_archive(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and end of each file. Raises IntegrityError where an archive is not as written here."""
    names, starts, stops = list[bytes](), list[int](), list[int]()
    position, end = 0, len(data) - len(END_OF_ARCHIVE)
    while position < end:
        size = data[position + 124 : position + 135]
        if not size.isdigit() or size.strip(b"01234567"):
            raise _bad_header(position)
        start = position + BLOCK
        stop = start + int(size, 8)
        names.append(data[position : position + MAX_NAME_BYTES].rstrip(b"\0"))
        starts.append(start)
        stops.append(stop)
        position = stop + -stop % BLOCK
        if position > end or data[stop:position] != _PADDING[stop % BLOCK]:
            raise IntegrityError(f"shard: expected a member to end at byte {stop:,}, got a shard cut short")
        if len(names) == CHUNK_MEMBERS:
            yield from _checked(data, names, starts, stops)
            names, starts, stops = [], [], []
    if data[max(end, 0) :] != END_OF_ARCHIVE:
        raise IntegrityError("shard: expected the end of the archive, got a shard cut short")
    yield from _checked(data, names, starts, stops)


def walk_archive(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """As `read_archive`, where the bytes are known to be as written: sizes are bounded, nothing else is looked at."""
    position, end = 0, len(data) - len(END_OF_ARCHIVE)
    while position < end:
        size = data[position + 124 : position + 135]
        if not size.isdigit() or size.strip(b"01234567"):
            raise _bad_header(position)
        start = position + BLOCK
        stop = start + int(size, 8)
        if stop > end:
            raise IntegrityError(f"expected a member to end at byte {stop:,}, got a shard cut short")
        yield data[position : position + MAX_NAME_BYTES].rstrip(b"\0"), start, stop
        position = stop + -stop % BLOCK


def _checked(data: bytes, names: list[bytes], starts: list[int], stops: list[int]) -> Iterator[tuple[str, int, int]]:
    """The members, once their headers are found to be byte for byte those that the writer makes."""
    import numpy as np

    sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
    found = b"".join([data[start - BLOCK : start] for start in starts])
    wrong = (_headers(names, sizes) != np.frombuffer(found, np.uint8).reshape(-1, BLOCK)).any(axis=1)
    wrong |= np.array([not name.isascii() for name in names], bool)
    if wrong.any():
        raise _bad_header(starts[int(wrong.argmax())] - BLOCK)
    yield from zip([name.decode("ascii") for name in names], starts, stops, strict=True)


def _bad_header(position: int) -> IntegrityError:
    return IntegrityError(f"shard: expected a member's header at byte {position:,}, got other bytes")


def _headers(names: Sequence[bytes], sizes: Sequence[int]) -> "NDArray[np.uint8]":
    """The one header (N, 512) that a file of each name and size can have."""
    import numpy as np

    heads = np.empty((len(names), BLOCK), np.uint8)
    heads[:] = np.frombuffer(_EMPTY, np.uint8)
    padded = np.array(names, dtype=f"S{MAX_NAME_BYTES}")
    heads[:, :MAX_NAME_BYTES] = padded.view(np.uint8).reshape(len(names), MAX_NAME_BYTES)
    heads[:, _SIZE] = _octal(np.array(sizes, np.int64), 11)
    heads[:, _SUM] = _octal(heads.sum(axis=1, dtype=np.int64), 6)
    heads[:, 154] = 0  # the checksum ends with NUL and a space
    return heads


def _octal(values: "NDArray[np.int64]", digits: int) -> "NDArray[np.int64]":
    """ASCII digits (N, digits) of each value (N,)."""
    import numpy as np

    return (values[:, None] >> 3 * np.arange(digits - 1, -1, -1)) % 8 + ord("0")
