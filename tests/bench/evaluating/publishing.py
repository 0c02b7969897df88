"""Publishing a sample set, PNG and all, against the bare generator on as many cores, in images a second.

The two take turns, since the machine may have other work; the ratio is of the best turns.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from pipeline.latents import image_seed
from pipeline.settings import Settings
from pipeline.store import open_store
from pipeline.tasks import pool
from tests.bench.evaluating.made import Kind, make_run
from tests.bench.measure import Rate, whole
from tests.bench.rows import UNIT, Against, Row, row
from trainers import families, sample, sampleset
from trainers.export import Sampler

MOST_OF_IT = ">= 0.9"


def rows(kinds: Sequence[Kind], count: int, rounds: int, folder: Path) -> list[Row]:
    """A row for each kind of network."""
    made = []
    for kind in kinds:
        store = open_store(f"file://{folder}/publishing-{kind.side}")
        run = make_run(store, kind)
        sampler = sample.opened_here(store.uri, run.ref, 1)
        bare, ours = Rate(0, 0, 1), Rate(0, 0, 1)
        for seed in range(rounds):
            bare = max(bare, whole(count, partial(_bare, sampler, count, seed)), key=_per_second)
            order = sampleset.Order(store.uri, run.ref, f"made/{seed}", seed, 1)
            ours = max(ours, whole(count, partial(_write, order, count)), key=_per_second)
        title = f"publish {count:,} samples of {kind.case.name}, {kind.side}x{kind.side}x{kind.channels}, PNG and all"
        peer = f"the bare generator on {cores()} cores"
        made.append(row(title, ours.per_second, "images/s", Against(peer, bare.per_second), MOST_OF_IT))
        made.append(row(f"{title}, by CPU time", ours.per_cpu_second, UNIT, Against(peer, bare.per_cpu_second)))
    return made


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def _per_second(rate: Rate) -> float:
    return rate.per_second


def _write(order: sampleset.Order, count: int) -> None:
    """All shards of a set, as `sampleset.sample_run` has them made; its ONNX file and its grid come once a set."""
    with pool(sampleset.HERE, 0.0, cores(), Settings.from_environment(), lambda line: None) as run:
        list(run(sampleset.write_part, [sampleset.Part(order, rows) for rows in _shards(count)]))


def _shards(count: int) -> list[range]:
    size = sampleset.SHARD_IMAGES
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def _bare(sampler: Sampler, count: int, seed: int) -> None:
    """Latents, network and bytes in as many threads as there are cores; nothing is kept."""

    def generate(part: range) -> None:
        torch.set_num_threads(1)
        for start in range(part.start, part.stop, sample.BATCH_IMAGES):
            indices = range(start, min(start + sample.BATCH_IMAGES, part.stop))
            z_BZ = families.latents([image_seed(seed, index) for index in indices], sampler.model.latent_size)
            sampler.images(z_BZ, torch.tensor([index % len(sampler.config.classes) for index in indices]))

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(generate, _shards(count)))
