"""The order of samples: each once an epoch, in the same global batches for any number of workers, from any step."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import Dataset
from pipeline.errors import IntegrityError, RecipeError
from pipeline.store import open_store
from tests.trainers.conftest import Digits
from trainers import stream
from trainers.stream import Order, Split, order_of

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


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_global_batches_do_not_depend_on_the_number_of_workers(world: int) -> None:
    order = order_of([30, 7, 41, 16, 30], 24, seed=3)
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


def test_more_workers_than_lanes_are_refused() -> None:
    order = order_of([40], 10, seed=0)  # two lanes
    with pytest.raises(RecipeError, match=r"cluster.workers: expected at most 2 .* got 3"):
        next(stream.batches(order, numbered(order), 0, 3, 0))


def test_a_split_reads_back_what_was_ingested(digits: Digits) -> None:
    from sklearn.datasets import load_digits

    split = stream.read_split(digits.store, digits.dataset, "train")
    assert split.images_NCHW.shape == (digits.dataset.splits["train"], 1, 8, 8)
    source = {image.astype(np.uint8).tobytes() for image in (load_digits().images * 255 / 16).round()}
    assert {image.numpy().tobytes() for image in split.images_NCHW} <= source


def test_a_damaged_shard_stops_the_stream(digits: Digits, tmp_path: object) -> None:
    shard = stream.split_shards(digits.dataset, "test")[0]
    key = f"{digits.dataset.ref}/{shard.name}"
    other = open_store(f"file://{tmp_path}")
    data = bytearray(digits.store.get(key))
    data[700] ^= 1
    other.put(key, bytes(data))
    damaged = Dataset.model_validate({**digits.dataset.model_dump(), "shards": [shard.model_dump()]})
    with pytest.raises(IntegrityError, match=rf"{shard.name}.*expected.*ingest"):
        stream.read_split(other, damaged, "test")
