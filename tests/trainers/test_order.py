"""The order of samples: each once an epoch, in the same global batches for any number of workers, from any step."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from trainers import order as orders
from trainers import stream
from trainers.stream import Order, Split, order_of

CPU = torch.device("cpu")

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def numbered(order: Order) -> Split:
    """A split whose labels are the samples' indices."""
    count = sum(order.shard_sizes)
    return Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count))


def global_batches(order: Order, world: int, start: int, count: int) -> list[list[int]]:
    """The global batches as `world` workers make them together."""
    merged = [[-1] * order.batch_size for _ in range(count)]
    for rank in range(world):
        own = stream.batches(order, numbered(order), rank, world, start)
        for rows, batch in zip(merged, itertools.islice(own, count), strict=True):
            for row, label in zip(batch.rows_B.tolist(), batch.labels_B.tolist(), strict=True):
                rows[row] = label
    return merged


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, batch=st.sampled_from([1, 2, 6, 12, 24]), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_sample_comes_at_most_once_and_all_but_the_remainder(
    sizes: list[int], batch: int, seed: int, epoch: int
) -> None:
    if sum(sizes) < batch:
        return
    order = order_of(sizes, batch, seed)
    start = epoch * order.steps_per_epoch
    seen = np.array(global_batches(order, 1, start, order.steps_per_epoch)).ravel()
    assert len(set(seen.tolist())) == len(seen) == sum(sizes) - sum(sizes) % batch
    assert set(seen.tolist()) <= set(range(sum(sizes)))


@pytest.mark.parametrize("world", [2, 3, 4, 8, 12, 16, 24])
def test_global_batches_do_not_depend_on_the_number_of_workers(world: int) -> None:
    order = order_of([30, 7, 41, 16, 30], 24 if world in (2, 3, 4, 8) else 40, seed=3)  # lanes: 24, or 8
    count = 2 * order.steps_per_epoch + 1
    assert global_batches(order, world, 0, count) == global_batches(order, 1, 0, count)


def test_a_stream_that_starts_at_a_step_goes_on_where_another_stopped() -> None:
    order = order_of([30, 7, 41, 16, 30], 24, seed=3)
    straight = global_batches(order, 2, 0, 14)
    for start in range(14):
        assert global_batches(order, 3, start, 14 - start) == straight[start:]


def test_epochs_and_seeds_differ() -> None:
    order = order_of([50, 50, 50], 6, seed=0)
    epoch = order.steps_per_epoch
    other = order_of([50, 50, 50], 6, seed=1)
    first = global_batches(order, 1, 0, epoch)
    assert first != global_batches(order, 1, epoch, epoch)
    assert first != global_batches(other, 1, 0, epoch)


def test_a_batch_larger_than_the_split_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"batch_size: expected at most the 10 images .* got 11"):
        order_of([4, 6], 11, seed=0)


@pytest.mark.parametrize(("batch", "world"), [(256, 64), (8192, 1024), (250, 100)])
def test_workers_beyond_the_lanes_share_them_evenly(batch: int, world: int) -> None:
    order = order_of([4096, 4096], batch, seed=0)
    assert world > order.lanes
    rows = [orders.rows_of(order, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(batch))
    counts = [len(own) for own in rows]
    assert max(counts) - min(counts) <= 1


def test_more_workers_than_images_of_a_batch_are_refused() -> None:
    order = order_of([40], 10, seed=0)
    with pytest.raises(RecipeError, match=r"cluster.workers: expected at most 10, the images of a batch, got 11"):
        next(stream.batches(order, numbered(order), 0, 11, 0))


@pytest.mark.parametrize(
    ("image_bytes", "window"), [(1, 8), (128 << 10, 8), (256 << 10, 5), (512 << 10, 2), (64 << 20, 1)]
)
def test_large_shards_stand_in_small_windows(image_bytes: int, window: int) -> None:
    assert order_of([16, 10, 16], 24, 0, image_bytes).window_shards == window


def test_an_epoch_of_a_billion_samples_is_planned_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []
    random = orders._random

    def counted(*what: int) -> np.random.Generator:
        drawn.append(what)
        return random(*what)

    monkeypatch.setattr(orders, "_random", counted)
    tracemalloc.start()
    order = order_of([50_000] * 20_000, 96, seed=0, image_bytes=784)
    for rank, world, step in ((0, 1, 0), (7, 8, 0), (3, 4, 9_000_000)):
        drawn.clear()
        chunk = next(orders.chunks_of(order, rank, world, step, chunk_steps=100))
        assert chunk.indices_TB.shape == (100, 96 // world)
        assert len(drawn) <= 1 + 2 * 48 // world  # the line and a window, perhaps two, of each lane
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
