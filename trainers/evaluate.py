"""Measure a run against its dataset's held-out split: `atelier evaluate RECIPE --run URI`.

    run, dataset --> evaluations/<id>/: copies.png, then evaluation.json

Features come from a network that the pipeline trains on the training split, or from a file that the recipe names
(`trainers.extractors`). A Frechet distance on them is comparable with others of the same protocol only; it is no FID,
whose features are those of the Inception network.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline import __version__, ids
from pipeline.artifacts import Dataset, Evaluation, Figure, FileEntry, Release, Run, file_entry
from pipeline.nodecache import NodeCache
from pipeline.recipe import Recipe
from pipeline.records import commit, find, load
from pipeline.releases import alias_of, champion_of
from pipeline.settings import Settings
from pipeline.store import Store
from trainers import sample, stream
from trainers.evaluation import copying, making
from trainers.evaluation.eyes import Eyes, open_eyes
from trainers.evaluation.figures import sample_figures
from trainers.evaluation.likelihood import likelihood_figures
from trainers.evaluation.measured import Measured, images_of, measure_real, spread_evenly
from trainers.export import Sampler
from trainers.readers import Reader

COPIES = "copies.png"

Say = Callable[[str], None]


def evaluate(store: Store, recipe: Recipe, run: Run, settings: Settings, say: Say) -> Evaluation:
    """Every figure of the protocol for a run, or its evaluation where it is done.

    Where the recipe's alias names a release that was measured otherwise (of new data, say), that one is measured too,
    against the same images: else the gate could not compare them. It comes first: the run's own evaluation is what says
    that this stage is finished. Raises UserError, IntegrityError.
    """
    dataset = load(store, run.dataset, Dataset)
    name = recipe.release_name(run.model)
    if champion := champion_of(store, alias_of(store, name, recipe.release.alias)):
        _measure_champion(store, recipe, champion, run.model, dataset, settings, say)
    return measure(store, recipe, run, dataset, settings, say)


def _measure_champion(
    store: Store, recipe: Recipe, champion: Release, model: str, dataset: Dataset, settings: Settings, say: Say
) -> None:
    """Measure a champion against this dataset, where its own figures are of another protocol and it can be."""
    eyes = open_eyes(store, dataset, recipe.evaluation, NodeCache.of(settings, say))
    if champion.protocol == eyes.protocol(dataset, recipe.evaluation):
        return
    standing = f"{champion.name}@{champion.number}"
    if not _fits(load(store, champion.dataset, Dataset), dataset):
        say(f"evaluate {model}: {standing} makes other images or classes, and cannot be measured on these")
        return
    say(f"evaluate {model}: {standing} again, to compare")
    measure(store, recipe, load(store, champion.run, Run), dataset, settings, say)


def _fits(own: Dataset, other: Dataset) -> bool:
    """Whether what was trained on one dataset makes images that can be held against those of the other."""
    return (own.channels, own.height, own.width, own.classes) == (
        other.channels,
        other.height,
        other.width,
        other.classes,
    )


def measure(store: Store, recipe: Recipe, run: Run, dataset: Dataset, settings: Settings, say: Say) -> Evaluation:
    """Every figure for a run, against this dataset, or the evaluation where it is done."""
    wanted = ids.evaluation_id(recipe, run.ref, dataset.ref)
    if done := find(store, f"evaluations/{wanted}", Evaluation):
        return done
    torch.set_num_threads(recipe.cluster.threads_per_worker)
    spec = recipe.evaluation
    cache = NodeCache.of(settings, say)
    test, training = (
        stream.open_split(cache, store, dataset, split, torch.device("cpu")) for split in (spec.split, "train")
    )
    say(f"evaluate {run.model}: features")
    eyes = open_eyes(store, dataset, spec, cache)
    sampler = sample.open_sampler(store, run, torch.device("cpu"))
    real = measure_real(test, spread_evenly(sum(test.shard_sizes), sum(test.shard_sizes)), eyes)
    anchor = measure_real(training, spread_evenly(sum(training.shard_sizes), spec.num_samples), eyes)
    say(f"evaluate {run.model}: {spec.num_samples:,} samples")
    order = making.Order(store.uri, run.ref, dataset.ref, spec.model_dump_json(), recipe.cluster.threads_per_worker)
    made = making.measure_samples(order, eyes.width, recipe.cluster, settings, say)
    say(f"evaluate {run.model}: figures")
    figures = sample_figures(real, made, anchor, len(dataset.classes), spec.seed)
    figures |= likelihood_figures(sampler, test, training, spec.seed, spec.importance_samples)
    say(f"evaluate {run.model}: {sum(training.shard_sizes):,} training images for copies")
    copied, png = _copies(real, made, training, eyes, sampler, spec.num_samples, spec.seed)
    protocol = eyes.protocol(dataset, spec)
    record = Evaluation(
        code_version=__version__,
        id=wanted,
        run=run.ref,
        dataset=dataset.ref,
        protocol=protocol,
        extractor_note=eyes.features.note,
        figures=_stamped(figures | copied, protocol.id),
        files=(_put(store, f"evaluations/{wanted}/{COPIES}", png),),
    )
    return commit(store, record)


def _copies(
    real: Measured, made: Measured, training: Reader, eyes: Eyes, sampler: Sampler, num_samples: int, seed: int
) -> tuple[dict[str, Figure], bytes]:
    """The figures of memorisation, and the closest pairs as a PNG."""
    with copying.training_features(training, eyes) as features:
        figures, pairs = copying.copy_figures(real, made, features, seed)
    samples_NCHW = making.make(sampler, pairs.samples, num_samples, seed)
    return figures, copying.picture(samples_NCHW, _training_images(training, pairs.training))


def _training_images(training: Reader, rows: list[int]) -> Tensor:
    return torch.cat([images for images, _ in images_of(training, np.array(rows))])


def _stamped(figures: dict[str, Figure], protocol: str) -> dict[str, Figure]:
    """The figures, each with what it was measured by."""
    return {name: figure.model_copy(update={"protocol": protocol}) for name, figure in figures.items()}


def _put(store: Store, key: str, data: bytes) -> FileEntry:
    store.put(key, data)
    return file_entry(key.rpartition("/")[2], data)
