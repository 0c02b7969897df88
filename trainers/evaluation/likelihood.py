"""Figures on held-out images that families with a likelihood have: ELBO, likelihood, rate, distortion, active units.

The floor is the same figure on training images, as many: how far the model is from them says how much it overfits.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Figure
from trainers.bounds import active_units
from trainers.evaluation.measured import Rows, images_of, spread_evenly
from trainers.export import Sampler
from trainers.families import DataShape, Noise, Observes, nats_to_bits_per_dimension
from trainers.metrics import intervals
from trainers.readers import Reader
from trainers.stream import to_unit

BATCH_IMAGES = 256
LIKELIHOOD_IMAGES = 1_000  # at most; each is decoded K times
BITS = {"negative_elbo": "negative_elbo_bits", "negative_log_likelihood": "negative_log_likelihood_bits"}

Values = dict[str, Tensor]  # per image, float64


def likelihood_figures(sampler: Sampler, test: Reader, training: Reader, seed: int, draws: int) -> dict[str, Figure]:
    """The figures that the family has, in nats an image, and in bits a dimension where that means something.

    `draws` is K of the importance-weighted likelihood (Burda et al. 2016).
    """
    num = sum(test.shard_sizes)
    rows = spread_evenly(sum(training.shard_sizes), num)
    found = image_values(sampler, test, np.arange(num), seed, draws)
    floors = image_values(sampler, training, rows, seed, draws)
    figures = {}
    for name, values in found.items():
        one = intervals.mean(values, seed)
        figures[name] = Figure(
            value=one.value,
            unit=f"nats an image, K = {draws}" if name == "negative_log_likelihood" else "nats an image",
            num_samples=0,
            num_real=len(values),
            low=one.low,
            high=one.high,
            floor=float(floors[name].mean()),
        )
    if observes := sampler.model.observes:
        figures |= {BITS[name]: _in_bits(figure, sampler, observes) for name, figure in figures.items() if name in BITS}
    units = _active_units(sampler, test, training, seed)
    return figures | units


def image_values(sampler: Sampler, reader: Reader, rows: Rows, seed: int, draws: int) -> Values:
    """The family's own figures of each of the images `rows`, and -log p(x) of LIKELIHOOD_IMAGES of them."""
    collected: dict[str, list[Tensor]] = {}
    model, network = sampler.model, sampler.network
    for images_BCHW, labels_B, noise in _batches(reader, rows, seed):
        with torch.no_grad():
            for name, values_B in model.image_figures(network, images_BCHW, labels_B, noise).items():
                collected.setdefault(name, []).append(values_B)
    for images_BCHW, labels_B, noise in _batches(reader, rows[spread_evenly(len(rows), LIKELIHOOD_IMAGES)], seed):
        log_likelihood_B = model.log_likelihood(network, images_BCHW, labels_B, noise, draws)
        if log_likelihood_B is None:
            break
        collected.setdefault("negative_log_likelihood", []).append(-log_likelihood_B)
    return {name: torch.cat(parts).double() for name, parts in collected.items()}


def _in_bits(figure: Figure, sampler: Sampler, observes: Observes) -> Figure:
    """Nats an image as bits a dimension."""
    config = sampler.config
    shape = DataShape(config.channels, config.height, config.width, len(config.classes))

    def bits(nats: float | None) -> float | None:
        return None if nats is None else nats_to_bits_per_dimension(nats, shape) + observes.bits

    unit = figure.unit.replace("nats an image", f"bits a dimension ({observes.what})")
    new = {"value": bits(figure.value), "low": bits(figure.low), "high": bits(figure.high), "floor": bits(figure.floor)}
    return figure.model_copy(update={**new, "unit": unit})


def _active_units(sampler: Sampler, test: Reader, training: Reader, seed: int) -> dict[str, Figure]:
    """How many latents the posterior uses (Burda et al. 2016); nothing for a family that infers none."""
    rows = spread_evenly(sum(test.shard_sizes), LIKELIHOOD_IMAGES)
    means_NZ = _posterior_means(sampler, test, rows, seed)
    floor_NZ = _posterior_means(sampler, training, spread_evenly(sum(training.shard_sizes), len(rows)), seed)
    if means_NZ is None or floor_NZ is None or len(means_NZ) < 2:
        return {}
    random = torch.Generator().manual_seed(seed)
    counts = [
        float(active_units(means_NZ[torch.randint(len(means_NZ), (len(means_NZ),), generator=random)]).sum())
        for _ in range(200)
    ]
    value = float(active_units(means_NZ).sum())
    low, high = intervals.tails(torch.tensor(counts))
    return {
        "active_units": Figure(
            value=value,
            unit=f"of {means_NZ.shape[1]} latents",
            num_samples=0,
            num_real=len(means_NZ),
            low=min(low, value),
            high=max(high, value),
            floor=float(active_units(floor_NZ).sum()),
        )
    }


def _posterior_means(sampler: Sampler, reader: Reader, rows: Rows, seed: int) -> Tensor | None:
    parts = []
    for images_BCHW, labels_B, _ in _batches(reader, rows, seed):
        with torch.no_grad():
            means_BZ = sampler.model.posterior_means(sampler.network, images_BCHW, labels_B)
        if means_BZ is None:
            return None
        parts.append(means_BZ)
    return torch.cat(parts)


def _batches(reader: Reader, rows: Rows, seed: int) -> Iterator[tuple[Tensor, Tensor, Noise]]:
    """Images in [0, 1], labels and noise."""
    for index, (images_BCHW, labels_B) in enumerate(images_of(reader, rows, BATCH_IMAGES)):
        noise = Noise(seed, index, 0, torch.arange(len(labels_B)), len(labels_B))
        yield to_unit(images_BCHW), labels_B, noise
