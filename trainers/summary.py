"""What a model costs, before its first step: parameters, FLOPs and memory, by network and phase.

    summary = summarise(spec.family, spec.options, shape, spec.batch_size)
    console.print(table(summary))       # or, in one line, line(summary)

The model is built and one step of each phase is run on the `meta` device: shapes without values, so that the largest
network takes a second and no memory. What is counted there is what a real step does.

FLOPs are those of matrix products and convolutions, a multiplication and an addition as two; elementwise work and
resampling are left out, as in every published MFU (Chowdhery et al. 2022, appendix B).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from trainers import families
from trainers.families import Batch, DataShape, Model, Noise, Phase
from trainers.networks.recomputing import recompute

META = torch.device("meta")
MIB = 1 << 20
COUNTED_STEP = 1  # of the run: past the one that a warm-up may treat apart


@dataclass(frozen=True)
class NetworkCost:
    """What one network keeps on each worker from step to step, in bytes."""

    name: str
    parameters: int
    weights: int  # buffers included
    gradients: int
    adam: int  # both moments; with ZeRO also its own fp32 copy of the weights
    average: int  # the exponential moving average, of the sampling network only

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.adam + self.average


@dataclass(frozen=True)
class PhaseCost:
    """What one phase of a step takes."""

    name: str
    network: str
    flops_per_image: float
    activations: int  # bytes a worker, an estimate: what autograd keeps for the backward pass


@dataclass(frozen=True)
class Summary:
    """What a model costs on each of `workers` workers."""

    networks: tuple[NetworkCost, ...]
    phases: tuple[PhaseCost, ...]
    batch_size: int  # over all workers
    workers: int
    zero: int

    @property
    def parameters(self) -> int:
        """Of all networks."""
        return sum(network.parameters for network in self.networks)

    @property
    def flops_per_image(self) -> float:
        """Of a whole training step, all phases."""
        return sum(phase.flops_per_image for phase in self.phases)

    @property
    def flops_per_step(self) -> float:
        """Over all workers."""
        return self.flops_per_image * self.batch_size

    @property
    def activations(self) -> int:
        """Bytes a worker of the phase that keeps most: the phases take their memory in turn. An estimate."""
        return max(phase.activations for phase in self.phases)

    @property
    def memory(self) -> int:
        """Bytes a worker: what all networks keep, and the activations' estimate."""
        return sum(network.total for network in self.networks) + self.activations


