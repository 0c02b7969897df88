"""Shards to pixels: a shard of either layout into arrays, at the rate of memory or of the image decoders.

The bytes have been checked against their SHA-256 (`shards.open_shard`), so the walk over the archive looks at sizes and
names only; it stays within its bounds whatever they say. Used through `pipeline.shards` and `pipeline.nodecache`.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Dataset, Shard
from pipeline.errors import IntegrityError
from pipeline.npy import view_npy
from pipeline.ustar import walk_archive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IMAGE_EXTENSIONS = ("jpg", "png", "webp")
_IMAGES = {extension.encode(): extension for extension in IMAGE_EXTENSIONS}


@dataclass(frozen=True, slots=True)
class Decoded:
    """The samples of a shard, in its order. Labels are zeros where the dataset carries none."""

    images_NHWC: "NDArray[np.uint8]"
    labels_N: "NDArray[np.int64]"
    keys_N: "NDArray[np.uint64]"


@dataclass(frozen=True, slots=True)
class Room:
    """Arrays to decode a shard into; the images may lie in memory in any order of their axes."""

    images_NCHW: "NDArray[np.uint8]"
    labels_N: "NDArray[np.int64]"
    keys_N: "NDArray[np.uint64]"

    @classmethod
    def of(cls, dataset: Dataset, shard: Shard) -> "Room":
        """New arrays, images in C order."""
        import numpy as np

        images = np.empty((shard.samples, dataset.channels, dataset.height, dataset.width), np.uint8)
        return cls(images, np.empty(shard.samples, np.int64), np.empty(shard.samples, np.uint64))

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.images_NCHW.nbytes + self.labels_N.nbytes + self.keys_N.nbytes


def decode_shard(data: bytes, dataset: Dataset, shard: Shard, threads: int = 1) -> Decoded:
    """The samples of a shard whose bytes `open_shard` gave: uint8 images in the dataset's shape.

    Encoded images are decoded by as many threads (the decoders leave Python's lock). Raises IntegrityError where the
    shard is not what its record or its dataset says.
    """
    import numpy as np

    images_NHWC = np.empty((shard.samples, dataset.height, dataset.width, dataset.channels), np.uint8)
    labels_N, keys_N = np.empty(shard.samples, np.int64), np.empty(shard.samples, np.uint64)
    decode_into(data, dataset, shard, Room(images_NHWC.transpose(0, 3, 1, 2), labels_N, keys_N), threads)
    return Decoded(images_NHWC, labels_N, keys_N)


def decode_into(data: bytes, dataset: Dataset, shard: Shard, room: Room, threads: int = 1) -> None:
    """As `decode_shard`, into arrays that are there: no copy of the shard is made on the way."""
    try:
        if dataset.layout == "block":
            _decode_blocks(data, dataset, room)
        else:
            _decode_samples(data, dataset, room, threads)
        _check_labels(dataset, room)
    except IntegrityError as error:
        raise IntegrityError(f"dataset {dataset.name}, shard {shard.name}: {error}") from None


def _decode_blocks(data: bytes, dataset: Dataset, room: Room) -> None:
    shapes = {
        b"images.npy": ("|u1", (dataset.height, dataset.width, dataset.channels)),
        b"keys.npy": ("<u8", ()),
        b"labels.npy": ("<i8", ()),
    }
    targets: dict[bytes, NDArray[Any]] = {
        b"images.npy": room.images_NCHW.transpose(0, 2, 3, 1),
        b"keys.npy": room.keys_N,
    }
    if dataset.classes:
        targets[b"labels.npy"] = room.labels_N
    else:
        room.labels_N[:] = 0
    filled = dict.fromkeys(targets, 0)
    for name, start, stop in walk_archive(data):
        extension = name.partition(b".")[2]
        if extension in targets:
            array = view_npy(data, start, stop, *shapes[extension])
            begin = filled[extension]
            filled[extension] = end = begin + len(array)
            if end <= len(room.keys_N):
                targets[extension][begin:end] = array
        elif extension != b"json":
            raise IntegrityError(
                f"expected members images.npy, json, keys.npy and labels.npy where labelled, got {name!r}"
            )
    _check_counts(filled.values(), room)


def _decode_samples(data: bytes, dataset: Dataset, room: Room, threads: int) -> None:
    images: list[tuple[str, int, int]] = []  # extension, first byte, end
    keys, labels = list[bytes](), list[bytes]()
    for name, start, stop in walk_archive(data):
        key, _, extension = name.partition(b".")
        if extension in _IMAGES:
            images.append((_IMAGES[extension], start, stop))
            keys.append(key)
        elif extension == b"cls":
            labels.append(data[start:stop])
        elif extension != b"json":
            raise IntegrityError(f"expected members cls, json and one of {', '.join(IMAGE_EXTENSIONS)}, got {name!r}")
    _check_counts([len(images), len(labels)] if dataset.classes else [len(images)], room)
    _numbers(keys, room.keys_N)
    if dataset.classes:
        _numbers(labels, room.labels_N)
    else:
        room.labels_N[:] = 0
    parts = [len(images) * part // threads for part in range(threads + 1)]
    if threads == 1:
        _decode_images(data, images, room.images_NCHW)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [
            pool.submit(_decode_images, data, images[low:high], room.images_NCHW[low:high])
            for low, high in itertools.pairwise(parts)
        ]:
            done.result()


def _decode_images(data: bytes, images: Sequence[tuple[str, int, int]], images_NCHW: "NDArray[np.uint8]") -> None:
    """Decode each image into its place. Raises IntegrityError."""
    from pipeline.decoders import decode_image

    channels, *sides = images_NCHW.shape[1:]
    shape, put = (*sides, channels), _putter(images_NCHW)
    for number, (extension, start, stop) in enumerate(images):
        image = decode_image(data[start:stop], extension)
        if image.shape != shape:
            raise IntegrityError(f"expected images of {shape}, got {image.shape} at byte {start:,}")
        put(number, image)


def _putter(images_NCHW: "NDArray[np.uint8]") -> "Callable[[int, NDArray[np.uint8]], None]":
    """What puts one image (h, w, c) into its place."""
    import cv2

    planes = images_NCHW.flags.c_contiguous and images_NCHW.shape[1] == 3
    images_NHWC = images_NCHW.transpose(0, 2, 3, 1)

    def put(number: int, image: "NDArray[np.uint8]") -> None:
        if planes:  # 8 times as fast as NumPy at 256x256
            cv2.split(image, list(images_NCHW[number]))
        else:
            images_NHWC[number] = image

    return put


def _numbers(texts: Sequence[bytes], out_N: "NDArray[np.int64] | NDArray[np.uint64]") -> None:
    """Decimal numbers into an array. Raises IntegrityError."""
    try:
        if all(map(bytes.isdigit, texts)):
            out_N[:] = list(map(int, texts))
            return
    except (OverflowError, ValueError):  # too large for the array, or for an int
        pass
    wrong = next((text for text in texts if not text.isdigit()), max(texts, key=len))
    raise IntegrityError(f"expected decimal numbers of {out_N.dtype}, got {wrong[:80]!r}")


def _check_counts(counts: Iterable[int], room: Room) -> None:
    """Raises IntegrityError where the images, labels and keys are not as many as recorded."""
    found = sorted(set(counts))
    if found != [len(room.keys_N)]:
        raise IntegrityError(f"expected {len(room.keys_N):,} images, labels and keys, got {found}")


def _check_labels(dataset: Dataset, room: Room) -> None:
    """Raises IntegrityError for a class that there is not."""
    last = max(len(dataset.classes) - 1, 0)
    if len(room.labels_N) and not 0 <= room.labels_N.min() <= room.labels_N.max() <= last:
        raise IntegrityError(
            f"expected class indices of 0 to {last}, got {room.labels_N.min()} to {room.labels_N.max()}"
        )
