"""What is said of samples held against real images: each figure with its interval and its floor.

The floor is the figure of training images in the samples' place, as many as there are samples (or training images):
what a generator that made real images would score.
"""

from dataclasses import replace

from torch import Tensor

from pipeline.artifacts import Figure
from trainers.evaluation.measured import Measured
from trainers.metrics import appearance, frechet, intervals, kernel, neighbours, two_sample
from trainers.metrics.classes import class_histogram_distance, label_agreement
from trainers.metrics.intervals import Estimate
from trainers.metrics.neighbours import neighbourhoods

UNITS = {
    "frechet_distance": "squared feature distance",
    "frechet_distance_unbiased": "squared feature distance, extrapolated to infinitely many images",
    "kernel_distance": "squared MMD",
    "precision": "share of samples",
    "recall": "share of real images",
    "density": "samples a neighbourhood of a real image",
    "coverage": "share of real images",
    "told_apart": "share of images that a classifier tells rightly to be real or not; 0.5 by chance",
    "sharpness": "times real images'",
    "diversity": "times real images' spread within a class",
    "class_histogram_distance": "total variation",
    "label_agreement": "share of samples",
}


def sample_figures(real: Measured, made: Measured, anchor: Measured, num_classes: int, seed: int) -> dict[str, Figure]:
    """Figures of samples against real images; `anchor` are training images. Raises MetricInputError."""
    found = _feature_estimates(real, made, seed) | _appearance_estimates(real, made, seed)
    floors = _feature_floors(real, anchor, seed) | _values(_appearance_estimates(real, anchor, seed))
    figures = {
        name: _figure(name, estimate, floors[name], len(made.features_KD), len(real.features_KD))
        for name, estimate in found.items()
    }
    for name in ("frechet_distance", "frechet_distance_unbiased", "sharpness"):  # of all images, not of the kept
        figures[name] = figures[name].model_copy(update={"num_samples": made.count, "num_real": real.count})
    return figures | _class_figures(real, made, anchor, num_classes, seed)


def _feature_estimates(real: Measured, made: Measured, seed: int) -> dict[str, Estimate]:
    distance = frechet.estimate(real.moments, made.moments, seed)
    features = real.features_KD, made.features_KD
    return {
        "frechet_distance": distance.distance,
        "frechet_distance_unbiased": distance.unbiased,
        "kernel_distance": kernel.estimate(*features, seed),
        **neighbours.estimates(*features, seed),
        "told_apart": intervals.mean(two_sample.told_apart(*features, seed), seed),
    }


def _feature_floors(real: Measured, anchor: Measured, seed: int) -> dict[str, float]:
    features = real.features_KD, anchor.features_KD
    distance = frechet.estimate(real.moments, anchor.moments, seed)
    near = neighbourhoods(*features)
    return {
        "frechet_distance": distance.distance.value,
        "frechet_distance_unbiased": distance.unbiased.value,
        "kernel_distance": kernel.kernel_distance(*features),
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
        "told_apart": float(two_sample.told_apart(*features, seed).mean()),
    }


def _appearance_estimates(real: Measured, made: Measured, seed: int) -> dict[str, Estimate]:
    spread_M, spread_N = (appearance.spread(one.features_KD, one.kept_classes) for one in (made, real))
    return {
        "sharpness": intervals.ratio_of_means(made.sharpness_N, real.sharpness_N, seed),
        "diversity": intervals.ratio_of_means(spread_M, spread_N, seed),
    }


def _class_figures(real: Measured, made: Measured, anchor: Measured, num_classes: int, seed: int) -> dict[str, Figure]:
    """Figures of the classes that are read; none where the dataset has no classes."""
    if made.read_N is None or anchor.read_N is None or real.read_N is None:
        return {}

    def distance(real_N: Tensor, read_M: Tensor) -> list[float]:
        return [class_histogram_distance(real_N, read_M, num_classes)]

    (histogram,) = intervals.subsampled(distance, real.classes_N, made.read_N, seed)
    histogram = replace(histogram, low=max(0.0, histogram.low))
    agreement = intervals.mean(label_agreement(made.read_N, made.classes_N), seed)
    floors = {
        "class_histogram_distance": distance(real.classes_N, anchor.read_N)[0],
        "label_agreement": float(label_agreement(real.read_N, real.classes_N).mean()),
    }
    estimates = {"class_histogram_distance": histogram, "label_agreement": agreement}
    return {name: _figure(name, estimate, floors[name], made.count, real.count) for name, estimate in estimates.items()}


def _values(estimates: dict[str, Estimate]) -> dict[str, float]:
    return {name: estimate.value for name, estimate in estimates.items()}


def _figure(name: str, found: Estimate, floor: float, num_samples: int, num_real: int) -> Figure:
    return Figure(
        value=found.value,
        unit=UNITS[name],
        num_samples=num_samples,
        num_real=num_real,
        low=found.low,
        high=found.high,
        floor=floor,
    )
