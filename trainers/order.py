"""The order of samples: pure functions of (shard sizes, batch size, seed), the same for any number of workers.

A permutation of all shards, drawn from (seed, epoch), lays the split's samples in one line. The line's first
`steps * batch_size` samples are cut into C equal lanes (the last `samples mod batch_size` of this epoch's line are left
out: another remainder each epoch). Within a lane, the samples of each window of K consecutive shards are permuted. The
global batch t takes the next `batch_size / C` samples of every lane, and worker r of W owns the lanes l with
l mod W = r; where there are more workers than lanes, those with the same r mod C share a lane, each with its own rows
of what a batch takes of it. So every sample that is in the line comes exactly once an epoch, whoever reads it, and the
state of a stream is (dataset, seed, step): no buffers to save.

Windows. A worker begins with one window of each of its lanes, so K is chosen to keep those shards to START_BYTES
decoded over all lanes, between 1 and MAX_WINDOW_SHARDS. K = 1 costs little: ingest lays the samples of a split in
shards in the order of their digests, so that each shard is a random part of the split already.

Planning is lazy: a lane's windows are drawn as they are reached, so that an epoch of 1,000,000,000 samples begins at
once and takes the memory of its open windows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.errors import RecipeError

MAX_LANES = 48  # divisible by 1, 2, 3, 4, 6, 8, 12, 16: those numbers of workers own equally many lanes
MAX_WINDOW_SHARDS = 8
START_BYTES = 512 << 20

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """What decides the order of the samples: shard sizes, and the numbers of the recipe."""

    shard_sizes: tuple[int, ...]
    batch_size: int
    seed: int
    lanes: int
    window_shards: int

    @cached_property
    def num_samples(self) -> int:
        """Samples of the split."""
        return sum(self.shard_sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in one epoch."""
        return self.num_samples // self.batch_size

    @property
    def lane_batch(self) -> int:
        """Samples of each lane in a global batch."""
        return self.batch_size // self.lanes

    def check_world(self, world: int) -> None:
        """Raises RecipeError on more workers than a batch has samples."""
        if world > self.batch_size:
            raise RecipeError(
                f"cluster.workers: expected at most {self.batch_size}, the images of a batch, got {world}; "
                "lower it or raise the batch_size"
            )

    def shares(self, rank: int, world: int) -> list[tuple[int, slice]]:
        """The lanes that a worker reads, and which rows of a lane's part of a batch are its own."""
        if world <= self.lanes:
            return [(lane, slice(0, self.lane_batch)) for lane in range(rank, self.lanes, world)]
        nth, lane = divmod(rank, self.lanes)
        sharing = len(range(lane, world, self.lanes))
        return [(lane, slice(nth * self.lane_batch // sharing, (nth + 1) * self.lane_batch // sharing))]


@dataclass(frozen=True)
class Chunk:
    """Some consecutive steps of one epoch, for one worker: which samples of the split, (steps, B)."""

    epoch: int
    indices_TB: Indices


def order_of(shard_sizes: Sequence[int], batch_size: int, seed: int, image_bytes: int = 1) -> Order:
    """The order with as many lanes as the batch divides into; `image_bytes` are those of one decoded image.

    Raises RecipeError on a batch larger than the split.
    """
    if sum(shard_sizes) < batch_size:
        raise RecipeError(
            f"batch_size: expected at most the {sum(shard_sizes)} images of the training split, got {batch_size}; "
            "lower it or ingest more images"
        )
    lanes = math.gcd(batch_size, MAX_LANES)
    window = START_BYTES // (lanes * max(shard_sizes) * image_bytes)
    return Order(tuple(shard_sizes), batch_size, seed, lanes, min(max(window, 1), MAX_WINDOW_SHARDS))


def rows_of(order: Order, rank: int, world: int) -> Indices:
    """Which rows of the global batch are a worker's (B,), in the order of its part."""
    rows = np.arange(order.batch_size).reshape(order.lanes, order.lane_batch)
    return np.concatenate([rows[lane, own] for lane, own in order.shares(rank, world)])


def chunks_of(order: Order, rank: int, world: int, start_step: int, chunk_steps: int) -> Iterator[Chunk]:
    """A worker's samples from global step `start_step` on, at most `chunk_steps` steps at a time, without end."""
    epoch, step = divmod(start_step, order.steps_per_epoch)
    while True:
        line = _Line(order, epoch)
        lanes = [(_Lane(line, lane, step * order.lane_batch), own) for lane, own in order.shares(rank, world)]
        while step < order.steps_per_epoch:
            num = min(chunk_steps, order.steps_per_epoch - step)
            taken = [lane.take(num * order.lane_batch).reshape(num, -1)[:, own] for lane, own in lanes]
            yield Chunk(epoch, np.concatenate(taken, axis=1))
            step += num
        epoch, step = epoch + 1, 0


class _Line:
    """The shards of an epoch in their order."""

    def __init__(self, order: Order, epoch: int) -> None:
        self.order, self.epoch = order, epoch
        sizes = np.array(order.shard_sizes, dtype=np.int64)
        self.shards = _random(order.seed, epoch).permutation(len(sizes))
        self.starts = (np.cumsum(sizes) - sizes)[self.shards]  # of each in the split
        self.ends = np.cumsum(sizes[self.shards])  # of each in the line
        self.begins = self.ends - sizes[self.shards]

    def windows(self, lane: int, skip: int) -> Iterator[Indices]:
        """The windows of a lane, as samples of the split, without the lane's first `skip` samples."""
        order = self.order
        length = order.steps_per_epoch * order.lane_batch
        low, high = lane * length, (lane + 1) * length
        first, last = np.searchsorted(self.ends, low, "right"), np.searchsorted(self.begins, high, "left")
        begins, ends = np.maximum(self.begins[first:last], low), np.minimum(self.ends[first:last], high)
        offsets = self.starts[first:last] - self.begins[first:last]  # from the line to the split
        for at in range(0, len(begins), order.window_shards):
            window = slice(at, at + order.window_shards)
            num = int((ends[window] - begins[window]).sum())
            if skip >= num:
                skip -= num
                continue
            pieces = [
                np.arange(begin + offset, end + offset)
                for begin, end, offset in zip(begins[window], ends[window], offsets[window], strict=True)
            ]
            drawn = np.concatenate(pieces)
            _random(order.seed, self.epoch, lane, at).shuffle(drawn)
            yield drawn[skip:]
            skip = 0


class _Lane:
    """Takes a lane's samples in turn."""

    def __init__(self, line: _Line, lane: int, skip: int) -> None:
        self._windows = line.windows(lane, skip)
        self._left = np.empty(0, np.int64)

    def take(self, num: int) -> Indices:
        """The next samples; there must be as many."""
        taken: list[Indices] = []
        while num:
            if not len(self._left):
                self._left = next(self._windows)
            taken.append(self._left[:num])
            self._left = self._left[num:]
            num -= len(taken[-1])
        return taken[0] if len(taken) == 1 else np.concatenate(taken)


def _random(seed: int, *what: int) -> np.random.Generator:
    """A generator that depends on the seed and on what it is for, and on nothing drawn before."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *what])))
