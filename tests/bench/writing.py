"""Writing: shards from images in memory, and an ingest from a folder of files to the finished dataset."""

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np

from pipeline.artifacts import file_entry
from pipeline.decoders import encode_image
from pipeline.ingest import ingest
from pipeline.shards import Block, Sample, write_blocks, write_shard
from tests.bench import limits
from tests.bench.measure import Rate, Rule, Timed, best_rates, whole
from tests.bench.prepared import Pictures, file_store, folder_recipe
from tests.bench.rows import Against, Limit, Row, rate_row, row

SHARD_IMAGES = 8192
BLOCK_IMAGES = 512


def rates(pictures: Pictures, folder: Path, rule: Rule) -> dict[str, Rate]:
    """Our rates and their limits, by name."""
    block_bytes = _block_shard(pictures, 0, min(SHARD_IMAGES, len(pictures.images)))
    num = min(SHARD_IMAGES, len(pictures.images))
    files = sorted(pictures.files.glob("*/*"))
    passes = {
        "write blocks": Timed(lambda: _written_shards(pictures, folder / "blocks", block=True)),
        "write samples": Timed(lambda: _written_shards(pictures, folder / "samples", block=False)),
        "flushed file": limits.flushed_file(folder / "bare.tar", block_bytes, num),
        "png encoder": limits.png_encoder(pictures.images),
        "png files": limits.png_files(files),
    }
    return best_rates(passes, rule)


def ingest_rate(pictures: Pictures, folder: Path, rounds: int) -> Rate:
    """The best of some whole ingests into empty stores, by CPU time."""
    recipe = folder_recipe("grey28_timed", pictures, layout="block")
    found = []
    for number in range(rounds):
        place = folder / f"ingest-{number}"
        found.append(whole(len(pictures.images), lambda place=place: ingest(file_store(place), recipe)))  # type: ignore[misc]
        shutil.rmtree(place)
    return max(found, key=lambda rate: rate.per_cpu_second)


def rows(ours: dict[str, Rate], ingested: Rate, peers: dict[str, Rate]) -> list[Row]:
    """The table's rows on writing."""
    writer = _against("ShardWriter, PNG", peers.get("ShardWriter png"))
    loop = _against("loop of PIL, resize, ShardWriter", peers.get("ingest loop"))
    flushed = Limit("disk: the same bytes, flushed", ours["flushed file"].per_cpu_second)
    encoder = Limit("encoder: cv2's PNG", ours["png encoder"].per_cpu_second)
    decoder = Limit("decoder: read the files, cv2's PNG", ours["png files"].per_cpu_second)
    blocks, samples = ours["write blocks"], ours["write samples"]
    made = [
        rate_row("write shards, 28x28 block", blocks, writer, ">= 40", flushed),
        rate_row("write shards, 28x28 per sample (PNG)", samples, writer, None, encoder),
        rate_row("ingest a folder of 28x28 PNG, end to end", ingested, loop, ">= 5", decoder),
        row("ingest a folder of 28x28 PNG, on the clock", ingested.per_second, "images/s"),
    ]
    for name in ("mosaicml-streaming", "litdata"):
        if f"{name} write 28x28" in peers:
            theirs = Against(f"{name}'s writer", peers[f"{name} write 28x28"].per_cpu_second)
            made.append(rate_row("write shards, 28x28 block", blocks, theirs))
    return made


def _against(name: str, rate: Rate | None) -> Against | None:
    return Against(name, rate.per_cpu_second) if rate else None


def _written_shards(pictures: Pictures, folder: Path, *, block: bool) -> Generator[int]:
    """Shards in a store, with what a record says of them."""
    store = file_store(folder)
    for start in range(0, len(pictures.images), SHARD_IMAGES):
        stop = min(start + SHARD_IMAGES, len(pictures.images))
        data = _block_shard(pictures, start, stop) if block else _sample_shard(pictures, start, stop)
        entry = file_entry(f"{start}.tar", data)
        store.put(entry.name, data)
        yield stop - start


def _block_shard(pictures: Pictures, start: int, stop: int) -> bytes:
    return write_blocks(_blocks(pictures, start, stop))


def _blocks(pictures: Pictures, start: int, stop: int) -> Iterator[Block]:
    """Blocks of images with made-up names, as ingest has them at hand."""
    images_NHWC = pictures.images.reshape(len(pictures.images), pictures.side, pictures.side, pictures.channels)
    for low in range(start, stop, BLOCK_IMAGES):
        numbers = range(low, min(low + BLOCK_IMAGES, stop))
        part = slice(numbers.start, numbers.stop)
        names = [f"7/{number:07d}.png" for number in numbers]
        digests = ["0123456789abcdef" * 4] * len(numbers)
        keys_N = np.arange(numbers.start, numbers.stop, dtype=np.uint64)
        yield Block(images_NHWC[part], keys_N, pictures.labels[part], names, digests)


def _sample_shard(pictures: Pictures, start: int, stop: int) -> bytes:
    return write_shard(_samples(pictures, start, stop))


def _samples(pictures: Pictures, start: int, stop: int) -> Iterator[Sample]:
    images_NHWC = pictures.images.reshape(len(pictures.images), pictures.side, pictures.side, pictures.channels)
    for number in range(start, stop):
        info = {"name": f"7/{number:07d}.png", "sha256": "0123456789abcdef" * 4}
        encoded = encode_image(images_NHWC[number], "png", 95)
        yield Sample.of(f"{number:020d}", encoded, int(pictures.labels[number]), info)
