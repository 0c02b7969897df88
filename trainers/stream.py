"""Dataset to batches: deterministic, resumable, and the same global batches for any number of workers.

The order of an epoch. A permutation of all shards, drawn from (seed, epoch), lays the split's samples in one line.
The line's first `steps * batch_size` samples are cut into C equal lanes (the last `samples mod batch_size` of this
epoch's line are left out: another remainder each epoch). Within a lane, the samples of each window of K consecutive
shards are permuted. The global batch t takes the next `batch_size / C` samples of every lane, and worker r of W owns
the lanes l with l mod W = r. So every sample that is in the line comes exactly once an epoch, whoever reads it, and
the state of a stream is (dataset, seed, step): no buffers to save.

Legend: B images of the local batch, C channels, H height, W width, N images of a split.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import pictures, shards
from pipeline.artifacts import Dataset, Shard
from pipeline.errors import RecipeError, UserError
from pipeline.store import Store
from trainers.families import Batch, DataShape

MAX_LANES = 48  # divisible by 1, 2, 3, 4, 6, 8, 12, 16: those numbers of workers get equal parts of a batch
WINDOW_SHARDS = 8
MAX_RESIDENT_BYTES = 8 << 30

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """What decides the order of the samples: shard sizes, and the numbers of the recipe."""

    shard_sizes: tuple[int, ...]
    batch_size: int
    seed: int
    lanes: int
    window_shards: int = WINDOW_SHARDS

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in one epoch."""
        return sum(self.shard_sizes) // self.batch_size


def order_of(shard_sizes: Sequence[int], batch_size: int, seed: int) -> Order:
    """The order with as many lanes as the batch divides into. Raises RecipeError on a batch larger than the split."""
    if sum(shard_sizes) < batch_size:
        raise RecipeError(
            f"batch_size: expected at most the {sum(shard_sizes)} images of the training split, got {batch_size}; "
            "lower it or ingest more images"
        )
    return Order(tuple(shard_sizes), batch_size, seed, math.gcd(batch_size, MAX_LANES))


def _random(order: Order, *what: int) -> np.random.Generator:
    """A generator that depends on the seed and on what it is for, and on nothing drawn before."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([order.seed, *what])))


def lane_of(order: Order, epoch: int, lane: int) -> Indices:
    """The samples of one lane in the epoch's order, as indices into the split (steps * batch_size / lanes,)."""
    sizes = np.array(order.shard_sizes, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes  # of each shard in the split
    shard_order = _random(order, epoch).permutation(len(sizes))
    ends = np.cumsum(sizes[shard_order])  # of each shard in the epoch's line
    length = order.steps_per_epoch * order.batch_size // order.lanes
    low, high = lane * length, (lane + 1) * length
    pieces = []
    for shard, end in zip(shard_order, ends, strict=True):
        begin = end - sizes[shard]
        if begin < high and end > low:
            inside = np.arange(max(low, begin), min(high, end)) - begin
            pieces.append(starts[shard] + inside)
    windows = [
        _random(order, epoch, lane, at).permutation(np.concatenate(pieces[at : at + order.window_shards]))
        for at in range(0, len(pieces), order.window_shards)
    ]
    return np.concatenate(windows)


def epoch_of(order: Order, epoch: int, rank: int, world: int) -> tuple[Indices, Indices]:
    """A worker's samples of an epoch (steps, B), and which rows of the global batch they are (B,)."""
    per_lane = order.batch_size // order.lanes
    own = range(rank, order.lanes, world)
    lanes = [lane_of(order, epoch, lane).reshape(order.steps_per_epoch, per_lane) for lane in own]
    rows = [np.arange(lane * per_lane, (lane + 1) * per_lane) for lane in own]
    return np.concatenate(lanes, axis=1), np.concatenate(rows)


@dataclass(frozen=True)
class Split:
    """All images of a split, in the order of its shards, in memory."""

    images_NCHW: Tensor  # uint8
    labels_N: Tensor  # int64; zeros where the dataset carries no labels

    def to(self, device: torch.device) -> "Split":
        """The same images on another device."""
        return Split(self.images_NCHW.to(device), self.labels_N.to(device))


def split_shards(dataset: Dataset, split: str) -> list[Shard]:
    """The shards of a split, in the order of their names."""
    return sorted((shard for shard in dataset.shards if shard.split == split), key=lambda shard: shard.name)


def read_split(store: Store, dataset: Dataset, split: str) -> Split:
    """Read, check and decode a whole split. Raises IntegrityError naming a shard whose bytes are not its record's."""
    parts = split_shards(dataset, split)
    resident = sum(part.samples for part in parts) * dataset.channels * dataset.height * dataset.width
    if resident > MAX_RESIDENT_BYTES:
        raise UserError(
            f"dataset {dataset.name}: expected a split of at most {MAX_RESIDENT_BYTES >> 30} GiB decoded, "
            f"got {resident / 2**30:.1f} GiB; choose a smaller height and width"
        )
    with ThreadPoolExecutor(max_workers=4) as pool:
        decoded = list(pool.map(lambda part: _decode_shard(store, dataset, part), parts))
    images = np.concatenate([images for images, _ in decoded])
    labels = np.concatenate([labels for _, labels in decoded])
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def _decode_shard(store: Store, dataset: Dataset, shard: Shard) -> tuple[npt.NDArray[np.uint8], Indices]:
    images = np.empty((shard.samples, dataset.channels, dataset.height, dataset.width), np.uint8)
    labels = np.zeros(shard.samples, np.int64)
    for i, sample in enumerate(shards.read_shard(shards.open_shard(store, dataset, shard))):
        images[i] = pictures.decode_png(sample.members["png"]).transpose(2, 0, 1)
        if dataset.classes:
            labels[i] = int(sample.members["cls"])
    return images, labels


def data_shape(dataset: Dataset) -> DataShape:
    """What the networks need to know of a dataset."""
    return DataShape(dataset.channels, dataset.height, dataset.width, len(dataset.classes))


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def batches(order: Order, split: Split, rank: int, world: int, start_step: int) -> Iterator[Batch]:
    """This worker's batches from global step `start_step` on, without end. Raises RecipeError on too many workers."""
    if world > order.lanes:
        raise RecipeError(
            f"cluster.workers: expected at most {order.lanes} for batches of {order.batch_size}, got {world}; "
            f"choose a batch size that is a multiple of {MAX_LANES}, or fewer workers"
        )
    device = split.images_NCHW.device
    epoch, step = divmod(start_step, order.steps_per_epoch)
    while True:
        indices, rows = epoch_of(order, epoch, rank, world)
        own = torch.from_numpy(indices).to(device)
        rows_B = torch.from_numpy(rows).to(device)
        for indices_B in own[step:]:
            images_BCHW = to_unit(split.images_NCHW[indices_B])
            yield Batch(images_BCHW, split.labels_N[indices_B], rows_B, order.batch_size)
        epoch, step = epoch + 1, 0
