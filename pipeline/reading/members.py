"""What readers of archives share: a member, its name as text, and one line for what decompressors raise."""

import zlib
from dataclasses import dataclass

from pipeline.errors import SourceError

FILE, FOLDER = "a file", "a folder"
STORED, DEFLATED = 0, 8  # methods of a zip


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive. `kind` is FILE, FOLDER or another one in words."""

    name: str
    bytes: int  # unpacked
    kind: str
    offset: int = 0  # in a zip: of the local header
    packed_bytes: int = 0
    method: int = STORED
    crc: int = 0
    end: int = 0  # in a zip: the first byte that may be another member's


def decoded(name: bytes, where: str) -> str:
    """A member's name. Raises SourceError where it is not UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise SourceError(f"{where}: expected member names in UTF-8, got {name[:200]!r}; pack it again") from None


class unpacking:  # noqa: N801 - reads as a word at the call site: `with unpacking(where)`
    """Turn what decompressors raise into one line. A class: a generator costs a microsecond more, a member."""

    __slots__ = ("where",)

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | EOFError | zlib.error):
            raise SourceError(f"{self.where}: expected a whole archive, got {error}; fetch it again") from None
