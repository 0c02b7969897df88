"""The two readers of a split give the same samples: streamed or in memory, by any number of workers, from any step."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.artifacts import Dataset
from pipeline.errors import IntegrityError, UserError
from pipeline.nodecache import NodeCache
from pipeline.store import FileStore, Store
from tests.made import made_dataset, random_part
from tests.trainers.conftest import Digits
from trainers import order as orders
from trainers import readers, stream
from trainers.augment import Augment
from trainers.families import Batch
from trainers.stream import Order, Reader, Split, order_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Made:
    """A dataset of seven uneven shards in a store, and where its cache lies."""

    store: FileStore
    dataset: Dataset
    folder: Path

    def cache(self) -> NodeCache:
        return NodeCache(self.folder / "cache", 10**9, print)

    def reader(self, resident: bool, store: Store | None = None) -> Reader:
        return stream.open_split(self.cache(), store or self.store, self.dataset, "train", CPU, resident=resident)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    store = FileStore(f"file://{folder}/store")
    sizes = (30, 7, 41, 16, 30, 1, 22)
    parts = [random_part(size, (5, 3, 3), first_key=1000 * number) for number, size in enumerate(sizes)]
    held_out = random_part(9, (5, 3, 3), first_key=9000, split="test")
    return Made(store, made_dataset(store, [*parts, held_out]), folder)


def same(one: Batch, other: Batch) -> bool:
    tensors = [(batch.images_BCHW, batch.labels_B, batch.rows_B) for batch in (one, other)]
    return all(map(torch.equal, *tensors)) and one.global_size == other.global_size


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps a chunk of 24, and plans of two chunks: all the seams are met."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", 3 * 24 * 45)
    monkeypatch.setattr(readers, "PLAN_AHEAD_SAMPLES", 2 * 3 * 24)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("one_by_one", [1, 1 << 20])
@pytest.mark.parametrize("augment", [None, Augment(flip=True, crop_pixels=1, brightness=0.2)])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2), (2, 3), (7, 8)])
def test_both_readers_give_the_same_batches(
    made: Made, rank: int, world: int, augment: Augment | None, one_by_one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ONE_BY_ONE_BYTES", one_by_one)
    streams = []
    for resident in (True, False):
        reader = made.reader(resident)
        order = order_of(reader.shard_sizes, 24, 3, reader.image_bytes)
        streams.append(stream.batches(order, reader, rank, world, 4, augment))
    for one, other in itertools.islice(zip(*streams, strict=True), 4 * order.steps_per_epoch):
        assert same(one, other)
    for each in streams:
        each.close()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_streamed_global_batches_do_not_depend_on_the_number_of_workers(made: Made, world: int) -> None:
    augment = Augment(flip=True, cutout=0.5)

    def images(num_workers: int) -> Tensor:
        """The global batches of two epochs and a step, (steps, 24, 3, 5, 3)."""
        reader = made.reader(resident=False)
        order = order_of(reader.shard_sizes, 24, 3, reader.image_bytes)
        whole = torch.full((2 * order.steps_per_epoch + 1, 24, 3, 5, 3), -1.0)
        for rank in range(num_workers):
            with closing(stream.batches(order, reader, rank, num_workers, 0, augment)) as own:
                for step, batch in zip(range(len(whole)), own, strict=False):
                    whole[step, batch.rows_B] = batch.images_BCHW
        return whole

    assert torch.equal(images(world), images(1))


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 30), resident=st.booleans(), world=st.sampled_from([1, 2, 4]))
def test_a_resumed_stream_is_the_straight_one(made: Made, start: int, resident: bool, world: int) -> None:
    reader = made.reader(resident)
    order = order_of(reader.shard_sizes, 12, 1, reader.image_bytes)
    with (
        closing(stream.batches(order, reader, world - 1, world, 0)) as straight,
        closing(stream.batches(order, reader, world - 1, world, start)) as resumed,
    ):
        for one, other in zip(itertools.islice(straight, start, start + 8), resumed, strict=False):
            assert same(one, other)


def test_every_sample_of_the_store_comes_once_an_epoch(made: Made) -> None:
    reader = made.reader(resident=False)
    order = order_of(reader.shard_sizes, 21, 0, reader.image_bytes)
    assert order.steps_per_epoch * 21 == sum(reader.shard_sizes)
    with closing(stream.batches(order, reader, 0, 1, 0)) as own:
        seen = torch.cat([batch.images_BCHW for batch in itertools.islice(own, order.steps_per_epoch)])
    keys = (seen.flatten(1)[:, [0, 15, 30]] * 255).round().long() @ torch.tensor([1, 256, 65536])
    assert len(set(keys.tolist())) == len(keys) == 147


# --- evaluation ---


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(("batch_size", "world"), [(20, 1), (20, 3), (147, 2), (200, 4), (7, 7)])
def test_evaluation_reads_every_sample_once_padded_and_masked(
    made: Made, resident: bool, batch_size: int, world: int
) -> None:
    reader = made.reader(resident)
    whole = made.reader(resident=True)
    assert isinstance(whole, Split)
    workers = [list(stream.every_batch(reader, batch_size, rank, world)) for rank in range(world)]
    assert {len(own) for own in workers} == {-(-147 // batch_size)}
    seen: dict[int, Tensor] = {}
    for own in workers:
        shapes = {(batch.images_BCHW.shape, mask_B.shape) for batch, mask_B in own}
        assert len(shapes) == 1
        for step, (batch, mask_B) in enumerate(own):
            assert batch.images_BCHW.isfinite().all()
            for row, image, kept in zip(batch.rows_B.tolist(), batch.images_BCHW, mask_B.tolist(), strict=True):
                assert kept == (step * batch_size + row < 147)
                if kept:
                    assert seen.setdefault(step * batch_size + row, image) is image
    assert torch.equal(torch.stack([seen[n] for n in range(147)]), stream.to_unit(whole.images_NCHW))


# --- threads, errors, bounds ---


class Watched(FileStore):
    """A folder that says what is fetched, and can hold an answer back."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.fetched: list[str] = []
        self.met, self.go = threading.Event(), threading.Event()
        self.held: Callable[[str], bool] = lambda key: False

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        self.fetched.append(key)
        if self.held(key):
            self.met.set()
            assert self.go.wait(60)
        return super().get_with_etag(key)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[tuple[Watched, Dataset, NodeCache]]:
    store = Watched(f"file://{tmp_path}/store")
    parts = [random_part(48, (4, 4, 1), first_key=100 * number) for number in range(12)]
    yield store, made_dataset(store, parts), NodeCache(tmp_path / "cache", 10**9, print)
    store.go.set()


