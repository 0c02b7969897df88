"""What a recipe would need on so many GPUs, before there are any: `atelier plan RECIPE --workers N --gpu h200`.

    plans = plan_recipe(recipe, Machine(gpu, workers=64))      # one a model
    console.print(*tables(plans))

Counted from the networks themselves (`trainers.summary`): parameters, FLOPs, activations, bytes of a checkpoint. By the
formulas of ZeRO (Rajbhandari et al. 2020, sections 5 and 7): memory by stage, bytes that each worker sends a step.
Taken as given, and said so: the share of the GPU's peak that the work reaches, and the network's bandwidth. What
`offload: cpu` costs in time is not counted.
Communication is added to the work, not hidden behind it: the engine reduces gradients after the backward pass.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.table import Table

from pipeline.gpus import Gpu
from pipeline.recipe import Recipe, check_models
from trainers import summary
from trainers.families import DataShape
from trainers.summary import MIB, PhaseCost, Summary

STAGES = (0, 1, 2, 3)
RUNTIME_BYTES = 1 << 30  # CUDA's context, cuDNN's workspace, the allocator's unused blocks: what a GPU has no room for


@dataclass(frozen=True)
class Machine:
    """What the recipe would run on."""

    gpu: Gpu
    workers: int = 1
    gpus_per_node: int = 8
    network_gb: float = 50.0  # 10^9 bytes a second that a worker sends while all do
    mfu: float = 0.35  # share of the peak that the work of a step reaches
    images: int | None = None  # of the training split; for how long the first epoch takes
    price: float | None = None  # of one GPU for an hour

    @property
    def nodes(self) -> int:
        """Machines with GPUs."""
        return math.ceil(self.workers / self.gpus_per_node)


@dataclass(frozen=True)
class StagePlan:
    """One ZeRO stage. Bytes are a worker's, seconds a step's."""

    zero: int
    kept: int
    activations: int
    sent: int
    compute_seconds: float
    network_seconds: float

    @property
    def memory(self) -> int:
        """Of the GPU, the runtime's own included."""
        return self.kept + self.activations + RUNTIME_BYTES

    @property
    def seconds(self) -> float:
        """Of a whole step."""
        return self.compute_seconds + self.network_seconds


