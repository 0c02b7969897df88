"""Publishing a sample set, PNG and all, against the bare generator on as many cores, in images a second.

The two take turns, since the machine may have other work; the ratio is of the best turns.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from pipeline.artifacts import Run
from pipeline.latents import image_seed
from pipeline.store import Store, open_store
from tests.bench.evaluating.made import Kind, make_run
from tests.bench.rows import Against, Row, row
from trainers import families, onnx_export, sample, sampleset
from trainers.export import Sampler

MOST_OF_IT = ">= 0.9"


def rows(kinds: Sequence[Kind], count: int, rounds: int, folder: Path) -> list[Row]:
    """A row for each kind of network."""
    made = []
    for kind in kinds:
        store = open_store(f"file://{folder}/publishing-{kind.side}")
        run = make_run(store, kind)
        sampler = sample.opened_here(store.uri, run.ref, 1)
        onnx_seconds = _seconds_of_onnx(sampler)
        bare, ours = 0.0, 0.0
        for seed in range(rounds):
            bare = max(bare, count / _bare_seconds(sampler, count, seed))
            ours = max(ours, count / (_publishing_seconds(store, run, count, seed) - onnx_seconds))
        title = f"publish {count:,} samples of {kind.case.name}, {kind.side}x{kind.side}x{kind.channels}, PNG and all"
        peer = Against(f"the bare generator on {cores()} cores", bare)
        made.append(row(title, ours, "images/s", peer, MOST_OF_IT))
    return made


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def _bare_seconds(sampler: Sampler, count: int, seed: int) -> float:
    """Latents, network and bytes in as many threads as there are cores; nothing is kept."""
    size = sampleset.SHARD_IMAGES
    parts = [range(at, min(at + size, count)) for at in range(0, count, size)]

    def generate(part: range) -> None:
        torch.set_num_threads(1)
        for start in range(part.start, part.stop, sample.BATCH_IMAGES):
            indices = range(start, min(start + sample.BATCH_IMAGES, part.stop))
            z_BZ = families.latents([image_seed(seed, index) for index in indices], sampler.model.latent_size)
            sampler.images(z_BZ, torch.tensor([index % len(sampler.config.classes) for index in indices]))

    began = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(generate, parts))
    return time.perf_counter() - began


def _publishing_seconds(store: Store, run: Run, count: int, seed: int) -> float:
    began = time.perf_counter()
    sampleset.sample_run(store, run, count, seed)
    return time.perf_counter() - began


def _seconds_of_onnx(sampler: Sampler) -> float:
    """Once a set, whatever its size: not a part of the rate."""
    onnx_export.to_onnx(sampler, "warm")
    began = time.perf_counter()
    onnx_export.to_onnx(sampler, "here")
    return time.perf_counter() - began