def summarise(
    family: str,
    options: Mapping[str, Any],
    shape: DataShape,
    batch_size: int,
    workers: int = 1,
    zero: int = 0,
    *,
    checkpoint_activations: bool = False,
) -> Summary:
    """Count a model's cost in fp32. `zero` is DeepSpeed's stage, 0 for the plain engine; `checkpoint_activations`
    counts what is computed twice twice, which an MFU does not.

    Raises RecipeError where the family refuses the options, or has no blocks to compute twice.
    """
    config = families.parse_config(family, options, "model")
    with META:
        model = families.build(family, config, shape, seed=0)
        if checkpoint_activations:
            recompute(model.networks)
        batch = _batch(shape, max(1, batch_size // workers))
        networks = tuple(
            network_cost(name, network, name == model.sampler, workers, zero)
            for name, network in model.networks.items()
        )
        phases = tuple(_phase_cost(model, phase, batch) for phase in model.phases)
    return Summary(networks, phases, batch_size, workers, zero)


def network_cost(name: str, network: nn.Module, is_sampler: bool, workers: int = 1, zero: int = 0) -> NetworkCost:
    """What a network keeps on each worker (Rajbhandari et al. 2020, section 3, for fp32).

    ZeRO 1 spreads Adam's state over the workers, 2 the gradients too, 3 also the weights. From 1 on, DeepSpeed keeps
    the optimizer's own fp32 copy of the weights beside it, spread as well.
    """
    parameters = sum(_bytes(parameter) for parameter in network.parameters())
    buffers = sum(_bytes(buffer) for buffer in network.buffers())
    part = [parameters if zero < stage else parameters // workers for stage in (1, 2, 3)]
    return NetworkCost(
        name=name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weights=part[2] + buffers,
        gradients=part[1],
        adam=part[0] * (3 if zero else 2),
        average=parameters + buffers if is_sampler else 0,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# --- One step without values ---


class _ShapeNoise(Noise):
    """Noise of the right shapes."""

    def __init__(self, rows_B: Tensor) -> None:
        self.rows_B, self.global_size = rows_B, len(rows_B)

    def normal(self, *shape: int) -> Tensor:
        return torch.empty(self.global_size, *shape, device=META)

    def uniform(self, *shape: int) -> Tensor:
        return torch.empty(self.global_size, *shape, device=META)

    def integers(self, high: int) -> Tensor:
        return torch.empty(self.global_size, dtype=torch.int64, device=META)


def _batch(shape: DataShape, size: int) -> Batch:
    images_BCHW = torch.empty(size, shape.channels, shape.height, shape.width)
    integers_B = torch.empty(size, dtype=torch.int64)
    return Batch(images_BCHW, integers_B, integers_B, size)


def _phase_cost(model: Model, phase: Phase, batch: Batch) -> PhaseCost:
    for name, network in model.networks.items():
        network.requires_grad_(name == phase.network)
    counted, saved = CountFlops(), CountSaved()
    with counted, saved:
        loss, _ = phase.loss(model.networks, batch, _ShapeNoise(batch.rows_B), COUNTED_STEP)
    with counted:
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    weights = {_storage(tensor)[0] for network in model.networks.values() for tensor in network.parameters()}
    kept = sum(size for storage, size in saved.bytes_of.items() if storage not in weights)
    return PhaseCost(phase.name, phase.network, counted.total / len(batch.rows_B), kept)


def _storage(tensor: Tensor) -> tuple[int, int]:
    """What tells a storage from others while it lives, and its bytes (`data_ptr` is 0 for all without values)."""
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()


class CountFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Adds up the FLOPs of what runs inside, forward and backward.

    By torch's own formulas, but for two things that `FlopCounterMode` cannot do: an `autograd.grad` with respect to an
    image (a gradient penalty's), which its module tracker refuses, and grouped convolutions' backward pass, whose
    weight's part it counts once too often for every group.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket is torch.ops.aten.convolution_backward:
            self.total += _convolution_backward_flops(*args)
        elif formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _convolution_backward_flops(grad_out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Each gradient that is asked for, of the input and of the weight, costs what the forward pass does."""
    transposed, wanted = rest[4], rest[7]
    forward: int = conv_flop_count(list(x.shape), list(weight.shape), list(grad_out.shape), transposed=transposed)
    return forward * sum(map(int, wanted[:2]))


class CountSaved(saved_tensors_hooks):
    """The storages that autograd keeps for the backward pass, and their bytes."""

    def __init__(self) -> None:
        self.bytes_of: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage, size = _storage(tensor)
            self.bytes_of[storage] = size
            return tensor

        super().__init__(pack, lambda tensor: tensor)


# --- For people ---


def table(summary: Summary) -> Group:
    """The summary as two tables, of what the networks keep and of what the phases of a step take."""
    each = f", a worker of {summary.workers}" if summary.workers > 1 else ""
    kept = _columns(f"Networks, fp32, MiB{each}", "parameters", "weights", "gradients", "Adam", "average", "all")
    for network in summary.networks:
        held = (network.weights, network.gradients, network.adam, network.average, network.total)
        kept.add_row(network.name, f"{network.parameters:,}", *map(_mib, held))
    taken = _columns(f"A step of {summary.batch_size:,} images", "GFLOP", f"activations, MiB{each} (estimated)")
    for phase in summary.phases:
        taken.add_row(f"{phase.name} phase", _giga(phase.flops_per_image * summary.batch_size), _mib(phase.activations))
    taken.add_row("all", _giga(summary.flops_per_step), _mib(summary.activations), style="bold")
    return Group(kept, taken, f"memory of the networks and the largest phase: {_mib(summary.memory)} MiB{each}")


def _columns(title: str, *names: str) -> Table:
    made = Table(title=title, title_justify="left")
    made.add_column("", overflow="fold")
    for name in names:
        made.add_column(name, justify="right")
    return made


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.2f}"


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"


def line(summary: Summary) -> str:
    """The summary in one line, for a log."""
    networks = ", ".join(f"{network.name} {network.parameters / 1e6:.2f} M" for network in summary.networks)
    return (
        f"{networks} parameters; {summary.flops_per_step / 1e9:,.1f} GFLOP a step of {summary.batch_size:,} images; "
        f"about {summary.memory / MIB:,.0f} MiB a worker"
    )
