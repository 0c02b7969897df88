"""What changes while a run trains, and how one step changes it."""

from collections.abc import Callable

import torch
from torch import nn

from pipeline.recipe import ModelSpec
from trainers import families, stream
from trainers.checkpoints import Checkpoint
from trainers.engine import Engine
from trainers.families import Adam, Batch, Model, Noise
from trainers.meter import Meter
from trainers.task import Place, Task

EMA_RAMP = 0.05  # the half-life is at most this share of the images seen so far (Karras et al. 2022, section C)

MakeEngine = Callable[[nn.Module, Adam], Engine]


class State:
    """Networks in their engines, the moving average, the log."""

    def __init__(self, task: Task, place: Place, make_engine: MakeEngine) -> None:
        spec = task.spec
        shape = stream.data_shape(task.dataset)
        config = families.parse_config(spec.family, spec.options, f"models.{task.model}")
        self.augment = config.augment
        self.model: Model = families.build(spec.family, config, shape, spec.seed)
        self.engines = {
            name: make_engine(network.to(place.device), self.model.optimizers[name])
            for name, network in self.model.networks.items()
        }
        self.networks = {name: engine.module for name, engine in self.engines.items()}
        self.ema = {name: t.detach().clone() for name, t in self.networks[self.model.sampler].state_dict().items()}
        self.metrics: list[dict[str, float]] = []
        self.step = 0

    def checkpoint(self) -> Checkpoint:
        """Everything, whole. Collective: every worker calls it."""
        tensors = {f"ema/{name}": tensor for name, tensor in self.ema.items()}
        for network, engine in self.engines.items():
            tensors |= {f"{network}/{name}": t for name, t in engine.module.state_dict().items()}
            tensors |= {f"optimizer/{network}/{name}": t for name, t in engine.optimizer_state().items()}
        return Checkpoint(self.step, tensors, list(self.metrics))

    def restore(self, saved: Checkpoint) -> None:
        """Become what the checkpoint says. Collective."""
        for network, engine in self.engines.items():
            engine.module.load_state_dict(saved.part(network))
            engine.parameters_changed()
            engine.load_optimizer_state(saved.part(f"optimizer/{network}"))
        for name, tensor in saved.part("ema").items():
            self.ema[name].copy_(tensor)
        self.metrics = saved.metrics
        self.step = saved.step

    def update_ema(self, batch_size: int, half_life_images: int) -> None:
        """Move the average towards the sampling network's weights."""
        images = self.step * batch_size
        half_life = min(half_life_images, max(images * EMA_RAMP, 1e-8))
        weight = 1 - 0.5 ** (batch_size / half_life)
        source = self.networks[self.model.sampler].state_dict()
        torch._foreach_lerp_(list(self.ema.values()), [source[name] for name in self.ema], weight)


def take_step(state: State, batch: Batch, spec: ModelSpec, place: Place, meter: Meter) -> None:
    """Run the phases on one batch. Each worker's mean counts by its share of the global batch."""
    share = len(batch.rows_B) * place.world / batch.global_size
    for index, phase in enumerate(state.model.phases):
        for name, network in state.networks.items():
            network.requires_grad_(name == phase.network)
        noise = Noise(spec.seed, state.step, index, batch.rows_B, batch.global_size)
        loss, metrics = phase.loss(state.networks, batch, noise, state.step)
        meter.add(phase.name, loss, metrics, share / place.world)
        lr = state.model.optimizers[phase.network].lr_at(state.step, spec.steps)
        state.engines[phase.network].step(loss * share if share != 1 else loss, lr)
