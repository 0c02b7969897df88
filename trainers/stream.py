"""Dataset to batches: deterministic, resumable, and the same global batches for any number of workers.

    dataset --NodeCache--> Split (whole, on the device) or Shards (gathered some steps ahead) --batches--> Batch

The order is that of `trainers.order`. Two readers stand behind `batches`, and both give the same batches: a split that
fits is loaded once, and its batches are gathered on the device; a larger one is gathered from the node's mapped shards,
some steps ahead. Each shard is fetched and decoded once a node (`pipeline.nodecache`). The state of a stream is the
global step alone. Evaluation reads every sample, by `every_batch`.

    reader = open_split(cache, store, dataset, "train", device)
    order = order_of(reader.shard_sizes, batch_size, seed, reader.image_bytes)
    with closing(batches(order, reader, rank, world, start_step)) as stream:
        for batch in stream: ...

Legend: B images of the local batch, C channels, H height, W width, N images of a split.
"""

from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import psutil
import torch
from torch import Tensor

from pipeline.artifacts import Dataset, Shard
from pipeline.errors import UserError
from pipeline.nodecache import NodeCache
from pipeline.store import Store
from trainers.augment import Augment
from trainers.families import Batch, DataShape
from trainers.order import Chunk, Order, chunks_of, order_of, rows_of
from trainers.readers import Reader, Shards, Split, load_split

__all__ = ["Order", "Reader", "Shards", "Split", "batches", "every_batch", "open_split", "order_of", "read_split"]

MAX_RESIDENT_BYTES = 8 << 30
RESIDENT_SHARE = 0.25  # of the device's free memory; on the host, of this worker's part of it
LOAD_THREADS = 4


def split_shards(dataset: Dataset, split: str) -> list[Shard]:
    """The shards of a split, in the order of their names."""
    return sorted((shard for shard in dataset.shards if shard.split == split), key=lambda shard: shard.name)


def open_split(
    cache: NodeCache,
    store: Store,
    dataset: Dataset,
    split: str,
    device: torch.device,
    world: int = 1,
    resident: bool | None = None,
) -> Split | Shards:
    """A reader of a split: whole on the device where that fits (or as `resident` says), else shard by shard.

    It fits in a quarter of the device's free memory, 8 GiB at most; on the host, of the part that `world` workers leave
    to each. Raises IntegrityError naming a shard whose bytes are not its record's.
    """
    parts = split_shards(dataset, split)
    if resident is None:
        resident = _bytes_of(dataset, parts) <= min(MAX_RESIDENT_BYTES, RESIDENT_SHARE * _free_bytes(device, world))
    if resident:
        return load_split(cache, store, dataset, parts, LOAD_THREADS).to(device)
    return Shards(cache, store, dataset, parts, device)


def read_split(store: Store, dataset: Dataset, split: str, cache: NodeCache) -> Split:
    """A whole split on the host, for what needs all of it at once. Raises UserError, IntegrityError naming a shard."""
    parts = split_shards(dataset, split)
    num_bytes = _bytes_of(dataset, parts)
    if num_bytes > MAX_RESIDENT_BYTES:
        raise UserError(
            f"dataset {dataset.name}: expected a split {split} of at most {MAX_RESIDENT_BYTES >> 30} GiB decoded, "
            f"got {num_bytes / 2**30:.1f} GiB; choose a smaller height and width"
        )
    return load_split(cache, store, dataset, parts, LOAD_THREADS)


def _bytes_of(dataset: Dataset, parts: list[Shard]) -> int:
    return sum(part.samples for part in parts) * dataset.channels * dataset.height * dataset.width


def _free_bytes(device: torch.device, world: int) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available) // world


def data_shape(dataset: Dataset) -> DataShape:
    """What the networks need to know of a dataset."""
    return DataShape(dataset.channels, dataset.height, dataset.width, len(dataset.classes))


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def batches(
    order: Order, reader: Reader, rank: int, world: int, start_step: int, augment: Augment | None = None
) -> Generator[Batch, None, None]:
    """This worker's batches from global step `start_step` on, without end; close it to end its threads.

    Raises RecipeError on too many workers, IntegrityError and StoreError where a shard cannot be read.
    """
    order.check_world(world)
    rows_B = torch.from_numpy(rows_of(order, rank, world)).to(reader.device)
    chunks = chunks_of(order, rank, world, start_step, reader.chunk_steps(len(rows_B)))
    with closing(reader.read(chunks)) as steps:
        for raw in steps:
            images_BCHW = to_unit(raw.images_BCHW)
            if augment is not None:
                images_BCHW = augment(images_BCHW, raw.keys_B, order.seed, raw.epoch)
            yield Batch(images_BCHW, raw.labels_B, rows_B, order.batch_size)


def every_batch(
    reader: Reader, batch_size: int, rank: int = 0, world: int = 1
) -> Generator[tuple[Batch, Tensor], None, None]:
    """All samples of a split in their order, once: this worker's part of each global batch, and a mask (B,).

    Every worker gets equally many batches of one shape. The last global batch is filled up with the last sample, where
    the mask is False. Raises IntegrityError, StoreError.
    """
    num = sum(reader.shard_sizes)
    rows = np.arange(rank, batch_size, world)
    rows_B = torch.from_numpy(rows).to(reader.device)
    starts = np.arange(0, num, batch_size)
    num_steps = reader.chunk_steps(len(rows))

    def chunks() -> Iterator[Chunk]:
        for at in range(0, len(starts), num_steps):
            yield Chunk(0, np.minimum(starts[at : at + num_steps, None] + rows, num - 1))

    with closing(reader.read(chunks())) as steps:
        for start, raw in zip(starts.tolist(), steps, strict=True):
            batch = Batch(to_unit(raw.images_BCHW), raw.labels_B, rows_B, batch_size)
            yield batch, rows_B < num - start
