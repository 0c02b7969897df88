"""WebDataset tar shards in two layouts, byte for byte the same each time.

    sample   KEY.cls   class index in ASCII, absent when unlabelled      block   KEY.images.npy  uint8 (n, h, w, c)
             KEY.json  where the image comes from                                KEY.json        keys, names, sha256
             KEY.png   the image, or KEY.jpg or KEY.webp                         KEY.keys.npy    uint64 (n,)
                                                                                 KEY.labels.npy  int64 (n,), or absent

A record's members stand next to each other in that order, in a plain ustar archive (`pipeline.ustar`). A block is
named by the key of its first sample; its arrays are npy 1.0 in C order, and nothing is pickled. Ingest writes datasets
as such shards, and sampling writes generated images in layout `sample`.

The readers take what the writers write and refuse everything else. A flipped bit in a picture shows only in the
SHA-256 that `open_shard` checks.

    data = open_shard(store, dataset, shard)        # one GET; length and SHA-256 checked
    decoded = decode_shard(data, dataset, shard)    # images (n, h, w, c), labels, keys
"""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Dataset, Shard
from pipeline.decoding import IMAGE_EXTENSIONS, Decoded, decode_shard
from pipeline.errors import IntegrityError
from pipeline.npy import to_npy
from pipeline.records import read_file
from pipeline.store import Store
from pipeline.ustar import read_archive, write_archive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]
    Labels = NDArray[np.int64]
    Keys = NDArray[np.uint64]

__all__ = [
    "IMAGE_EXTENSIONS",
    "Block",
    "Decoded",
    "Sample",
    "decode_shard",
    "open_shard",
    "read_shard",
    "write_blocks",
    "write_shard",
]

EXTENSIONS = ("cls", "json", *IMAGE_EXTENSIONS)  # nothing that a stock reader would unpickle
MAX_MEMBER_BYTES = {"cls": 6, "json": 64 << 10, **dict.fromkeys(IMAGE_EXTENSIONS, 64 << 20)}
KEY_DIGITS = 20  # of a key in a dataset: 64 bits in decimal
RETRY_WAITS_SECONDS = (0.2, 1.0)  # before a shard that is missing or not as recorded is fetched again
_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}")  # no dot: WebDataset cuts a name at its first one
_CLASS = re.compile(rb"0|[1-9][0-9]*")
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known of it: `members` maps its extension, json and, where labelled, cls to bytes."""

    key: str
    members: Mapping[str, bytes]

    @classmethod
    def of(cls, key: str, image: bytes, label: int | None, info: Mapping[str, Any], extension: str = "png") -> "Sample":
        """Put a sample together; `info` says where it comes from and must be JSON."""
        labelled = {} if label is None else {"cls": b"%d" % label}
        return cls(key, {**labelled, "json": _encode(info).encode(), extension: image})

    @property
    def extension(self) -> str:
        """How the image is encoded: png, jpg or webp."""
        return next(extension for extension in IMAGE_EXTENSIONS if extension in self.members)

    @property
    def image(self) -> bytes:
        """The image, encoded."""
        return self.members[self.extension]

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


@dataclass(frozen=True, slots=True)
class Block:
    """Several samples in one record. `names` and `sha256` are those of the source files, one a sample."""

    images_NHWC: "Images"
    keys_N: "Keys"
    labels_N: "Labels | None"  # None: unlabelled
    names: Sequence[str]
    sha256: Sequence[str]


def write_shard(samples: Iterable[Sample]) -> bytes:
    """A tar of the samples in their order. Raises ValueError for a sample that `read_shard` would refuse."""
    names, contents, keys = list[str](), list[bytes](), set[str]()
    for sample in samples:
        complaint = _complaint(sample, keys)
        if complaint:
            raise ValueError(complaint)
        key, members = sample.key, sample.members
        keys.add(key)
        for extension in EXTENSIONS:
            if extension in members:
                names.append(f"{key}.{extension}")
                contents.append(members[extension])
    return write_archive(names, contents)


def read_shard(data: bytes) -> Iterator[Sample]:
    """The samples of a shard in layout `sample`, in order. Raises IntegrityError where a byte is not as written."""
    keys: set[str] = set()
    key, members = "", dict[str, bytes]()
    for name, start, stop in read_archive(data):
        member_key, _, extension = name.partition(".")
        if members and member_key != key:
            yield _checked(Sample(key, members), keys)
            members = {}
        if extension in members or extension not in EXTENSIONS:
            raise IntegrityError(f"shard: expected each of {', '.join(EXTENSIONS)} once a key, got {name!r}")
        key, members[extension] = member_key, data[start:stop]
    if members:
        yield _checked(Sample(key, members), keys)


def write_blocks(blocks: Iterable[Block]) -> bytes:
    """A tar of the blocks in their order. Raises ValueError where a block's parts are not of one length."""
    names, contents = list[str](), list[bytes]()
    for block in blocks:
        for name, content in _block_members(block).items():
            names.append(name)
            contents.append(content)
    return write_archive(names, contents)


