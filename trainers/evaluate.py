"""Measure a run against its dataset's held-out split.

Features and predicted classes come from the pipeline's own small network (`trainers.extractor`), trained on the
training split and stored with the dataset. A Frechet distance on them is comparable with others on the same features
only; it is no FID, whose features are those of the Inception network.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline import __version__, plan
from pipeline.artifacts import Dataset, Evaluation, Figure, Run, commit, find, load
from pipeline.nodecache import NodeCache
from pipeline.recipe import Recipe
from pipeline.settings import Settings
from pipeline.store import Store
from trainers import extractor, metrics, sample, stream
from trainers.export import Sampler
from trainers.extractor import Extractor
from trainers.families import Noise
from trainers.stream import Split

NEIGHBOURS = 3  # k of precision and recall, as Kynkaanniemi et al. 2019
DENSITY_NEIGHBOURS = 5  # k of density and coverage, as Naeem et al. 2020
BATCH_IMAGES = 256

Say = Callable[[str], None]


def evaluate(store: Store, recipe: Recipe, run: Run, settings: Settings, say: Say) -> Evaluation:
    """Every figure of the protocol for a run, or its evaluation where it is done. Raises UserError, IntegrityError."""
    wanted = plan.evaluation_id(recipe, run.ref)
    if done := find(store, f"evaluations/{wanted}", Evaluation):
        return done
    torch.set_num_threads(recipe.cluster.threads_per_worker)
    spec = recipe.evaluation
    dataset = load(store, run.dataset, Dataset)
    cache = NodeCache.of(settings, say)
    held_out = stream.read_split(store, dataset, spec.split, cache)
    say(f"evaluate {run.model}: features")
    features = extractor.load_or_train(store, dataset, lambda split: _tensors(store, dataset, split, cache))
    sampler = sample.open_sampler(store, run, torch.device("cpu"))
    say(f"evaluate {run.model}: {spec.num_samples:,} samples")
    classes = sample.classes_for(sampler, spec.num_samples)
    seeds = [sample.image_seed(spec.seed, index) for index in range(spec.num_samples)]
    batches = [torch.from_numpy(images) for images in sample.generate(sampler, seeds, classes)]
    made = torch.cat(batches).permute(0, 3, 1, 2)
    say(f"evaluate {run.model}: figures")
    figures = sample_figures(features, held_out, made, torch.tensor(classes), dataset, spec.seed)
    figures |= likelihood_figures(sampler, held_out, spec.seed)
    record = Evaluation(
        code_version=__version__,
        id=wanted,
        run=run.ref,
        dataset=dataset.ref,
        split=spec.split,
        protocol=plan.PROTOCOL,
        extractor=features.ref,
        extractor_note=features.note,
        seed=spec.seed,
        figures=figures,
    )
    return commit(store, record)


def _tensors(store: Store, dataset: Dataset, split: str, cache: NodeCache) -> tuple[Tensor, Tensor | None]:
    found = stream.read_split(store, dataset, split, cache)
    return found.images_NCHW, found.labels_N if dataset.classes else None


def sample_figures(
    features: Extractor, real: Split, made_NCHW: Tensor, made_classes_N: Tensor, dataset: Dataset, seed: int
) -> dict[str, Figure]:
    """Figures that compare generated images with real ones, and that read the class of conditional samples."""
    num_made, num_real = len(made_NCHW), len(real.images_NCHW)
    real_ND = features.features(real.images_NCHW)
    made_ND = features.features(made_NCHW)

    def figure(value: float, unit: str, interval: tuple[float, float] | tuple[None, None] = (None, None)) -> Figure:
        low, high = interval
        return Figure(value=value, unit=unit, num_samples=num_made, num_real=num_real, low=low, high=high)

    manifold = metrics.precision_recall(real_ND, made_ND, k=NEIGHBOURS)
    near = metrics.density_coverage(real_ND, made_ND, k=DENSITY_NEIGHBOURS)
    frechet_interval = metrics.half_sample_interval(metrics.frechet_distance, real_ND, made_ND, seed)
    kernel_interval = metrics.kernel_distance_interval(real_ND, made_ND, seed)
    figures = {
        "frechet_distance": figure(
            metrics.frechet_distance(real_ND, made_ND), "squared feature distance", frechet_interval
        ),
        "kernel_distance": figure(metrics.kernel_distance(real_ND, made_ND), "squared MMD", kernel_interval),
        "precision": figure(manifold.precision, "share of samples"),
        "recall": figure(manifold.recall, "share of real images"),
        "density": figure(near.density, "samples a neighbourhood of a real image"),
        "coverage": figure(near.coverage, "share of real images"),
    }
    if features.reads_classes:
        predicted_N = features.predict(made_NCHW)
        distance = metrics.class_histogram_distance(real.labels_N, predicted_N, len(dataset.classes))
        agrees_N = metrics.label_agreement(predicted_N, made_classes_N)
        interval = metrics.bootstrap_interval(agrees_N, seed)
        figures["class_histogram_distance"] = figure(distance, "total variation")
        figures["label_agreement"] = figure(agrees_N.mean().item(), "share of samples", interval)
    return figures


def likelihood_figures(sampler: Sampler, real: Split, seed: int) -> dict[str, Figure]:
    """Figures on held-out images that only this family has: a VAE's negative ELBO, say."""
    collected: dict[str, list[Tensor]] = {}
    for index, (batch, mask_B) in enumerate(stream.every_batch(real, BATCH_IMAGES)):
        noise = Noise(seed, index, 0, batch.rows_B, batch.global_size)
        with torch.no_grad():
            figures = sampler.model.image_figures(sampler.network, batch.images_BCHW, batch.labels_B, noise)
        for name, values_B in figures.items():
            collected.setdefault(name, []).append(values_B[mask_B])
    found = {}
    for name, parts in collected.items():
        values = torch.cat(parts).double()
        low, high = metrics.bootstrap_interval(values, seed)
        found[name] = Figure(
            value=values.mean().item(),
            unit="nats an image",
            num_samples=0,
            num_real=len(values),
            low=low,
            high=high,
        )
    return found
