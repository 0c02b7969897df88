"""The two ways to a split's samples: whole in memory (`Split`), or gathered some steps ahead (`Shards`).

`Shards` has a thread that gathers chunks of steps from the node's mapped shards, and a few more that fetch and decode
the shards that the next chunks need, so that the store's latency is hidden. What it holds is bounded: CHUNKS_AHEAD
chunks and one on either side, PLAN_AHEAD_SAMPLES planned samples, and the cache's open maps.

Legend: T steps of a chunk, B images of the local batch, C channels, H height, W width, N images of a split, P values
of an image.
"""

import contextlib
import queue
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.artifacts import Dataset, Shard
from pipeline.decoding import Room
from pipeline.nodecache import Mapped, NodeCache
from pipeline.store import Store
from trainers.order import Chunk, Indices

CHUNK_BYTES = 8 << 20  # of images are gathered at a time ...
MAX_CHUNK_STEPS = 1024
CHUNKS_AHEAD = 2  # ... and so many wait for the training loop
FETCH_THREADS = 6
FETCH_AHEAD_SHARDS = 12  # are on their way while plans are made further ahead
PLAN_AHEAD_SAMPLES = 1 << 17  # whose shards are fetched before they are needed
ONE_BY_ONE_BYTES = 8 << 10  # from which images are copied one by one: measured, twice as fast at 256x256
POLL_SECONDS = 0.1

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Raw:
    """What a reader gives for one step, on its device: uint8 images, labels, and keys (int64, the bits of uint64)."""

    epoch: int
    images_BCHW: Tensor
    labels_B: Tensor
    keys_B: Tensor


