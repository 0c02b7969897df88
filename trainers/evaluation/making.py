"""Make the samples of an evaluation and measure them where they are made: in this process, or as Ray tasks.

A task makes and measures one group of samples, whose seeds follow from their numbers, so that the figures are the same
for any number of workers.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Dataset
from pipeline.latents import image_seed
from pipeline.nodecache import NodeCache
from pipeline.records import load
from pipeline.sections import ClusterSpec, EvaluationSpec
from pipeline.settings import Settings
from pipeline.store import open_store
from pipeline.tasks import pool
from trainers import sample
from trainers.evaluation.eyes import Eyes, open_eyes
from trainers.evaluation.measured import MAX_KEPT, Measured, groups_of, joined, measure_group, spread_evenly
from trainers.export import Sampler


@dataclass(frozen=True)
class Order:
    """What a worker needs to make samples of a run and to look at them."""

    store: str  # the URI
    run: str  # refs
    dataset: str
    spec: str  # the recipe's section `evaluation` as JSON
    threads: int


@dataclass(frozen=True)
class Part:
    """What one task is asked for: one group of samples."""

    order: Order
    rows: range


def measure_samples(
    order: Order, width: int, cluster: ClusterSpec, settings: Settings, say: Callable[[str], None]
) -> Measured:
    """Make and measure all samples that the recipe asks for; on many workers where that is much work."""
    _opened(order)
    parts = [Part(order, rows) for rows in groups_of(_spec(order).num_samples, width)]
    began = time.perf_counter()
    found = dict([measure_part(parts[0])])
    work_seconds = (time.perf_counter() - began) * (len(parts) - 1)
    with pool(cluster, work_seconds, 1, settings, say) as run:
        found |= dict(run(measure_part, parts[1:]))
    return joined([found[part.rows] for part in parts])


def measure_part(part: Part) -> tuple[range, Measured]:
    """Make one group of samples, and say which it is and what was measured of it."""
    sampler, eyes = _opened(part.order)
    rows, spec = part.rows, _spec(part.order)
    classes = sample.classes_for(sampler, spec.num_samples)[rows.start : rows.stop]
    kept = spread_evenly(spec.num_samples, MAX_KEPT)
    return rows, measure_group(_batches(sampler, rows, classes, spec.seed), rows, kept, eyes)


def make(sampler: Sampler, numbers: list[int], num_samples: int, seed: int) -> Tensor:
    """Some of an evaluation's samples again, by their numbers: uint8 (N, C, H, W)."""
    classes = sample.classes_for(sampler, num_samples)
    seeds = [image_seed(seed, number) for number in numbers]
    images_NHWC = np.concatenate(list(sample.generate(sampler, seeds, [classes[number] for number in numbers])))
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)


def _batches(sampler: Sampler, rows: range, classes: list[int], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    seeds = [image_seed(seed, number) for number in rows]
    start = 0
    for images_BHWC in sample.generate(sampler, seeds, classes):
        stop = start + len(images_BHWC)
        yield torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), torch.tensor(classes[start:stop])
        start = stop


def _spec(order: Order) -> EvaluationSpec:
    return EvaluationSpec.model_validate_json(order.spec)


@lru_cache(maxsize=1)
def _opened(order: Order) -> tuple[Sampler, Eyes]:
    """The sampler and the eyes, once in a process."""
    sampler = sample.opened_here(order.store, order.run, order.threads)
    store = open_store(order.store)
    cache = NodeCache.of(Settings.from_environment(), lambda line: None)
    return sampler, open_eyes(store, load(store, order.dataset, Dataset), _spec(order), cache)
