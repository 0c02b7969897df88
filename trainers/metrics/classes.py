"""Figures from the classes that a network reads from images."""

import torch
from torch import Tensor

from trainers.metrics.checks import MetricInputError


def class_histogram_distance(real_N: Tensor, fake_M: Tensor, num_classes: int) -> float:
    """Total variation in [0, 1] between the frequencies of two sets of classes in [0, num_classes)."""
    real_K, fake_K = (_class_shares(name, c, num_classes) for name, c in (("real", real_N), ("fake", fake_M)))
    return float((real_K - fake_K).abs().sum() / 2)


def label_agreement(predicted_M: Tensor, wanted_M: Tensor) -> Tensor:
    """1.0 where the class read from an image is the one asked for, else 0.0: (M,) float64; average it."""
    if predicted_M.shape != wanted_M.shape or predicted_M.ndim != 1 or not len(predicted_M):
        raise MetricInputError(
            "label agreement: expected two equally long rows of classes, "
            f"got {tuple(predicted_M.shape)} and {tuple(wanted_M.shape)}; read the class of every sample"
        )
    return (predicted_M == wanted_M).double()


def _class_shares(name: str, classes: Tensor, num_classes: int) -> Tensor:
    if classes.ndim != 1 or not len(classes) or classes.min() < 0 or classes.max() >= num_classes:
        seen = f"[{int(classes.min())}, {int(classes.max())}]" if classes.numel() else "none"
        raise MetricInputError(
            f"class histogram: expected {name} classes (N,) in [0, {num_classes}), got {seen} of shape "
            f"{tuple(classes.shape)}; read the class of every image with the dataset's own extractor"
        )
    return torch.bincount(classes, minlength=num_classes).double() / len(classes)