class Reader(ABC):
    """A split's samples, numbered in the order of its shards."""

    shard_sizes: tuple[int, ...]
    image_bytes: int
    device: torch.device

    @abstractmethod
    def read(self, chunks: Iterator[Chunk]) -> Generator[Raw, None, None]:
        """The steps of the chunks, in order. Raises IntegrityError, StoreError."""

    def chunk_steps(self, local_batch: int) -> int:
        """How many steps a chunk should have."""
        return min(MAX_CHUNK_STEPS, max(1, CHUNK_BYTES // max(1, local_batch * self.image_bytes)))


class Split(Reader):
    """All images of a split in memory, on the host or on the device."""

    def __init__(
        self,
        images_NCHW: Tensor,
        labels_N: Tensor,
        keys_N: Tensor | None = None,
        shard_sizes: Sequence[int] | None = None,
    ) -> None:
        """uint8 images; int64 labels, zeros where there are none; the keys' bits as int64 (None: the numbers)."""
        self.images_NCHW, self.labels_N = images_NCHW, labels_N
        self.keys_N = torch.arange(len(labels_N), device=labels_N.device) if keys_N is None else keys_N
        self.shard_sizes = (len(labels_N),) if shard_sizes is None else tuple(shard_sizes)
        self.image_bytes = images_NCHW[:1].numel()
        self.device = images_NCHW.device

    def to(self, device: torch.device) -> "Split":
        """The same images on another device."""
        images_NCHW, labels_N, keys_N = self.images_NCHW.to(device), self.labels_N.to(device), self.keys_N.to(device)
        return Split(images_NCHW, labels_N, keys_N, self.shard_sizes)

    def read(self, chunks: Iterator[Chunk]) -> Generator[Raw, None, None]:
        """Gather each step on the device."""
        for chunk in chunks:
            for indices_B in torch.from_numpy(chunk.indices_TB).to(self.device):
                yield Raw(
                    chunk.epoch,
                    self.images_NCHW.index_select(0, indices_B),
                    self.labels_N.index_select(0, indices_B),
                    self.keys_N.index_select(0, indices_B),
                )


@dataclass(frozen=True)
class _Plan:
    """A chunk's samples, grouped by the shard that they lie in."""

    chunk: Chunk
    shards: list[int]
    cuts: list[int]  # where each shard's samples begin in the two arrays below, and the end
    places: Indices  # of each sample in the chunk
    rows: Indices  # of each sample in its shard


@dataclass(frozen=True)
class _Gathered:
    """A chunk's samples, on the host."""

    epoch: int
    images_TBP: Tensor
    labels_TB: Tensor
    keys_TB: Tensor


class Shards(Reader):
    """A split that is read from the node's cache; what it holds does not depend on the split's size."""

    def __init__(
        self, cache: NodeCache, store: Store, dataset: Dataset, parts: Sequence[Shard], device: torch.device
    ) -> None:
        self.cache, self.store, self.dataset, self.parts, self.device = cache, store, dataset, parts, device
        self.shape = (dataset.channels, dataset.height, dataset.width)
        self.image_bytes = dataset.channels * dataset.height * dataset.width
        self.shard_sizes = tuple(part.samples for part in parts)
        self._ends = np.cumsum(np.array(self.shard_sizes, np.int64))
        self._starts = self._ends - self.shard_sizes

    def read(self, chunks: Iterator[Chunk]) -> Generator[Raw, None, None]:
        """The steps of the chunks. All threads have ended when this iterator is closed."""
        ready: queue.Queue[_Gathered | Exception | None] = queue.Queue(CHUNKS_AHEAD)
        stop = threading.Event()
        thread = threading.Thread(target=self._gather_all, args=(chunks, ready, stop), daemon=True)
        thread.start()
        try:
            while (found := ready.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield from self._steps(found)
        finally:
            stop.set()
            thread.join()

    def mapped(self, number: int) -> Mapped:
        """The samples of a shard, by its number in the split. Raises IntegrityError, StoreError."""
        return self.cache.decoded(self.store, self.dataset, self.parts[number])

    def _steps(self, gathered: _Gathered) -> Iterator[Raw]:
        images_TBP, labels_TB, keys_TB = (
            tensor.to(self.device, non_blocking=True)
            for tensor in (gathered.images_TBP, gathered.labels_TB, gathered.keys_TB)
        )
        for images_BP, labels_B, keys_B in zip(images_TBP, labels_TB, keys_TB, strict=True):
            yield Raw(gathered.epoch, images_BP.view(-1, *self.shape), labels_B, keys_B)

    def _gather_all(
        self, chunks: Iterator[Chunk], ready: "queue.Queue[_Gathered | Exception | None]", stop: threading.Event
    ) -> None:
        """The thread: gathered chunks in order, then None, or the error that ended it."""
        pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        try:
            for plan in self._fetched(chunks, pool, stop):
                _put(ready, self._gather(plan), stop)
            _put(ready, None, stop)
        except Exception as error:  # noqa: BLE001 - raised again where the batches are read
            _put(ready, error, stop)
        finally:
            pool.shutdown(cancel_futures=True)

    def _fetched(self, chunks: Iterator[Chunk], pool: ThreadPoolExecutor, stop: threading.Event) -> Iterator[_Plan]:
        """The chunks in order, each once its shards are in the cache; those of later chunks are on their way."""
        ahead: deque[_Plan] = deque()
        fetching: dict[int, Future[None]] = {}
        uses: Counter[int] = Counter()  # of each shard, in the chunks ahead
        samples_ahead = 0

        def plan_ahead() -> None:
            nonlocal samples_ahead
            while not ahead or (
                samples_ahead < PLAN_AHEAD_SAMPLES
                and sum(not one.done() for one in fetching.values()) < FETCH_AHEAD_SHARDS
            ):
                if (chunk := next(chunks, None)) is None:
                    return
                ahead.append(self._plan(chunk))
                samples_ahead += chunk.indices_TB.size
                for number in ahead[-1].shards:
                    uses[number] += 1
                    if number not in fetching:
                        fetching[number] = pool.submit(self._fetch, number)

        while not stop.is_set():
            plan_ahead()
            if not ahead:
                return
            plan = ahead.popleft()
            samples_ahead -= plan.chunk.indices_TB.size
            for number in plan.shards:
                _wait(fetching[number], stop)
                plan_ahead()  # the first chunk may wait for many shards: those of the next are on their way meanwhile
                uses[number] -= 1
                if not uses[number]:
                    del uses[number], fetching[number]
            if not stop.is_set():
                yield plan

    def _fetch(self, number: int) -> None:
        """Have a shard in the cache; what keeps it open is the cache's own bound."""
        self.mapped(number)

    def _plan(self, chunk: Chunk) -> _Plan:
        indices = chunk.indices_TB.reshape(-1)
        numbers = np.searchsorted(self._ends, indices, "right")
        few = len(self.parts) <= np.iinfo(np.uint16).max
        places = np.argsort(numbers.astype(np.uint16) if few else numbers, kind="stable")  # 16 bits: a radix sort
        numbers = numbers[places]
        rows = indices[places] - self._starts[numbers]
        changes = np.flatnonzero(np.diff(numbers)) + 1
        cuts = [0, *changes.tolist(), len(indices)]
        return _Plan(chunk, numbers[cuts[:-1]].tolist(), cuts, places, rows)

    def _gather(self, plan: _Plan) -> _Gathered:
        steps, local_batch = plan.chunk.indices_TB.shape
        num = steps * local_batch
        images = self._empty(np.uint8, num, self.image_bytes)
        labels, keys = self._empty(np.int64, num), self._empty(np.int64, num)
        to_images, to_labels, to_keys = images.numpy(), labels.numpy(), keys.numpy()
        for number, start, stop in zip(plan.shards, plan.cuts, plan.cuts[1:], strict=False):
            mapped = self.mapped(number)
            places, rows = plan.places[start:stop], plan.rows[start:stop]
            _copy_rows(mapped.images_NCHW.reshape(-1, self.image_bytes), rows, to_images, places)
            to_labels[places] = mapped.labels_N[rows]
            to_keys[places] = _signed(mapped.keys_N)[rows]
        return _Gathered(
            plan.chunk.epoch,
            images.view(steps, local_batch, self.image_bytes),
            labels.view(steps, local_batch),
            keys.view(steps, local_batch),
        )

    def _empty(self, dtype: type[np.generic], *shape: int) -> Tensor:
        """Memory to gather into: NumPy's, which asks for huge pages, or what a device copies from at once."""
        tensor = torch.from_numpy(np.empty(shape, dtype))
        return torch.empty_like(tensor, pin_memory=True) if self.device.type == "cuda" else tensor


def load_split(cache: NodeCache, store: Store, dataset: Dataset, parts: Sequence[Shard], threads: int) -> Split:
    """The samples of some shards, whole in memory, on the host. Raises IntegrityError, StoreError."""
    sizes = [part.samples for part in parts]
    num, starts = sum(sizes), np.cumsum([0, *sizes]).tolist()
    images = np.empty((num, dataset.channels, dataset.height, dataset.width), np.uint8)  # NumPy asks for huge pages
    labels, keys = np.empty(num, np.int64), np.empty(num, np.uint64)

    def load(number: int) -> None:
        own = slice(starts[number], starts[number + 1])
        cache.read_into(store, dataset, parts[number], Room(images[own], labels[own], keys[own]))

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(load, number) for number in range(len(parts))]:
            done.result()
    return Split(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(_signed(keys)), sizes)


def _copy_rows(source_NP: Pixels, rows: Indices, target_NP: Pixels, places: Indices) -> None:
    """target[places] = source[rows]; large images one by one, which saves a copy of them all."""
    if source_NP.shape[1] < ONE_BY_ONE_BYTES:
        target_NP[places] = source_NP[rows]
        return
    for place, row in zip(places.tolist(), rows.tolist(), strict=True):
        target_NP[place] = source_NP[row]


def _signed(keys_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The same bits; torch has few operations on uint64."""
    return keys_N.view(np.int64)


def _put(
    ready: "queue.Queue[_Gathered | Exception | None]", item: _Gathered | Exception | None, stop: threading.Event
) -> None:
    """Put, unless the reader has gone."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            return ready.put(item, timeout=POLL_SECONDS)


def _wait(one: "Future[None]", stop: threading.Event) -> None:
    """Wait for a shard, unless the reader has gone. Raises what fetching it raised."""
    while not stop.is_set():
        with contextlib.suppress(StillRunning):
            return one.result(POLL_SECONDS)
