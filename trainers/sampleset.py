"""The sample set that is published with a run: its images in shards, a grid of the first, and the sampler as ONNX.

Shards are made where that is quickest: in threads of this process, or as Ray tasks on all nodes. Each image comes from
a seed that follows from its number, so that the set is the same, byte for byte, for any number of workers.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import __version__, ids, pictures, shards
from pipeline.artifacts import FileEntry, Run, SampleSet, file_entry
from pipeline.latents import image_seed
from pipeline.recipe import Recipe
from pipeline.records import commit, find
from pipeline.release import provenance
from pipeline.sections import ClusterSpec
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from pipeline.tasks import pool
from trainers import onnx_export, sample
from trainers.export import Sampler
from trainers.sample import Images

SHARD_IMAGES = 1024
GRID_IMAGES = 256  # at most, in a set's picture
HERE = ClusterSpec(launcher="local", engine="torch")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What a worker needs to make shards of a set."""

    store: str  # the URI
    run: str  # the ref
    folder: str  # the set's key
    seed: int
    threads: int


@dataclass(frozen=True)
class Part:
    """What one task is asked for: one shard."""

    order: Order
    rows: range


def sample_set(
    store: Store, recipe: Recipe, run: Run, settings: Settings | None = None, say: Say = lambda line: None
) -> SampleSet:
    """The sample set that a recipe publishes with a run."""
    release = recipe.release
    return sample_run(store, run, release.num_samples, release.seed, recipe.cluster, settings, say)


def sample_run(
    store: Store,
    run: Run,
    count: int,
    seed: int,
    cluster: ClusterSpec = HERE,
    settings: Settings | None = None,
    say: Say = lambda line: None,
) -> SampleSet:
    """Write a run's sample set, or return it where it is done. Raises IntegrityError.

    Shard by shard, so that memory does not grow with the set. The images of the grid are made first, which says how
    long the set takes, and whether Ray pays.
    """
    wanted = ids.samples_id(run.ref, count, seed)
    if done := find(store, f"samples/{wanted}", SampleSet):
        return done
    order = Order(store.uri, run.ref, f"samples/{wanted}", seed, cluster.threads_per_worker)
    parts = [Part(order, range(at, min(at + SHARD_IMAGES, count))) for at in range(0, count, SHARD_IMAGES)]
    sampler = sample.opened_here(order.store, order.run, order.threads)
    onnx = _put(store, order, onnx_export.MODEL, onnx_export.to_onnx(sampler, f"{store.uri}/{run.ref}"))
    began = time.perf_counter()
    shown = range(min(count, GRID_IMAGES))
    images, classes = _made(sampler, seed, shown)
    work_seconds = (time.perf_counter() - began) * count / len(shown)
    grid = _put(store, order, "grid.png", sample.grid_png(sampler, images, classes, run.ref))
    threads = max(1, len(os.sched_getaffinity(0)) // order.threads)
    with pool(cluster, work_seconds, threads, settings or Settings.from_environment(), say) as spread:
        made = dict(spread(write_part, parts))
    record = SampleSet(
        code_version=__version__,
        id=wanted,
        run=run.ref,
        count=count,
        seed=seed,
        made_with=sample.made_with(),
        files=(onnx, grid, *(made[part.rows] for part in parts)),
    )
    return commit(store, record)


def write_part(part: Part) -> tuple[range, FileEntry]:
    """Make one shard and write it to the store; says which it is and what was written."""
    order = part.order
    sampler = sample.opened_here(order.store, order.run, order.threads)
    images, classes = _made(sampler, order.seed, part.rows)
    data = _shard(sampler, images, classes, order.seed, part.rows, order.run)
    name = f"samples-{part.rows.start // SHARD_IMAGES:06d}.tar"
    return part.rows, _put(open_store(order.store), order, name, data)


def _made(sampler: Sampler, seed: int, rows: range) -> tuple[Images, list[int]]:
    """The images (B, H, W, C) of a set at these numbers, and their class indices."""
    classes = [index % max(1, len(sampler.config.classes)) for index in rows]
    seeds = [image_seed(seed, index) for index in rows]
    return np.concatenate(list(sample.generate(sampler, seeds, classes))), classes


def _put(store: Store, order: Order, name: str, data: bytes) -> FileEntry:
    store.put(f"{order.folder}/{name}", data)
    return file_entry(name, data)


def _shard(
    sampler: Sampler, images_NHWC: Images, classes: Sequence[int], seed: int, indices: range, origin: str
) -> bytes:
    """The images as a shard, each with its class and seed beside it and inside."""
    names = sampler.config.classes
    samples = []
    for image, label, index in zip(images_NHWC, classes, indices, strict=True):
        info: dict[str, str | int] = {"seed": image_seed(seed, index), **({"class": names[label]} if names else {})}
        png = pictures.encode_png(image, provenance.made_by(origin, **info))
        samples.append(shards.Sample.of(f"{index:09d}", png, label if names else None, info))
    return shards.write_shard(samples)
