"""What a store of objects is: the interface and the keys that `file://` and `s3://` share.

Callers use `pipeline.store`, which opens one of the two by its URI.
"""

import heapq
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UserError

MAX_KEY_BYTES = 1024  # S3's limit, prefix included
MAX_NAME_BYTES = 255  # of one part of a key: the limit of common file systems
RESERVED = ".atelier-"  # our own files beside the objects of a folder: unfinished writes, the lock


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: `modified` in seconds since 1970; the etag is another one after every change of the bytes."""

    key: str
    bytes: int
    etag: str
    modified: float


class Store(ABC):
    """Objects by key. Safe in threads; picklable (the other side connects anew).

    Every method raises UserError for a key that is not allowed, StoreRefused where the store does not admit the
    caller, and StoreError for other failures.
    """

    uri: str  # without a slash at its end

    @abstractmethod
    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The object and the etag to hand to `replace`. Raises NotFound."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length), fewer or none past the object's end. Raises NotFound."""

    @abstractmethod
    def put(self, key: str, data: bytes | Path) -> str:
        """Write an object, bytes or a file's content, over whatever was there; gives its etag."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The objects whose keys begin with `prefix` (`a/b` finds `a/bc` too), read as they are consumed.

        They come in the order of a folder tree: by the first part of the key, then the second (`key.split("/")`).
        """

    @abstractmethod
    def stat(self, key: str) -> Entry:
        """Size, etag and time of an object. Raises NotFound."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; where there is none, all is well."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> str:
        """Write an object that must not be there yet; gives its etag. Raises AlreadyExists.

        On S3 a request whose reply was lost is sent again and may meet its own object: then an object of the
        same bytes counts as created here. A caller that must know who won writes something of its own into them.
        """

    @abstractmethod
    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Overwrite an object that still has this etag; gives the new one. Raises Changed, also where it is gone.

        After a lost reply the same holds as for `create`.
        """

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFound."""
        return self.get_with_etag(key)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri,)


def check_key(key: str) -> str:
    """A key that names one object on every store, unchanged. Raises UserError."""
    parts = key.split("/")
    problem = None
    if not all(parts):
        problem = "an empty part"
    elif {".", ".."} & set(parts):
        problem = "'.' or '..' as a part"
    elif "\\" in key or any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in key):
        problem = "a backslash, a control character or a lone surrogate"
    elif any(part.startswith(RESERVED) for part in parts):
        problem = f"a part that begins with {RESERVED}, which the store keeps for itself"
    elif len(key.encode()) > MAX_KEY_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        problem = f"more than {MAX_KEY_BYTES} bytes, or {MAX_NAME_BYTES} in one part"
    if problem:
        raise UserError(f"key: expected names joined by single slashes, got {key[:200]!r} with {problem}")
    return key


def check_prefix(prefix: str) -> str:
    """A prefix of allowed keys: empty, or a key with or without a slash at its end. Raises UserError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def check_range(start: int, length: int) -> None:
    """Refuse a range that counts from the end or backwards."""
    if start < 0 or length < 0:
        raise ValueError(f"expected start >= 0 and length >= 0, got {start} and {length}")


def opened(data: bytes | Path) -> BinaryIO:
    """What is to be written, as a file to read from."""
    return data.open("rb") if isinstance(data, Path) else io.BytesIO(data)


def in_tree_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Entries by the parts of their keys, from entries in that order already or in the order of whole keys.

    S3 servers that keep folders list `a/b` before `a.b`, all others `a.b` first. An entry is held back while keys
    that belong before it may still come: for `x/a.b`, until one of `x/a0` or later is seen ('0' follows '/').
    """
    held: list[tuple[list[str], str, Entry]] = []
    for entry in entries:
        while held and entry.key >= held[0][1]:
            yield heapq.heappop(held)[2]
        heapq.heappush(held, (entry.key.split("/"), _safe_after(entry.key), entry))
    while held:
        yield heapq.heappop(held)[2]


def _safe_after(key: str) -> str:
    """The least key after which, in the order of whole keys, none belongs before `key` in the order of parts."""
    for index, character in enumerate(key):
        if character < "/":
            return key[:index] + "0"
    return ""
