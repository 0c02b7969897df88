"""Existing WebDataset shards: tars in a local folder, `s3://bucket/prefix`, or one tar, local, in a bucket or `https://`.

The members of a sample stand next to each other and share the name up to the first dot. Its image is the member that
ends in png, jpg ...; its class the text of `cls`, or the field `label_field` of `json`; where `class_names` are given,
a number among them is an index. Atelier's own shards of layout `block` are read too. All other members are passed over
unread, and so are files that do not end in .tar (an index, a README). Nothing is unpickled; names are names of items,
never paths.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.artifacts import Rejected
from pipeline.errors import SourceError
from pipeline.reading.arrays import read_header
from pipeline.reading.locations import PathSource
from pipeline.reading.members import FILE, FOLDER
from pipeline.reading.places import File, Location, address, printable
from pipeline.reading.tars import TarReader
from pipeline.sources import Item, Piece
from pipeline.sources.folder import EXTENSIONS

MAX_MEMBER_BYTES = {
    "cls": 1 << 10,
    "json": 4 << 20,
    "images.npy": 512 << 20,
    "labels.npy": 64 << 10,
    **dict.fromkeys(EXTENSIONS, 256 << 20),
}
PEEKED_BYTES = 1 << 20  # of the first shard, for the size of a sample


@dataclass
class _Sample:
    """The members of a sample that matter, by extension."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    problem: str | None = None


class Source(PathSource):
    """A folder of .tar shards, or one."""

    what: ClassVar[str] = "tar shards"
    endings: ClassVar[tuple[str, ...]] = (".tar",)

    kind: Literal["webdataset"] = "webdataset"
    label_field: str | None = Field(None, min_length=1)  # of each sample's json; None: the class is in `cls`
    class_names: tuple[str, ...] | None = Field(None, min_length=1)  # by index

    @field_validator("class_names")
    @classmethod
    def _different(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names and (len(set(names)) < len(names) or not all(names)):
            raise ValueError("expected different class names, none of them empty")
        return names

    def classes(self) -> tuple[str, ...] | None:
        return self.class_names

    def pieces(self) -> Iterator[Piece | Rejected]:
        location, sample_bytes, others = self.location(), 0.0, 0
        for file in location.files():
            if isinstance(file, Rejected):
                yield file
            elif not file.name.lower().endswith(".tar"):
                others += 1
            else:
                sample_bytes = sample_bytes or self._sample_bytes(location, file)
                yield Piece(file.name, file.mark, file.bytes, max(1, round(file.bytes / sample_bytes)), file.at)
        if not sample_bytes:
            raise SourceError(f"{self.path}: expected WebDataset shards (.tar), got none among {others} other files")

    def read_piece(self, piece: Piece) -> Iterator[Item | Rejected]:
        location = self.location()
        shard = piece.name[:-4]
        with location.open(address(piece.name, piece.at)) as stream:
            for sample in _samples(TarReader(stream, location.where(piece.name))):
                yield from self._items(f"{shard}/{printable(sample.key)}", sample)

    def _sample_bytes(self, location: Location, file: File) -> float:
        """About how many bytes of a shard an image takes, from the head of one: for progress and partitions only."""
        with location.open(file.address) as stream:
            head = stream.read(PEEKED_BYTES)
        reader, num_samples, end = TarReader(io.BytesIO(head), location.where(file.name)), 0, 0
        keys = set()
        try:
            for member in reader:
                keys.add(member.name.partition(".")[0])
                end = reader.position + member.bytes
                if member.name.endswith(".images.npy"):
                    shape = read_header(reader, member.bytes, reader.where).shape
                    return member.bytes / max(shape[0], 1)
                num_samples = len(keys)
        except SourceError:  # the head is cut, of course; whether the shard is whole is seen when it is read
            pass
        return max(end, 512) / max(num_samples, 1)

    def _items(self, name: str, sample: _Sample) -> Iterator[Item | Rejected]:
        if sample.problem:
            yield Rejected(name=name, reason=sample.problem)
        elif "images.npy" in sample.members:
            yield from self._block(name, sample)
        else:
            yield self._item(name, sample)

    def _item(self, name: str, sample: _Sample) -> Item | Rejected:
        images = [extension for extension in sample.members if extension in EXTENSIONS]
        if len(images) != 1:
            found = f"{len(images)} images ({', '.join(images)})" if images else f"no image ({', '.join(EXTENSIONS)})"
            return Rejected(name=name, reason=f"{found} in the sample")
        try:
            label = self._label(sample)
        except ValueError as error:
            return Rejected(name=name, reason=str(error))
        return Item(name, sample.members[images[0]], label)

    def _label(self, sample: _Sample) -> str | None:
        """The name of the sample's class. Raises ValueError where what stands there is none."""
        if self.label_field is None:
            return self._named(sample.members["cls"].decode().strip()) if "cls" in sample.members else None
        try:
            info = json.loads(sample.members.get("json", b"{}"))
        except (ValueError, RecursionError):
            raise ValueError("its json cannot be read") from None
        value = info.get(self.label_field) if isinstance(info, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"its json holds no text or whole number in {self.label_field!r}")
        return self._named(str(value).strip())

    def _named(self, text: str) -> str:
        if not text or not text.isprintable():
            raise ValueError("its class is empty, or no printable text")
        if self.class_names is None or text in self.class_names:
            return text
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(self.class_names)):
            raise ValueError(f"its class {text[:40]!r} is none of the {len(self.class_names)} class_names")
        return self.class_names[int(text)]

    def _block(self, name: str, sample: _Sample) -> Iterator[Item | Rejected]:
        """The images of a record of layout `block`."""
        images = _array(sample.members, "images.npy", name)
        labels = _array(sample.members, "labels.npy", name) if "labels.npy" in sample.members else None
        names = _names(sample.members.get("json", b"{}"), len(images))
        fits = images.dtype.name == "uint8" and images.ndim == 4 and images.shape[3] in (1, 3)
        if not fits or (labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1])):
            raise SourceError(
                f"{name}: expected images.npy of uint8 (n, height, width, 1 or 3) and labels.npy of n whole numbers, "
                f"got {images.dtype} {images.shape} and {None if labels is None else labels.shape}"
            )
        for number, image in enumerate(images):
            try:
                label = None if labels is None else self._named(str(labels[number]))
            except ValueError as error:
                yield Rejected(name=f"{name}/{number:04d}", reason=str(error))
            else:
                yield Item(names[number] if names else f"{name}/{number:04d}", image, label)