def streamed(fresh: tuple[Watched, Dataset, NodeCache], batch_size: int = 4) -> tuple[Order, Reader]:
    store, dataset, cache = fresh
    reader = stream.open_split(cache, store, dataset, "train", CPU, resident=False)
    return Order(reader.shard_sizes, batch_size, 0, lanes=1, window_shards=1), reader


def test_shards_are_fetched_before_they_are_needed(
    fresh: tuple[Watched, Dataset, NodeCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 16 * 48)
    store, dataset, _ = fresh
    order, reader = streamed(fresh)
    first = next(orders.chunks_of(order, 0, 1, 0, 1)).indices_TB[0, 0] // 48
    own = dataset.key_of(stream.split_shards(dataset, "train")[first])
    store.held = lambda key: key != own
    with closing(stream.batches(order, reader, 0, 1, 0)) as batches:
        next(batches)
        assert store.met.wait(60)  # the next shard is on its way, while the first one's batches are read
        for _ in range(11):
            next(batches)
        store.go.set()
        next(batches)


def test_shards_of_later_chunks_are_fetched_while_the_first_chunk_waits(
    fresh: tuple[Watched, Dataset, NodeCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 16 * 12)  # a step a chunk
    monkeypatch.setattr(readers, "FETCH_AHEAD_SHARDS", 4)  # fewer than the first chunk needs
    store, dataset, _ = fresh
    _, reader = streamed(fresh)
    order = Order(reader.shard_sizes, 12, 0, lanes=6, window_shards=1)
    first = np.unique(next(orders.chunks_of(order, 0, 1, 0, 1)).indices_TB // 48)
    shards = stream.split_shards(dataset, "train")
    own, later = [dataset.key_of(shards[number]) for number in first], threading.Event()
    assert len(own) == 6

    def held(key: str) -> bool:
        if key not in own:
            later.set()
        return key == own[-1]

    store.held = held
    with closing(stream.batches(order, reader, 0, 1, 0)) as batches, ThreadPoolExecutor(1) as pool:
        batch = pool.submit(next, batches)
        try:
            assert later.wait(20) and not batch.done()
        finally:
            store.go.set()
            batch.result()


def test_what_is_gathered_ahead_is_bounded(
    fresh: tuple[Watched, Dataset, NodeCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 16 * 4)  # a step a chunk
    order, reader = streamed(fresh)
    gathered: list[Any] = []
    gather = readers.Shards._gather

    def counted(self: readers.Shards, plan: Any) -> Any:
        gathered.append(plan)
        return gather(self, plan)

    monkeypatch.setattr(readers.Shards, "_gather", counted)
    with closing(stream.batches(order, reader, 0, 1, 0)) as batches:
        for step in range(1, 40):
            next(batches)
            assert len(gathered) <= step + readers.CHUNKS_AHEAD + 2


def test_threads_end_with_the_iterator(fresh: tuple[Watched, Dataset, NodeCache]) -> None:
    before = set(threading.enumerate())
    order, reader = streamed(fresh)
    batches = stream.batches(order, reader, 0, 1, 0)
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()
    assert set(threading.enumerate()) == before
    batches = stream.batches(order, reader, 0, 1, 0)
    next(batches)
    del batches
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_shard_stops_the_stream(
    fresh: tuple[Watched, Dataset, NodeCache], resident: bool, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.shards.RETRY_WAITS_SECONDS", (0.0,))
    store, dataset, cache = fresh
    shard = stream.split_shards(dataset, "train")[5]
    key = dataset.key_of(shard)
    if damage == "missing":
        store.delete(key)
    else:
        data = bytearray(store.get(key))
        data[700] ^= 1
        store.put(key, bytes(data))
    before = set(threading.enumerate())
    said = rf"{key}: expected .*; run `atelier repair {store.uri}/{dataset.ref}`"
    with pytest.raises(IntegrityError, match=said):
        reader = stream.open_split(cache, store, dataset, "train", CPU, resident=resident)
        order = order_of(reader.shard_sizes, 4, 0, reader.image_bytes)
        for _ in itertools.islice(stream.batches(order, reader, 0, 1, 0), order.steps_per_epoch + 1):
            pass
    assert set(threading.enumerate()) == before


def test_a_split_that_is_too_large_for_memory_is_streamed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> Reader:
        return stream.open_split(made.cache(), made.store, made.dataset, "train", CPU)

    assert isinstance(opened(), Split)
    monkeypatch.setattr(stream, "MAX_RESIDENT_BYTES", 147 * 45 - 1)
    assert isinstance(opened(), stream.Shards)
    with pytest.raises(UserError, match="expected a split train of at most"):
        stream.read_split(made.store, made.dataset, "train", made.cache())


def test_a_split_reads_back_what_was_ingested(digits: Digits, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    split = stream.read_split(digits.store, digits.dataset, "train", NodeCache(tmp_path, 10**9, print))
    assert split.images_NCHW.shape == (digits.dataset.splits["train"], 1, 8, 8)
    source = {image.astype(np.uint8).tobytes() for image in (load_digits().images * 255 / 16).round()}
    assert {image.numpy().tobytes() for image in split.images_NCHW} <= source
