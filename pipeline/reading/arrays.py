"""Numpy's npy format, read from a stream in blocks and never unpickled (numpy.lib.format, versions 1.0 and 2.0)."""

import io
import math
import struct
from dataclasses import dataclass
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # numpy's own limit: its parser may be slow on longer ones


class Stream(Protocol):
    """Whatever can be read from front to back."""

    def read(self, num_bytes: int, /) -> bytes: ...


@dataclass(frozen=True)
class ArrayHeader:
    """What an npy header states: an array in C order of plain values."""

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    head_bytes: int

    @property
    def each_bytes(self) -> int:
        """Bytes of one entry along the first dimension."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def array(self, data: bytes) -> "NDArray[Any]":
        """Entries (n, ...) from their bytes."""
        import numpy as np

        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])


def read_header(stream: Stream, num_bytes: int, where: str) -> ArrayHeader:
    """Read an array's header; `num_bytes` is the whole array's, header included. Raises SourceError."""
    from numpy.lib import format as npy

    head = stream.read(8)
    if head[:6] != MAGIC or head[6:] not in (b"\1\0", b"\2\0"):
        raise SourceError(f"{where}: expected an array in npy format 1.0 or 2.0, got {head!r}; save it with numpy.save")
    wide = head[6] == 2
    length = stream.read(4 if wide else 2)
    text_bytes = struct.unpack("<I" if wide else "<H", length)[0] if len(length) == (4 if wide else 2) else 0
    if not 0 < text_bytes <= MAX_HEADER_BYTES:
        raise SourceError(f"{where}: expected an npy header of at most {MAX_HEADER_BYTES} bytes, got {text_bytes}")
    text = io.BytesIO(length + stream.read(text_bytes))
    try:
        parse = npy.read_array_header_2_0 if wide else npy.read_array_header_1_0
        shape, fortran, dtype = parse(text, max_header_size=MAX_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        raise SourceError(f"{where}: expected an npy header, got {error!s:.100}; save it with numpy.save") from None
    if dtype.hasobject or dtype.names or dtype.subdtype:
        raise SourceError(f"{where}: expected plain numbers or text, got {dtype}, which is pickled or structured; "
                          "convert it before numpy.save")  # fmt: skip
    if fortran and len(shape) > 1:
        raise SourceError(f"{where}: expected an array in C order, got Fortran order; save numpy.ascontiguousarray(it)")
    header = ArrayHeader(tuple(shape), dtype, 8 + len(length) + text_bytes)
    wanted = header.head_bytes + dtype.itemsize * math.prod(shape)
    if min(shape, default=1) < 1 or wanted != num_bytes:
        raise SourceError(f"{where}: expected an array that fills its {num_bytes:,} bytes, got {dtype} {tuple(shape)}")
    return header
