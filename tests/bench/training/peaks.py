"""What this machine can do at best, measured bare on one thread: products, copies."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional

ROUNDS = 8
COPIED_BYTES = 256 << 20


def best_seconds(function: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The quickest of some calls."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begin)
    return best


@torch.no_grad()
def flops_per_second() -> float:
    """The faster of two products in fp32: of matrices, and the convolution's, which another library computes.

    (On an AVX-512 machine of AMD's the second reached twice the first: MKL has no such kernels for it.)
    """
    size = 1024
    a, b = torch.rand(size, size), torch.rand(size, size)
    images, channels, side = 16, 128, 14
    x, w = torch.rand(images, channels, side, side), torch.rand(channels, channels, 3, 3)
    product = 2 * size**3 / best_seconds(lambda: a @ b)
    convolution = 2 * images * side**2 * 9 * channels**2 / best_seconds(lambda: functional.conv2d(x, w, padding=1))
    return max(product, convolution)


def copied_bytes_per_second() -> float:
    """From memory to memory that is used the first time, as a snapshot's."""
    source = torch.zeros(COPIED_BYTES // 4).add_(1)
    return COPIED_BYTES / best_seconds(source.clone)
