"""Our side of every stream: batches of a dataset's training split as the training loop takes them."""

import itertools
import shutil
from collections.abc import Generator
from pathlib import Path

import torch

from pipeline.artifacts import Dataset
from pipeline.errors import AtelierError
from pipeline.nodecache import NodeCache
from pipeline.store import Store
from tests.bench.measure import Timed
from trainers.stream import batches, open_split, order_of

CACHE_BYTES = 100 << 30
CPU = torch.device("cpu")


class Feed:
    """An endless stream of which epochs are taken; `resident`: as the project chooses, else the reader for any size."""

    def __init__(self, store: Store, dataset: Dataset, cache: Path, batch_size: int, *, resident: bool) -> None:
        self._cache = NodeCache(cache, CACHE_BYTES, _refuse)
        chosen = None if resident else False
        reader = open_split(self._cache, store, dataset, "train", CPU, resident=chosen)
        order = order_of(reader.shard_sizes, batch_size, 0, reader.image_bytes)
        self.steps_per_epoch = order.steps_per_epoch
        self._batches = batches(order, reader, 0, 1, 0)

    def epoch(self) -> Generator[int]:
        """The images of each of the next batches, as many as an epoch has."""
        for batch in itertools.islice(self._batches, self.steps_per_epoch):
            yield len(batch.images_BCHW)

    def close(self) -> None:
        """End its threads and let go of its maps."""
        self._batches.close()
        self._cache.close()


def first_epochs(store: Store, dataset: Dataset, cache: Path, batch_size: int, *, resident: bool) -> Timed:
    """Epochs with nothing in the cache: every shard is fetched, checked, decoded and kept."""

    def run() -> Generator[int]:
        feed = Feed(store, dataset, cache, batch_size, resident=resident)
        try:
            yield from feed.epoch()
        finally:
            feed.close()

    return Timed(run, prepare=lambda: shutil.rmtree(cache, ignore_errors=True), warm=False, uncut=True)


def later_epochs(store: Store, dataset: Dataset, cache: Path, batch_size: int, *, resident: bool) -> Timed:
    """Epochs of a stream that has read the whole split once."""
    feed = Feed(store, dataset, cache, batch_size, resident=resident)
    for _ in feed.epoch():
        pass
    return Timed(feed.epoch, uncut=True)


def _refuse(message: str) -> None:
    """A cache that does not serve would be another figure."""
    raise AtelierError(message)
