"""The rows on streaming: first and later epochs of each size and layout, from disk and from SeaweedFS."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.bench import limits
from tests.bench.delay import Delayed
from tests.bench.feed import Feed, first_epochs, later_epochs
from tests.bench.measure import Rate, Timed, best_rates
from tests.bench.prepared import Pictures, Stored
from tests.bench.rows import Against, Limit, Row, rate_row, row
from tests.bench.sizes import Sizes

CLOCK = "images/s"
GATHER = "in-memory gather (TensorDataset)"
SELECT = "memory: index_select, floats"
FROM_STORE = ("28x28 block", "28x28 sample", "64x64 sample")
LATER = ("28x28 block", "64x64 sample", "256x256 sample")  # a cache holds one form, whatever the layout
ENCODED_IMAGES = 4_000  # are enough for a decoder's rate
DELAY_SECONDS = 0.05
DELAY_BATCH_SIZE = 250  # makes two lanes: the first batch does not wait for most shards of so small a dataset
NUM_WALLS = 3  # of which the best counts

Rates = dict[str, Rate]


def rows(
    pictures: Mapping[str, Pictures], datasets: Mapping[str, Stored], cache: Path, sizes: Sizes, peers: Rates
) -> list[Row]:
    """All rows on streaming."""
    ours = Rates()
    for name, one in pictures.items():  # size by size: the largest fills half a gigabyte
        passes = _in_memory(one, sizes.batch_size)
        for key, stored in datasets.items():
            if key.startswith(name):
                passes |= _streams(key, stored, cache, sizes.batch_size) | _decoders(key, stored)
        ours |= best_rates(passes, sizes.rule)
    made = _first_rows(ours, peers)
    made += _later_rows(ours, peers)
    made += _store_rows(ours, peers)
    return made + _delay_rows(datasets["64x64 sample"], cache, min(sizes.batch_size, DELAY_BATCH_SIZE))


# --- what is measured ---


def _in_memory(pictures: Pictures, batch_size: int) -> dict[str, Timed]:
    images_NCHW, labels_N = _tensors(pictures)
    return {
        f"{pictures.name} gather": limits.gathered(images_NCHW, labels_N, batch_size),
        f"{pictures.name} loader": limits.tensor_dataset(images_NCHW, labels_N, batch_size),
        f"{pictures.name} select": limits.selected(images_NCHW, labels_N, batch_size),
    }


def _tensors(pictures: Pictures) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(pictures.images)
    images_NCHW = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images_NCHW.contiguous(), torch.from_numpy(pictures.labels)


def _streams(key: str, stored: Stored, cache: Path, batch_size: int) -> dict[str, Timed]:
    """First and later epochs of a dataset, by both readers where that differs; from SeaweedFS the first."""
    disk, dataset = stored.stores["disk"], stored.dataset
    passes = {f"{key} first disk": first_epochs(disk, dataset, cache / f"{key} first", batch_size, resident=True)}
    if key in FROM_STORE:
        folder = cache / f"{key} store"
        passes[f"{key} first store"] = first_epochs(stored.stores["store"], dataset, folder, batch_size, resident=True)
        passes[f"{key} gets store"] = limits.bare_gets(stored, "store")
    if key in LATER:
        folder = cache / f"{key} later"
        passes[f"{key} later"] = later_epochs(disk, dataset, folder, batch_size, resident=True)
        passes[f"{key} later, any size"] = later_epochs(disk, dataset, folder, batch_size, resident=False)
    if dataset.layout == "block":
        folder = cache / f"{key} any size"
        passes[f"{key} first, any size"] = first_epochs(disk, dataset, folder, batch_size, resident=False)
        passes[f"{key} hash"] = limits.hashed(stored)
    return passes


def _decoders(key: str, stored: Stored) -> dict[str, Timed]:
    if stored.dataset.layout == "block":
        return {}
    encoded = limits.encoded_images(stored, ENCODED_IMAGES)
    is_jpeg = stored.dataset.spec["encoding"] == "jpg"
    return {f"{key} decoder": limits.jpeg_decoder(encoded) if is_jpeg else limits.png_decoder(encoded)}


# --- rows ---


def _first_rows(ours: Rates, peers: Rates) -> list[Row]:
    """First epochs from disk, by CPU time."""
    gather = Against(GATHER, ours["28x28 gather"].per_cpu_second)
    hashing = Limit("SHA-256 of the shards", ours["28x28 block hash"].per_cpu_second)
    png = Limit("decoder: cv2's PNG", ours["28x28 sample decoder"].per_cpu_second)
    jpeg = {size: _rate(ours, f"{size} sample decoder") for size in ("64x64", "256x256")}
    block, sample = "stream, 28x28 block, first epoch", "stream, 28x28 per sample, first epoch"
    blocks, samples = ours["28x28 block first disk"], ours["28x28 sample first disk"]
    stock, stock_blocks = _peer(peers, "webdataset", "28x28"), _peer(peers, "webdataset blocks", "28x28")
    made = [
        rate_row(block, blocks, gather, ">= 0.6", hashing),
        rate_row(block, blocks, stock, ">= 50", hashing),
        rate_row(block, blocks, stock_blocks, None, hashing),
        rate_row(f"{block}, reader for any size", ours["28x28 block first, any size"], gather, None, hashing),
        rate_row(sample, samples, stock, ">= 10", png),
    ]
    for size, bars in (("64x64", (">= 5", ">= 0.85")), ("256x256", (None, None))):
        title, rate = f"stream, {size} JPEG, first epoch", ours[f"{size} sample first disk"]
        limit = Limit("decoder: simplejpeg", jpeg[size])
        made.append(rate_row(title, rate, _peer(peers, "webdataset", size), bars[0], limit))
        made.append(rate_row(title, rate, Against("simplejpeg's bare rate", jpeg[size]), bars[1], limit))
    for size in ("28x28", "64x64", "256x256"):
        key = "28x28 block" if size == "28x28" else f"{size} sample"
        for name in ("mosaicml-streaming", "litdata"):
            if peer := _peer(peers, name, size):
                made.append(rate_row(f"stream, {key}, first epoch", ours[f"{key} first disk"], peer))
    return made


def _later_rows(ours: Rates, peers: Rates) -> list[Row]:
    """Later epochs, by CPU time."""
    made = []
    for key in LATER:
        size = key.split()[0]
        gather = Against(GATHER, _rate(ours, f"{size} gather"))
        memory = Limit(SELECT, _rate(ours, f"{size} select"))
        title = f"stream, {key}, later epochs"
        made.append(rate_row(title, ours[f"{key} later"], gather, ">= 0.7", memory))
        made.append(rate_row(f"{title}, reader for any size", ours[f"{key} later, any size"], gather, ">= 0.7", memory))
        loader = Against("DataLoader of a TensorDataset", _rate(ours, f"{size} loader"))
        made.append(rate_row(title, ours[f"{key} later"], loader))
    return made


def _store_rows(ours: Rates, peers: Rates) -> list[Row]:
    """First epochs from SeaweedFS on this machine, on the clock: its own CPU time is not ours."""
    made = []
    for key, name in (
        ("28x28 block", "webdataset blocks"),
        ("28x28 sample", "webdataset"),
        ("64x64 sample", "webdataset"),
    ):
        value = ours[f"{key} first store"].per_second
        found = peers.get(f"{name} store {key.split()[0]}")
        peer = Against(f"{name}, by curl", found.per_second) if found else None
        bare = Limit("store: bare GETs", ours[f"{key} gets store"].per_second)
        made.append(row(f"stream from SeaweedFS, {key}, first epoch", value, CLOCK, peer, None, bare))
    return made


def _delay_rows(stored: Stored, cache: Path, batch_size: int) -> list[Row]:
    """Epochs from a store that answers 50 ms later, against the same without; on the clock, once a batch has come."""
    walls: dict[float, list[tuple[float, float, float]]] = {0.0: [], DELAY_SECONDS: []}
    for number in range(NUM_WALLS):
        for seconds, found in walls.items():
            folder = cache / f"delay {seconds} {number}"
            store = Delayed(stored.stores["disk"], seconds)
            found.append(_walls(Feed(store, stored.dataset, folder, batch_size, resident=False)))
    prompt, late = ([min(times) for times in zip(*walls[seconds], strict=True)] for seconds in (0.0, DELAY_SECONDS))
    titles = ("the first batch", "first epoch after it", "later epoch")
    bars = (None, "<= 1.05", "<= 1.05")
    return [
        row(f"a store that adds 50 ms a request: {title}", slow, "s", Against("the same store, prompt", fast), bar)
        for title, slow, fast, bar in zip(titles, late, prompt, bars, strict=True)
    ]


def _walls(feed: Feed) -> tuple[float, float, float]:
    """Seconds to the first batch, from it to the end of the epoch, and of the next epoch."""
    begin = time.perf_counter()
    epoch = feed.epoch()
    next(epoch)
    first = time.perf_counter()
    for _ in epoch:
        pass
    second = time.perf_counter()
    for _ in feed.epoch():
        pass
    end = time.perf_counter()
    feed.close()
    return first - begin, second - first, end - second


def _rate(ours: Rates, name: str) -> float:
    return ours[name].per_cpu_second


def _peer(peers: Rates, name: str, size: str) -> Against | None:
    found = peers.get(f"{name} disk {size}")
    return Against(f"stock {name}" if name.startswith("webdataset") else name, found.per_cpu_second) if found else None
