"""Squared distances between two sets of rows, a block at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 16 * 2**20  # of one block of distances


def squared_distances(x_ND: Tensor, y_MD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared Euclidean distances, a block (B, M) of rows of x at a time, with the rows it is of."""
    y_squared_M = y_MD.square().sum(1)
    for rows in blocks(len(x_ND), len(y_MD)):
        x_BD = x_ND[rows]
        yield rows, torch.addmm(y_squared_M + x_BD.square().sum(1, keepdim=True), x_BD, y_MD.T, alpha=-2)


def blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices over the rows, so that a float64 block of them and all columns stays within BLOCK_BYTES."""
    height = max(1, BLOCK_BYTES // (8 * num_columns))
    for start in range(0, num_rows, height):
        yield slice(start, min(start + height, num_rows))


def centred(real_ND: Tensor, fake_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets moved by one vector to about 0: the same distances, with fewer digits lost in them."""
    middle_D = real_ND.mean(0)
    return real_ND - middle_D, fake_MD - middle_D


def rounding_room(points_ND: Tensor) -> Tensor:
    """How far a squared distance of these points may be off, a scalar.

    |x|^2 + |y|^2 - 2 x.y of two equal points is not exactly 0.
    """
    return 64 * torch.finfo(torch.float64).eps * points_ND.square().sum(1).max()