def open_shard(store: Store, dataset: Dataset, shard: Shard) -> bytes:
    """A dataset's shard, checked against its record; what is not as recorded is fetched again, twice.

    Raises IntegrityError naming the shard, what was expected and got, and the command that mends it.
    """
    remedy = f"run `atelier repair {store.uri}/{dataset.ref}`, which makes it again from the source"
    for wait_seconds in RETRY_WAITS_SECONDS:
        try:
            return read_file(store, dataset, shard, remedy)
        except IntegrityError:  # damaged on its way, perhaps, or about to be put back
            time.sleep(wait_seconds)
    return read_file(store, dataset, shard, remedy)


def _complaint(sample: Sample, keys: set[str]) -> str | None:
    """Why the sample may not stand in a shard after those of `keys`, None where it may."""
    key, members = sample.key, sample.members
    if not _KEY.fullmatch(key):
        return f"sample: expected a key of 1 to 64 letters, digits, _ or -, got {key!r}"
    if key in keys:
        return f"sample {key}: expected a key once in a shard, got it twice"
    known = [extension for extension in EXTENSIONS if extension in members]
    images = len(known) - ("cls" in members) - 1
    if len(known) != len(members) or "json" not in members or images != 1:
        expected = f"json, one of {', '.join(IMAGE_EXTENSIONS)}, and cls where labelled"
        return f"sample {key}: expected {expected}, got {sorted(members)}"
    for extension, content in members.items():
        if len(content) > MAX_MEMBER_BYTES[extension]:
            limit = MAX_MEMBER_BYTES[extension]
            return f"sample {key}: expected {extension} of at most {limit:,} bytes, got {len(content):,}"
    if not _CLASS.fullmatch(members.get("cls", b"0")):
        return f"sample {key}: expected a class index in ASCII, got {members['cls']!r}"
    return None


def _checked(sample: Sample, keys: set[str]) -> Sample:
    complaint = _complaint(sample, keys)
    if complaint:
        raise IntegrityError(f"shard: {complaint}")
    keys.add(sample.key)
    return sample


def _block_members(block: Block) -> dict[str, bytes]:
    """Name and content of a block's members, in their order. Raises ValueError."""
    num = len(block.images_NHWC)
    lengths = [len(part) for part in (block.keys_N, block.names, block.sha256)]
    lengths += [] if block.labels_N is None else [len(block.labels_N)]
    if not num or set(lengths) != {num} or block.images_NHWC.ndim != 4:
        got = f"images {block.images_NHWC.shape} with {', '.join(map(str, lengths))}"
        raise ValueError(f"block: expected images (n, h, w, c) and as many keys, names, SHA-256 and labels, got {got}")
    texts = [f"{key:0{KEY_DIGITS}d}" for key in block.keys_N.tolist()]
    listed = {"keys": texts, "names": list(block.names), "sha256": list(block.sha256)}
    members = {
        "images.npy": to_npy(block.images_NHWC, "|u1"),
        "json": _encode(listed).encode(),
        "keys.npy": to_npy(block.keys_N, "<u8"),
    }
    if block.labels_N is not None:
        members["labels.npy"] = to_npy(block.labels_N, "<i8")
    return {f"{texts[0]}.{extension}": content for extension, content in members.items()}
