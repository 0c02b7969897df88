"""What bounds each figure from above, measured bare: no checks, no names, no order."""

import hashlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.shards import read_shard
from tests.bench.measure import Timed
from tests.bench.prepared import Stored


def gathered(images_NCHW: Tensor, labels_N: Tensor, batch_size: int) -> Timed:
    """The peer of every stream: a TensorDataset in memory, indexed by a batch of a random permutation; floats."""
    stored = torch.utils.data.TensorDataset(images_NCHW, labels_N)

    def run() -> Generator[int]:
        for indices_B in torch.split(torch.randperm(len(stored)), batch_size):
            images_BCHW, _ = stored[indices_B]  # a tensor of indices gives a batch
            yield len(images_BCHW.to(torch.float32).div_(255))

    return Timed(run)


def selected(images_NCHW: Tensor, labels_N: Tensor, batch_size: int) -> Timed:
    """Memory's own rate: the fastest gather that torch has, and floats."""

    def run() -> Generator[int]:
        for indices_B in torch.split(torch.randperm(len(images_NCHW)), batch_size):
            labels_N.index_select(0, indices_B)
            yield len(images_NCHW.index_select(0, indices_B).to(torch.float32).div_(255))

    return Timed(run)


def tensor_dataset(images_NCHW: Tensor, labels_N: Tensor, batch_size: int) -> Timed:
    """The same through torch's own DataLoader over a TensorDataset, which indexes image by image."""
    stored = torch.utils.data.TensorDataset(images_NCHW, labels_N)

    def run() -> Generator[int]:
        for images_BCHW, _ in torch.utils.data.DataLoader(stored, batch_size, shuffle=True, drop_last=True):
            yield len(images_BCHW.to(torch.float32).div_(255))

    return Timed(run)


def encoded_images(stored: Stored, most: int) -> list[bytes]:
    """The encoded images of a dataset's training shards, in memory."""
    found: list[bytes] = []
    for shard in stored.dataset.shards:
        if shard.split == "train" and len(found) < most:
            data = stored.stores["disk"].get(stored.dataset.key_of(shard))
            found += [sample.image for sample in read_shard(data)]
    return found[:most]


def jpeg_decoder(encoded: Sequence[bytes]) -> Timed:
    """simplejpeg's bare rate (libjpeg-turbo)."""

    def run() -> Generator[int]:
        for data in encoded:
            simplejpeg.decode_jpeg(data)
            yield 1

    return Timed(run)


def png_decoder(encoded: Sequence[bytes]) -> Timed:
    """cv2's bare rate (libpng)."""

    def run() -> Generator[int]:
        for data in encoded:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            yield 1

    return Timed(run)


def png_files(paths: Sequence[Path]) -> Timed:
    """Read and decode each file, and no more."""

    def run() -> Generator[int]:
        for path in paths:
            with open(path, "rb") as file:  # noqa: PTH123 - the fastest way is what is measured
                cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
            yield 1

    return Timed(run)


def png_encoder(images: NDArray[np.uint8]) -> Timed:
    """cv2's bare rate of writing PNG."""

    def run() -> Generator[int]:
        for image in images:
            cv2.imencode(".png", image)
            yield 1

    return Timed(run)


def flushed_file(path: Path, data: bytes, samples: int) -> Timed:
    """The same bytes written to a file and flushed to the disk."""

    def run() -> Generator[int]:
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield samples

    return Timed(run)


def hashed(stored: Stored) -> Timed:
    """SHA-256 of the training shards, in memory."""
    shards = [shard for shard in stored.dataset.shards if shard.split == "train"]
    contents = [(stored.stores["disk"].get(stored.dataset.key_of(shard)), shard.samples) for shard in shards]

    def run() -> Generator[int]:
        for data, samples in contents:
            hashlib.sha256(data).digest()
            yield samples

    return Timed(run)


def bare_gets(stored: Stored, place: str) -> Timed:
    """One GET a shard, one after the other, and the bytes thrown away."""
    store = stored.stores[place]
    shards = [shard for shard in stored.dataset.shards if shard.split == "train"]

    def run() -> Generator[int]:
        for shard in shards:
            store.get(stored.dataset.key_of(shard))
            yield shard.samples

    return Timed(run)
