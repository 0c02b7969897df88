"""MNIST's IDX format: four files in one folder, each gzipped or not (http://yann.lecun.com/exdb/mnist/).

A file is a big-endian header (two zero bytes, the type 8 for uint8, the number of dimensions, then each
dimension as 4 bytes) and the values. Both parts, train and t10k, become items: Atelier makes its own split.
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast

from pydantic import Field

from pipeline.errors import SourceError
from pipeline.sources import Item, SourceBase

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = {"train": "train", "test": "t10k"}  # the first word of an item's name, and of the files' names
UINT8 = 8
BLOCK_BYTES = 4 << 20
MAX_FILE_BYTES = 8 << 30  # unpacked
MAX_EXPANSION = 200  # real images pack 2 to 20 times; a gzip bomb reaches 1,000
FREE_EXPANSION_BYTES = 1 << 20  # small files may pack better: sorted labels, say


class Source(SourceBase):
    """A folder with train-images, train-labels, t10k-images and t10k-labels; labels only where `labelled`."""

    kind: Literal["idx"] = "idx"
    path: str = Field(min_length=1)
    labelled: bool = True

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in PARTS:
            files = [(self._images(part), 3), *([(self._labels(part), 1)] if self.labelled else [])]
            for file, num_dimensions in files:
                digest.update(repr(_shape(file, num_dimensions)).encode())
                for block in _blocks(file, num_dimensions):
                    digest.update(block.tobytes())
        return digest.hexdigest()

    def classes(self) -> tuple[str, ...]:
        return tuple(str(value) for value in self._label_values())

    def items(self) -> Iterator[Item]:
        index_of = {value: index for index, value in enumerate(self._label_values())}
        for part in PARTS:
            labels = self._read_labels(part)
            images = (image for block in _blocks(self._images(part), 3) for image in block)
            for number, image in enumerate(images):
                label = index_of[labels[number]] if self.labelled else None
                yield Item(name=f"{part}/{number:06d}", data=image[..., None], label=label)

    def num_items(self) -> int:
        return sum(_shape(self._images(part), 3)[0] for part in PARTS)

    def _images(self, part: str) -> Path:
        return _find(Path(self.path).expanduser(), f"{PARTS[part]}-images-idx3-ubyte")

    def _labels(self, part: str) -> Path:
        return _find(Path(self.path).expanduser(), f"{PARTS[part]}-labels-idx1-ubyte")

    def _label_values(self) -> list[int]:
        """The values that occur, sorted: EMNIST's letters start at 1, and a class needs an image."""
        return sorted(set(chain.from_iterable(self._read_labels(part) for part in PARTS)))

    def _read_labels(self, part: str) -> bytes:
        """One byte a label; empty where the source is not labelled."""
        if not self.labelled:
            return b""
        file = self._labels(part)
        num_labels, num_images = _shape(file, 1)[0], _shape(self._images(part), 3)[0]
        if num_labels != num_images:
            raise SourceError(f"{file}: expected a label for each of the {num_images} images, got {num_labels}")
        return b"".join(block.tobytes() for block in _blocks(file, 1))


def _find(folder: Path, name: str) -> Path:
    """The file under one of the names that are in use. Raises SourceError listing them."""
    names = [variant + suffix for variant in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    if not folder.is_dir():
        raise SourceError(f"expected a folder of IDX files, found none at {folder} (seen from {Path.cwd()})")
    for candidate in names:
        if (folder / candidate).is_file():
            return folder / candidate
    hint = "; set source.labelled to false where there are no labels" if "labels" in name else ""
    raise SourceError(f"{folder}: expected one of {', '.join(names)}, found none{hint}")


def _open(file: Path) -> IO[bytes]:
    with file.open("rb") as head:
        packed = head.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(file)) if packed else file.open("rb")


def _read(stream: IO[bytes], num_bytes: int, file: Path) -> bytes:
    """Exactly so many bytes. Raises SourceError where the file is cut short or is no sound gzip."""
    try:
        data = stream.read(num_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}: expected a whole IDX file, got {error}; fetch it again") from None
    if len(data) != num_bytes:
        raise SourceError(f"{file}: expected {num_bytes - len(data)} more bytes, got the end; fetch it again")
    return data


def _shape(file: Path, num_dimensions: int) -> tuple[int, ...]:
    """The dimensions that the header states. Raises SourceError where they cannot be true."""
    try:
        with closing(_open(file)) as stream:
            head = _read(stream, 4 + 4 * num_dimensions, file)
    except OSError as error:
        raise SourceError(f"{file}: expected a file to read, got {error.strerror}") from None
    expected = bytes([0, 0, UINT8, num_dimensions])
    if head[:4] != expected:
        what = {1: "labels", 3: "images"}[num_dimensions]
        raise SourceError(f"{file}: expected IDX {what} (magic {expected.hex()}), got magic {head[:4].hex()}")
    shape = struct.unpack(f">{num_dimensions}I", head[4:])
    _check_size(file, len(head), shape)
    return shape


def _check_size(file: Path, head_bytes: int, shape: tuple[int, ...]) -> None:
    num_bytes, file_bytes = head_bytes + math.prod(shape), file.stat().st_size
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    stated = " x ".join(map(str, shape))
    if not math.prod(shape):
        raise SourceError(f"{file}: expected images, got a header that states {stated}")
    if num_bytes > MAX_FILE_BYTES:
        raise SourceError(f"{file}: expected at most {MAX_FILE_BYTES:,} bytes, got a header that states {stated}")
    if packed and num_bytes > MAX_EXPANSION * file_bytes + FREE_EXPANSION_BYTES:
        raise SourceError(
            f"{file}: expected gzip to save at most a factor of {MAX_EXPANSION}, got {file_bytes:,} bytes "
            f"that state {num_bytes:,}: a decompression bomb?"
        )
    if not packed and num_bytes != file_bytes:
        raise SourceError(f"{file}: expected {num_bytes:,} bytes for {stated}, got {file_bytes:,}; fetch it again")


def _blocks(file: Path, num_dimensions: int) -> Iterator["NDArray[np.uint8]"]:
    """The values, megabytes at a time: (n, *dimensions). Raises SourceError where they end early or go on."""
    import numpy as np

    count, *rest = _shape(file, num_dimensions)
    each_bytes = math.prod(rest)
    step = max(1, BLOCK_BYTES // each_bytes)
    with closing(_open(file)) as stream:
        _read(stream, 4 + 4 * num_dimensions, file)
        for start in range(0, count, step):
            num = min(step, count - start)
            yield np.frombuffer(_read(stream, num * each_bytes, file), np.uint8).reshape(num, *rest)
        try:
            trailing = stream.read(1)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{file}: expected a whole IDX file, got {error}; fetch it again") from None
        if trailing:
            raise SourceError(f"{file}: expected the end after {count:,} entries, got more bytes; fetch it again")