def _array(members: dict[str, bytes], extension: str, name: str) -> Any:
    data = members[extension]
    stream = io.BytesIO(data)
    header = read_header(stream, len(data), f"{name}.{extension}")
    return header.array(data[header.head_bytes :])


def _names(data: bytes, num_images: int) -> list[str]:
    """The names of a block's images, as its json has them; empty where it has none."""
    try:
        names = json.loads(data).get("names")
    except (ValueError, AttributeError, RecursionError):
        return []
    fits = isinstance(names, list) and len(names) == num_images and all(isinstance(name, str) for name in names)
    return [printable(name) for name in names] if fits else []


def _samples(reader: TarReader) -> Iterator[_Sample]:
    """The samples of a shard, one in memory at a time. Raises SourceError where the shard is damaged."""
    sample: _Sample | None = None
    for member in reader:
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if member.kind == FOLDER or not stem:  # a hidden file is no member of a sample
            continue
        if member.kind != FILE:
            raise SourceError(f"{reader.where}: expected files in a shard, got {member.name!r}, which is {member.kind}")
        key, extension = f"{folder}{slash}{stem}", extension.lower()
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if extension not in MAX_MEMBER_BYTES:  # `0001.left.jpg` is an image of its own kind: by its last part
            extension = extension.rpartition(".")[2] if extension.rpartition(".")[2] in EXTENSIONS else ""
        if not extension:
            continue
        if extension in sample.members:
            sample.problem = f"two members {extension} in the sample"
        elif member.bytes > MAX_MEMBER_BYTES[extension]:
            sample.problem = f"its {extension} is larger than {MAX_MEMBER_BYTES[extension]:,} bytes: {member.bytes:,}"
        else:
            sample.members[extension] = reader.read(member.bytes)
    if sample is not None:
        yield sample
