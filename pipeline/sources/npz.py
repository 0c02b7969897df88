"""Numpy archives (`.npz`): one file, local, in a bucket or `https://`, or a folder of them.

An archive holds images (N, height, width) or (N, height, width, 1 or 3), as uint8 or as floats from 0 to 1, and labels
(N,) or (N, 1), whole numbers or text. They are found by the names that are in use (PAIRS), all pairs that are there; or
by `images_key` and `labels_key`. A piece is a range of images; arrays are read in blocks and never unpickled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.artifacts import Rejected
from pipeline.errors import SourceError
from pipeline.reading.arrays import ArrayHeader, read_header
from pipeline.reading.locations import PathSource
from pipeline.reading.members import Member
from pipeline.reading.places import File, Location, address
from pipeline.reading.zips import ZipReader, ZipStream
from pipeline.sources import Item, Piece

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PAIRS = {
    "images": "labels",
    "x_train": "y_train",
    "x_test": "y_test",
    "train_images": "train_labels",
    "val_images": "val_labels",
    "test_images": "test_labels",
    "arr_0": "arr_1",
}
PIECE_IMAGES = 8192
MAX_PIECES = 16  # of an array
BLOCK_BYTES = 4 << 20
MAX_ARRAYS = 1000
MAX_LABEL_BYTES = 1 << 10  # of one
MAX_EXPANSION = 200  # real images pack 2 to 20 times; a bomb reaches 1,000
FREE_EXPANSION_BYTES = 1 << 20


@dataclass(frozen=True)
class _Array:
    """One array of an archive."""

    key: str
    member: Member
    header: ArrayHeader


class Source(PathSource):
    """Arrays of images and labels; `images_key` without `labels_key`: the images carry no labels."""

    what: ClassVar[str] = ".npz files"
    endings: ClassVar[tuple[str, ...]] = (".npz",)

    kind: Literal["npz"] = "npz"
    images_key: str | None = Field(None, pattern=r"^[^/]+$")
    labels_key: str | None = Field(None, pattern=r"^[^/]+$")

    @field_validator("labels_key")
    @classmethod
    def _goes_with_images(cls, labels_key: str | None, info: ValidationInfo) -> str | None:
        if labels_key and not info.data.get("images_key"):
            raise ValueError("expected images_key beside labels_key")
        return labels_key

    def pieces(self) -> Iterator[Piece | Rejected]:
        location, num_files = self.location(), 0
        for file in location.files():
            if isinstance(file, Rejected):
                yield file
            elif file.name.lower().endswith(".npz"):
                num_files += 1
                yield from self._pieces(location, file)
        if not num_files:
            raise SourceError(f"{self.path}: expected .npz files, found none")

    def _pieces(self, location: Location, file: File) -> Iterator[Piece]:
        with _opened(location, file.name, file.address) as zipped:
            for images, _ in self._pairs(zipped):
                num_images = images.header.shape[0]
                step = max(PIECE_IMAGES, -(-num_images // MAX_PIECES))
                for start in range(0, num_images, step):
                    num = min(step, num_images - start)
                    name = f"{file.name}/{images.key}/{start:06d}-{start + num - 1:06d}"
                    yield Piece(name, file.mark, num * images.header.each_bytes, num, file.at)

    def read_piece(self, piece: Piece) -> Iterator[Item | Rejected]:
        location = self.location()
        name, key, span = piece.name.rsplit("/", 2)
        start, last = (int(number) for number in span.split("-"))
        with _opened(location, name, address(name, piece.at)) as zipped:
            pairs = {images.key: (images, labels) for images, labels in self._pairs(zipped)}
            if key not in pairs or last >= pairs[key][0].header.shape[0]:
                raise SourceError(f"{zipped.where}: expected images {span} of {key}, found other arrays; run again")
            images, labels = pairs[key]
            texts = _texts(zipped, labels, start, last + 1) if labels else None
            number = start
            for block in _blocks(zipped, images, start, last + 1):
                for image in _pixels(block, f"{zipped.where}: {key}"):
                    yield Item(f"{name}/{key}/{number:06d}", image, texts[number - start] if texts else None)
                    number += 1

    def _pairs(self, zipped: ZipReader) -> list[tuple[_Array, _Array | None]]:
        """Images with their labels. Raises SourceError where there are none, or they do not fit each other."""
        if zipped.num_members > MAX_ARRAYS:
            raise SourceError(f"{zipped.where}: expected at most {MAX_ARRAYS} arrays, got {zipped.num_members:,}")
        members = {member.name.removesuffix(".npy"): member for member in zipped}
        wanted = {self.images_key: self.labels_key} if self.images_key else PAIRS
        missing = [k for pair in wanted.items() for k in pair if self.images_key and k and k not in members]
        found = [(images, labels) for images, labels in wanted.items() if images in members]
        if missing or not found:
            raise SourceError(
                f"{zipped.where}: expected the array {missing[0] if missing else ' or '.join(PAIRS)}, found "
                f"{', '.join(members)[:200]}; set source.images_key and source.labels_key"
            )
        return [
            _checked_pair(
                zipped,
                _array(zipped, str(images), members[str(images)]),
                _array(zipped, labels, members[labels]) if labels in members else None,
            )
            for images, labels in found
        ]


@contextmanager
def _opened(location: Location, name: str, at: str) -> Iterator[ZipReader]:
    """An archive, read from a file that is closed at the end."""
    with location.open(at) as file:
        yield ZipReader(file, _size(file), location.where(name))


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _array(zipped: ZipReader, key: str, member: Member) -> _Array:
    where = f"{zipped.where}: {key}"
    if member.bytes > MAX_EXPANSION * member.packed_bytes + FREE_EXPANSION_BYTES:
        raise SourceError(
            f"{where}: expected to unpack to at most {MAX_EXPANSION} times its {member.packed_bytes:,} bytes, "
            f"got {member.bytes:,}: a decompression bomb?"
        )
    return _Array(key, member, read_header(zipped.open(member), member.bytes, where))


def _checked_pair(zipped: ZipReader, images: _Array, labels: _Array | None) -> tuple[_Array, _Array | None]:
    shape, dtype = images.header.shape, images.header.dtype
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if not fits or not (dtype.name == "uint8" or dtype.kind == "f"):
        raise SourceError(
            f"{zipped.where}: {images.key}: expected images (N, height, width) or (N, height, width, 1 or 3) as uint8 "
            f"or as floats from 0 to 1, got {dtype} {shape}; convert it, or set source.images_key"
        )
    if labels is not None:
        own, kind = labels.header.shape, labels.header.dtype.kind
        if own not in ((shape[0],), (shape[0], 1)) or kind not in "iuUS" or labels.header.each_bytes > MAX_LABEL_BYTES:
            raise SourceError(
                f"{zipped.where}: {labels.key}: expected {shape[0]:,} labels, whole numbers or text, got "
                f"{labels.header.dtype} {own}; convert it, or set source.images_key alone where there are no labels"
            )
    return images, labels


def _blocks(zipped: ZipReader, array: _Array, start: int, stop: int) -> "Iterator[NDArray[Any]]":
    """Entries [start, stop), megabytes at a time. Who reads the last ones reads the whole, and checks the CRC-32."""
    header = array.header
    stream: ZipStream = zipped.open(array.member)
    stream.skip(header.head_bytes + start * header.each_bytes, check=stop == header.shape[0])
    step = max(1, BLOCK_BYTES // header.each_bytes)
    for at in range(start, stop, step):
        yield header.array(stream.read(min(step, stop - at) * header.each_bytes))


def _texts(zipped: ZipReader, labels: _Array, start: int, stop: int) -> list[str]:
    values = [value for block in _blocks(zipped, labels, start, stop) for value in block.reshape(-1).tolist()]
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    except UnicodeDecodeError:
        raise SourceError(f"{zipped.where}: {labels.key}: expected labels in UTF-8, got other bytes") from None


def _pixels(block: "NDArray[Any]", where: str) -> "NDArray[np.uint8]":
    """Images (n, height, width, channels) uint8."""
    import numpy as np

    images = block if block.ndim == 4 else block[..., None]
    if images.dtype == np.uint8:
        return images
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # nan is neither
        raise SourceError(f"{where}: expected floats from 0 to 1, got {low:g} to {high:g}; divide, or convert to uint8")
    return np.round(images * 255).astype(np.uint8)