@dataclass(frozen=True)
class ModelPlan:
    """One model of the recipe."""

    model: str
    machine: Machine
    batch_size: int
    steps: int
    checkpoint_every_steps: int
    precision: str  # of the networks
    cost: Summary  # of one worker's share, at ZeRO 0
    stages: tuple[StagePlan, ...]
    shard_images: int
    image_bytes: int  # of a decoded one

    @property
    def chosen(self) -> StagePlan:
        """The lowest stage that fits the GPU, which sends least; the last where none does."""
        return next((stage for stage in self.stages if self.fits(stage)), self.stages[-1])

    def fits(self, stage: StagePlan) -> bool:
        """Whether the GPU holds it."""
        return stage.memory <= self.machine.gpu.memory_gb * 10**9

    @property
    def hours(self) -> float:
        """Of the whole run, at the chosen stage."""
        return self.steps * self.chosen.seconds / 3600

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, both moments of Adam, the average: float32."""
        return sum(network.weights + network.adam + network.average for network in self.cost.networks)

    @property
    def price(self) -> float | None:
        """Of the whole run."""
        return None if self.machine.price is None else self.hours * self.machine.workers * self.machine.price

    @property
    def images_per_second(self) -> float:
        """Of all workers together."""
        return self.batch_size / self.chosen.seconds

    @property
    def store_rates(self) -> tuple[float, float]:
        """GET requests and bytes a second that the store must serve in the first epoch for training not to wait:
        every node reads every shard once, later epochs come from its cache. Bytes are those of pixels."""
        images = self.images_per_second * self.machine.nodes
        return images / self.shard_images, images * self.image_bytes

    def record(self) -> dict[str, Any]:
        """For a program."""
        requests, bytes_ = self.store_rates
        return {
            "model": self.model,
            "parameters": self.cost.parameters,
            "flops_per_step": self.cost.flops_per_image * self.batch_size,
            "checkpoint_bytes": self.checkpoint_bytes,
            "stages": [
                {"zero": stage.zero, "memory_bytes": stage.memory, "bytes_sent_per_step": stage.sent,
                 "compute_seconds": stage.compute_seconds, "network_seconds": stage.network_seconds,
                 "fits": self.fits(stage)}
                for stage in self.stages
            ],
            "zero": self.chosen.zero,
            "images_per_second": self.images_per_second,
            "hours": self.hours,
            "gpu_hours": self.hours * self.machine.workers,
            "price": self.price,
            "store_requests_per_second": requests,
            "store_bytes_per_second": bytes_,
        }  # fmt: skip


def plan_recipe(recipe: Recipe, machine: Machine, num_classes: int = 0) -> list[ModelPlan]:
    """A plan for each model. Raises RecipeError where the recipe cannot run on so many workers."""
    cluster = recipe.cluster.model_copy(update={"workers": machine.workers})
    check_models(recipe.model_copy(update={"cluster": cluster}))
    return [_plan(recipe, model, machine, num_classes) for model in recipe.models]


def _plan(recipe: Recipe, model: str, machine: Machine, num_classes: int) -> ModelPlan:
    spec, cluster, dataset = recipe.models[model], recipe.cluster, recipe.dataset
    shape = DataShape(dataset.channels, dataset.height, dataset.width, num_classes)
    halved = cluster.precision != "fp32" and bool(machine.gpu.bf16_tflops)
    offloaded = cluster.offload == "cpu"
    cost_at = partial(
        summary.summarise,
        spec.family,
        spec.options,
        shape,
        spec.batch_size,
        machine.workers,
        checkpoint_activations=cluster.checkpoint_activations,
    )
    peak = 1e12 * (machine.gpu.bf16_tflops if halved else machine.gpu.fp32_tflops)

    def stage(zero: int) -> StagePlan:
        cost = cost_at(zero=zero)
        activations = cost.activations // cluster.accumulate // (2 if halved else 1)
        sent = bytes_sent(cost, machine.workers, zero)
        return StagePlan(
            zero=zero,
            kept=sum(network.total - (network.adam if zero and offloaded else 0) for network in cost.networks),
            activations=activations,
            sent=sent,
            compute_seconds=cost.flops_per_step / (machine.workers * peak * machine.mfu),
            network_seconds=sent / (machine.network_gb * 1e9),
        )

    return ModelPlan(
        model=model,
        machine=machine,
        batch_size=spec.batch_size,
        steps=spec.steps,
        checkpoint_every_steps=spec.checkpoint_every_steps,
        precision="bf16" if halved else "fp32",
        cost=cost_at(zero=0),
        stages=tuple(stage(zero) for zero in STAGES),
        shard_images=dataset.resolved_shard_images,
        image_bytes=dataset.image_bytes,
    )


def bytes_sent(cost: Summary, workers: int, zero: int) -> int:
    """Bytes that each worker sends in a step of all phases, by ring algorithms.

    Stage 0 to 2: the gradients of the phase's network are reduced and its weights or gradients gathered, 2 times its
    size. Stage 3: the weights are gathered on the way forward and back, those of the networks that are held fixed
    too, and the gradients are reduced: 3 and 2 times.
    """
    size = {network.name: 4 * network.parameters for network in cost.networks}
    return round(sum(_moved(phase, size, zero) for phase in cost.phases) * (workers - 1) / workers)


def _moved(phase: PhaseCost, size: dict[str, int], zero: int) -> int:
    if zero < 3:
        return 2 * size[phase.network]
    return 3 * size[phase.network] + 2 * sum(bytes_ for name, bytes_ in size.items() if name != phase.network)


# --- For people ---


def tables(plans: list[ModelPlan]) -> Iterator[Table]:
    """Two tables a model: the ZeRO stages, and what the run takes at the lowest one that fits."""
    for plan in plans:
        yield _stages(plan)
        yield _run(plan)


def _stages(plan: ModelPlan) -> Table:
    machine = plan.machine
    made = Table(
        title=f"{plan.model}: {machine.workers:,} x {machine.gpu.name}, {plan.precision}", title_justify="left"
    )
    made.add_column("ZeRO")
    for name in ("networks, MiB", "activations (estimated)", "a GPU in all", "fits", "sent a step, MiB", "step, ms"):
        made.add_column(name, justify="right")
    for stage in plan.stages:
        fits = "yes" if plan.fits(stage) else "no"
        sizes = [f"{size / MIB:,.0f}" for size in (stage.kept, stage.activations, stage.memory)]
        sent, step = f"{stage.sent / MIB:,.1f}", f"{1e3 * stage.seconds:,.2f}"
        made.add_row(str(stage.zero), *sizes, fits, sent, step, style="bold" if stage is plan.chosen else "")
    return made


def _run(plan: ModelPlan) -> Table:
    machine, stage = plan.machine, plan.chosen
    made = Table(show_header=False, title=f"{plan.model} at ZeRO {stage.zero}", title_justify="left")
    made.add_row("parameters", f"{plan.cost.parameters:,}")
    made.add_row("work of a step", f"{plan.cost.flops_per_image * plan.batch_size / 1e12:,.3f} TFLOP")
    made.add_row(
        "step",
        f"{1e3 * stage.compute_seconds:,.2f} ms of work at {machine.mfu:.0%} of the peak (assumed), "
        f"{1e3 * stage.network_seconds:,.2f} ms of network at {machine.network_gb:g} GB/s (assumed)",
    )
    made.add_row("images/s", f"{plan.images_per_second:,.0f}")
    made.add_row(
        "run", f"{plan.steps:,} steps in {_duration(plan.hours)}, {plan.hours * machine.workers:,.1f} GPU-hours"
    )
    priced = plan.price is not None
    made.add_row("cost", f"{plan.price:,.2f} at {machine.price:g} a GPU-hour" if priced else "told with --price")
    requests, bytes_ = plan.store_rates
    first = f" ({_duration(machine.images / plan.images_per_second / 3600)})" if machine.images else ""
    served = f"{requests:,.2f} GET/s, about {bytes_ / 1e6:,.0f} MB/s to {machine.nodes:,} nodes"
    made.add_row(f"store, first epoch{first}", f"{served}; later epochs read their caches")
    every = plan.checkpoint_every_steps * stage.seconds
    made.add_row("checkpoint", f"{plan.checkpoint_bytes / MIB:,.0f} MiB every {_duration(every / 3600)}")
    return made


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:,.1f} min" if hours >= 1 / 60 else f"{3600 * hours:,.1f} s"
