"""WebDataset tar shards, byte for byte the same each time.

A sample is `KEY.cls` (the class index as ASCII, absent when unlabelled), `KEY.json` (where it comes from) and
`KEY.png`, next to each other in that order, in a plain ustar archive with time, owner and group zero. Ingest
writes datasets as such shards, and sampling writes generated images as such shards.

The reader takes what the writer writes and refuses everything else: stock readers drop the rest of a damaged
shard without a word. A flipped bit in a picture shows only in the SHA-256 that `open_shard` checks.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import Dataset, Shard, read_file
from pipeline.errors import IntegrityError
from pipeline.store import Store

EXTENSIONS = ("cls", "json", "png")  # nothing that a stock reader would unpickle
REQUIRED = ("json", "png")
MAX_MEMBER_BYTES = {"cls": 6, "json": 64 << 10, "png": 64 << 20}
BLOCK = 512  # tar's unit
END_OF_ARCHIVE = bytes(2 * BLOCK)
_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}")  # no dot: WebDataset cuts a name at its first one
_CLASS = re.compile(rb"0|[1-9][0-9]*")
# The fields of a ustar header (POSIX.1-1988) after the name: mode, uid, gid; and after the checksum.
_OWNER = b"0000644\0" + b"0000000\0" * 2
_TAIL = b"0" + bytes(100) + b"ustar\x0000" + bytes(BLOCK - 265)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known of it: `members` maps png, json and, where labelled, cls to bytes."""

    key: str
    members: Mapping[str, bytes]

    @classmethod
    def of(cls, key: str, png: bytes, label: int | None, info: Mapping[str, Any]) -> "Sample":
        """Put a sample together; `info` says where it comes from and must be JSON."""
        text = json.dumps(info, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        labelled = {} if label is None else {"cls": str(label).encode()}
        return cls(key, {**labelled, "json": text.encode(), "png": png})

    @property
    def png(self) -> bytes:
        """The image, encoded."""
        return self.members["png"]

    @property
    def label(self) -> int | None:
        """The class index, None where the sample carries none."""
        return int(self.members["cls"]) if "cls" in self.members else None

    @property
    def info(self) -> dict[str, Any]:
        """Where the sample comes from. Raises IntegrityError when that is no JSON object."""
        try:
            info = json.loads(self.members["json"])
        except ValueError:
            info = None
        if not isinstance(info, dict):
            raise IntegrityError(f"sample {self.key}: expected a JSON object in {self.key}.json, got other bytes")
        return info


def write_shard(samples: Iterable[Sample]) -> bytes:
    """A tar of the samples in their order. Raises ValueError for a sample that `read_shard` would refuse."""
    parts: list[bytes] = []
    keys: set[str] = set()
    for sample in samples:
        complaint = _complaint(sample, keys)
        if complaint:
            raise ValueError(complaint)
        keys.add(sample.key)
        for extension in EXTENSIONS:
            if extension in sample.members:
                data = sample.members[extension]
                parts += [_header(f"{sample.key}.{extension}", len(data)), data, bytes(-len(data) % BLOCK)]
    return b"".join([*parts, END_OF_ARCHIVE])


def read_shard(data: bytes) -> Iterator[Sample]:
    """The samples of a shard in their order. Raises IntegrityError where a byte is not as written."""
    keys: set[str] = set()
    key, members = "", dict[str, bytes]()
    for name, content in _members(data):
        member_key, _, extension = name.partition(".")
        if members and member_key != key:
            yield _checked(Sample(key, members), keys)
            members = {}
        if extension in members or extension not in EXTENSIONS:
            raise IntegrityError(f"shard: expected each of {', '.join(EXTENSIONS)} once a key, got {name!r}")
        key, members[extension] = member_key, content
    if members:
        yield _checked(Sample(key, members), keys)


def open_shard(store: Store, dataset: Dataset, shard: Shard) -> bytes:
    """A dataset's shard, checked against its record. Raises IntegrityError naming both and what to do."""
    return read_file(store, dataset, shard, f"ingest dataset {dataset.name} again")


def _complaint(sample: Sample, keys: set[str]) -> str | None:
    """Why the sample may not stand in a shard after those of `keys`, None where it may."""
    if not _KEY.fullmatch(sample.key):
        return f"sample: expected a key of 1 to 64 letters, digits, _ or -, got {sample.key!r}"
    if sample.key in keys:
        return f"sample {sample.key}: expected a key once in a shard, got it twice"
    names = sample.members.keys()
    if not names >= set(REQUIRED) or not names <= set(EXTENSIONS):
        return f"sample {sample.key}: expected {', '.join(EXTENSIONS)} (cls where labelled), got {sorted(names)}"
    for extension, content in sample.members.items():
        if len(content) > MAX_MEMBER_BYTES[extension]:
            limit = MAX_MEMBER_BYTES[extension]
            return f"sample {sample.key}: expected {extension} of at most {limit:,} bytes, got {len(content):,}"
    if not _CLASS.fullmatch(sample.members.get("cls", b"0")):
        return f"sample {sample.key}: expected a class index in ASCII, got {sample.members['cls']!r}"
    return None


def _checked(sample: Sample, keys: set[str]) -> Sample:
    complaint = _complaint(sample, keys)
    if complaint:
        raise IntegrityError(f"shard: {complaint}")
    keys.add(sample.key)
    return sample


def _header(name: str, num_bytes: int) -> bytes:
    """The one header that a member of this name and size can have."""
    front = name.encode().ljust(100, b"\0") + _OWNER + b"%011o\0" % num_bytes + b"00000000000\0"
    checksum = sum(front) + sum(_TAIL) + 8 * ord(" ")  # the checksum's own field counts as spaces
    return front + b"%06o\0 " % checksum + _TAIL


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member; a header must be byte for byte the one that `_header` makes."""
    position, end = 0, len(data) - len(END_OF_ARCHIVE)
    while position < end:
        header = data[position : position + BLOCK]
        name, size = header[:100].rstrip(b"\0"), header[124:135]
        known = name.isascii() and size.isdigit() and not size.strip(b"01234567")
        if not known or header != _header(name.decode(), int(size, 8)):
            raise IntegrityError(f"shard: expected a member's header at byte {position:,}, got other bytes")
        start = position + BLOCK
        stop = start + int(size, 8)
        position = stop + -stop % BLOCK
        if position > end or any(data[stop:position]):
            raise IntegrityError(f"shard: expected {name.decode()} to end at byte {stop:,}, got a shard cut short")
        yield name.decode(), data[start:stop]
    if data[max(end, 0) :] != END_OF_ARCHIVE:
        raise IntegrityError("shard: expected the end of the archive, got a shard cut short")
