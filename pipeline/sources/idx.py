"""MNIST's IDX format: four files in one folder, each gzipped or not (http://yann.lecun.com/exdb/mnist/).

A file is a big-endian header (two zero bytes, the type 8 for uint8, the number of dimensions, then each dimension as
4 bytes) and the values. Both parts, train and t10k, become items: Atelier makes its own split. A piece is a range of
one part, so that several workers read a large one (a gzipped file is unpacked up to its range by each of them).
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal, cast

from pipeline.artifacts import Rejected
from pipeline.errors import SourceError
from pipeline.reading.locations import PathSource
from pipeline.reading.places import File, Location
from pipeline.sources import Item, Piece

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = {"train": "train", "test": "t10k"}  # the first word of an item's name, and of the files' names
UINT8 = 8
PIECE_IMAGES = 8192
MAX_PIECES = 16  # of a part
BLOCK_BYTES = 4 << 20
MAX_FILE_BYTES = 8 << 30  # unpacked
MAX_EXPANSION = 200  # real images pack 2 to 20 times; a gzip bomb reaches 1,000
FREE_EXPANSION_BYTES = 1 << 20  # small files may pack better: sorted labels, say


class Source(PathSource):
    """A folder with train-images, train-labels, t10k-images and t10k-labels; labels only where `labelled`."""

    what: ClassVar[str] = "IDX files"

    kind: Literal["idx"] = "idx"
    labelled: bool = True

    def pieces(self) -> Iterator[Piece | Rejected]:
        location = self.location()
        for part in PARTS:
            images, labels = _Values.images(location, part), self._labels(location, part)
            mark = f"{images.file.mark} {labels.file.mark}" if labels else images.file.mark
            num_images, height, width = images.shape
            step = max(PIECE_IMAGES, -(-num_images // MAX_PIECES))
            for start in range(0, num_images, step):
                stop = min(start + step, num_images)
                yield Piece(f"{part}/{start:06d}-{stop - 1:06d}", mark, (stop - start) * height * width, stop - start)

    def read_piece(self, piece: Piece) -> Iterator[Item | Rejected]:
        location = self.location()
        part, _, span = piece.name.partition("/")
        start, last = (int(number) for number in span.split("-"))
        images, labels = _Values.images(location, part), self._labels(location, part)
        values = b"".join(labels.blocks(start, last + 1)) if labels else b""
        number = start
        for block in images.blocks(start, last + 1):
            for image in images.arrays(block):
                yield Item(f"{part}/{number:06d}", image, str(values[number - start]) if labels else None)
                number += 1

    def _labels(self, location: Location, part: str) -> "_Values | None":
        if not self.labelled:
            return None
        labels, num_images = _Values.labels(location, part), _Values.images(location, part).shape[0]
        if labels.shape[0] != num_images:
            raise SourceError(
                f"{labels.where}: expected a label for each of the {num_images} images, got {labels.shape[0]}"
            )
        return labels


class _Values:
    """One IDX file: the first dimension counts images or labels."""

    def __init__(self, location: Location, name: str, num_dimensions: int) -> None:
        self.location = location
        self.file = _find(location, name)
        self.where = location.where(self.file.name)
        with location.open(self.file.address) as stream:
            self.packed = stream.read(2) == b"\x1f\x8b"
        with self._opened() as stream:
            head = self._exactly(stream, 4 + 4 * num_dimensions)
        expected = bytes([0, 0, UINT8, num_dimensions])
        if head[:4] != expected:
            what = {1: "labels", 3: "images"}[num_dimensions]
            raise SourceError(f"{self.where}: expected IDX {what} (magic {expected.hex()}), got magic {head[:4].hex()}")
        self.shape: tuple[int, ...] = struct.unpack(f">{num_dimensions}I", head[4:])
        self.head_bytes, self.each_bytes = len(head), math.prod(self.shape[1:])
        self._check_size()

    @classmethod
    def images(cls, location: Location, part: str) -> "_Values":
        return cls(location, f"{PARTS[part]}-images-idx3-ubyte", 3)

    @classmethod
    def labels(cls, location: Location, part: str) -> "_Values":
        return cls(location, f"{PARTS[part]}-labels-idx1-ubyte", 1)

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """The values of entries [start, stop), megabytes at a time; with the last one the file's end is checked."""
        step = max(1, BLOCK_BYTES // self.each_bytes)
        with self._opened() as stream:
            self._skip(stream, self.head_bytes + start * self.each_bytes)
            for at in range(start, stop, step):
                yield self._exactly(stream, min(step, stop - at) * self.each_bytes)
            if stop == self.shape[0] and stream.read(1):
                raise SourceError(
                    f"{self.where}: expected the end after {stop:,} entries, got more bytes; fetch it again"
                )

    def arrays(self, block: bytes) -> "Iterator[NDArray[np.uint8]]":
        """The images (height, width, 1) of a block."""
        import numpy as np

        return iter(np.frombuffer(block, np.uint8).reshape(-1, *self.shape[1:], 1))

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file unpacked. What a broken gzip raises becomes a SourceError."""
        try:
            with (
                self.location.open(self.file.address) as raw,
                closing(gzip.open(raw) if self.packed else raw) as stream,
            ):
                yield cast(BinaryIO, stream)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self.where}: expected a whole IDX file, got {error}; fetch it again") from None

    def _skip(self, stream: BinaryIO, num_bytes: int) -> None:
        if not self.packed:
            stream.seek(num_bytes)
            return
        while num_bytes:  # a gzip must be unpacked up to there
            num_bytes -= len(self._exactly(stream, min(num_bytes, BLOCK_BYTES)))

    def _exactly(self, stream: BinaryIO, num_bytes: int) -> bytes:
        data = stream.read(num_bytes)
        if len(data) != num_bytes:
            raise SourceError(f"{self.where}: expected {num_bytes - len(data)} more bytes, got the end; fetch it again")
        return data

    def _check_size(self) -> None:
        """Refuse a header that cannot be true."""
        num_bytes, file_bytes = self.head_bytes + math.prod(self.shape), self.file.bytes
        stated = " x ".join(map(str, self.shape))
        if not math.prod(self.shape):
            raise SourceError(f"{self.where}: expected images, got a header that states {stated}")
        if num_bytes > MAX_FILE_BYTES:
            raise SourceError(
                f"{self.where}: expected at most {MAX_FILE_BYTES:,} bytes, got a header that states {stated}"
            )
        if self.packed and num_bytes > MAX_EXPANSION * file_bytes + FREE_EXPANSION_BYTES:
            raise SourceError(
                f"{self.where}: expected gzip to save at most a factor of {MAX_EXPANSION}, got {file_bytes:,} bytes "
                f"that state {num_bytes:,}: a decompression bomb?"
            )
        if not self.packed and num_bytes != file_bytes:
            raise SourceError(
                f"{self.where}: expected {num_bytes:,} bytes for {stated}, got {file_bytes:,}; fetch it again"
            )


def _find(location: Location, name: str) -> File:
    """The file under one of the names that are in use. Raises SourceError listing them."""
    names = [variant + suffix for variant in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for candidate in names:
        if found := location.find(candidate):
            return found
    hint = "; set source.labelled to false where there are no labels" if "labels" in name else ""
    raise SourceError(f"{location.path}: expected one of {', '.join(names)}, found none{hint}")
