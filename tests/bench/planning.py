"""Planning an epoch of 1,000,000,000 samples in 20,000 shards, simulated: up to the indices of the first steps."""

import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from tests.bench.measure import MIB
from tests.bench.rows import Limit, Row, row
from tests.bench.sizes import Sizes
from trainers.order import chunks_of, order_of

IMAGE_BYTES = 28 * 28
FIRST_STEPS = 512


def rows(sizes: Sizes) -> list[Row]:
    """The worst over first, last and only ranks, at the epoch's start and in its middle."""
    order = order_of(_shard_sizes(sizes), sizes.batch_size, 0, IMAGE_BYTES)
    middle = order.steps_per_epoch // 2
    places = [(0, 1, 0), (0, 1, middle), (0, order.lanes, 0), (order.lanes - 1, order.lanes, middle)]
    seconds = max(_seconds(lambda place=place: _first_steps(sizes, *place)) for place in places)  # type: ignore[misc]
    peak = max(_peak_bytes(lambda place=place: _first_steps(sizes, *place)) for place in places)  # type: ignore[misc]
    random = np.random.Generator(np.random.Philox(0))
    bare = _seconds(lambda: random.permutation(sizes.planned_shards))
    title = f"plan an epoch of {sizes.planned_samples:,} samples in {sizes.planned_shards:,} shards"
    return [
        row(f"{title}: time", seconds, "s", None, "<= 1", Limit("a permutation of the shards", bare)),
        row(f"{title}: memory", peak / MIB, "MiB", None, f"<= {200e6 / MIB:.1f}"),
    ]


def _shard_sizes(sizes: Sizes) -> list[int]:
    """Shards of unlike sizes, as a dataset has them after some versions."""
    each = sizes.planned_samples // sizes.planned_shards
    unlike = [each - 1, each, each + 1] * (sizes.planned_shards // 3)
    unlike += [each] * (sizes.planned_shards - len(unlike))
    return unlike


def _first_steps(sizes: Sizes, rank: int, world: int, start_step: int) -> None:
    order = order_of(_shard_sizes(sizes), sizes.batch_size, 0, IMAGE_BYTES)
    next(chunks_of(order, rank, world, start_step, FIRST_STEPS))


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _peak_bytes(function: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
