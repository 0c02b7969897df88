"""Sets of features for the tests of the figures."""

import torch
from torch import Tensor


def normal(rows: int, width: int, seed: int) -> Tensor:
    """Standard normal features, float64."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_sets(rows: int = 150, width: int = 6) -> tuple[Tensor, Tensor]:
    """Overlapping clouds of different shape and size, neither inside the other."""
    mix = normal(width, width, 2) / width**0.5
    return normal(rows, width, 0), 0.4 + normal(rows + 37, width, 1) @ (mix + 0.6 * torch.eye(width))
