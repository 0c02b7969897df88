"""Which numbers of a training step are bfloat16: those inside networks, where the cluster's `precision` says so.

Weights, gradients, Adam, the moving average and losses stay float32. Networks run under torch's autocast, which
computes matrix products and convolutions in bfloat16; `full` takes a computation out of it again, for what 8 bits of
mantissa cannot hold.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from pipeline.gpus import known


def of_networks(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> AbstractContextManager[object]:
    """What phases' losses are computed in; may be entered again and again."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def peak_flops(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> float | None:
    """FLOPs a second of the device at that precision by its maker; None of a CPU and of a GPU that is not known."""
    gpu = known(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    halved = precision != "fp32" and gpu.bf16_tflops
    return 1e12 * (gpu.bf16_tflops if halved else gpu.fp32_tflops)


def single(x: Tensor) -> Tensor:
    """What a network gives, in float32 where it is bfloat16: for sums, squares and differences."""
    return x.float() if x.dtype == torch.bfloat16 else x


def full(device: torch.device) -> AbstractContextManager[object]:
    """Float32, inside of what `of_networks` gives too."""
    if not torch.amp.is_autocast_available(device.type):  # shapes without values, of a cost's summary
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
