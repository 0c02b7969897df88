"""What changes while a run trains, and how one step changes it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.sections import ModelSpec
from trainers import families, stream
from trainers.checkpoints import Checkpoint
from trainers.engine import Engine
from trainers.families import Adam, Batch, Model, Noise
from trainers.meter import Meter
from trainers.networks.recomputing import recompute
from trainers.precision import of_networks
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
        cluster = task.recipe.cluster
        self.accumulate = cluster.accumulate
        self._precision = of_networks(cluster.precision, place.device)
        self.model: Model = families.build(spec.family, config, shape, spec.seed)
        if cluster.checkpoint_activations:
            recompute(self.model.networks)
        if cluster.compile:
            for network in self.model.networks.values():
                network.compile()
        self.engines = {
            name: make_engine(network.to(place.device), self.model.optimizers[name])
            for name, network in self.model.networks.items()
        }
        self.networks = {name: engine.module for name, engine in self.engines.items()}
        self._parameters = {name: list(network.parameters()) for name, network in self.networks.items()}
        self._averaged = self.engines[self.model.sampler]
        self._average = {name: tensor.detach().clone() for name, tensor in self._averaged.shards().items()}
        self.ema = self.average()
        self.metrics: list[dict[str, float]] = []
        self.step = 0

    def average(self) -> dict[str, Tensor]:
        """The sampling network's moving average, whole. Collective: every worker calls it.

        `ema` is that too, but where parameters are split over workers (ZeRO-3) only as of the last checkpoint.
        """
        return self._averaged.gather(self._average)

    def checkpoint(self) -> Checkpoint:
        """Everything, whole. Collective."""
        self.ema = self.average()
        tensors = {f"ema/{name}": tensor for name, tensor in self.ema.items()}
        for network, engine in self.engines.items():
            tensors |= {f"{network}/{name}": t for name, t in engine.gather(engine.shards()).items()}
            tensors |= {f"optimizer/{network}/{name}": t for name, t in engine.optimizer_state().items()}
        return Checkpoint(self.step, tensors, list(self.metrics))

    def restore(self, saved: Checkpoint) -> None:
        """Become what the checkpoint says. Collective."""
        for network, engine in self.engines.items():
            engine.load_weights(saved.part(network))
            engine.load_optimizer_state(saved.part(f"optimizer/{network}"))
        for name, tensor in self._averaged.split(saved.part("ema")).items():
            self._average[name].copy_(tensor)
        self.ema = self.average()
        self.metrics = saved.metrics
        self.step = saved.step

    def begin_with(self, weights: Mapping[str, dict[str, Tensor]]) -> None:
        """Take whole weights of some networks, by network, before the first step; the average begins there. Collective.

        Raises UserError where they do not fit, and then leaves the state as it is.
        """
        for name, tensors in weights.items():
            _check_fit(self.engines[name].gather(self.engines[name].shards()), tensors)
        for name, tensors in weights.items():
            self.engines[name].load_weights(tensors)
        self._average = {name: tensor.detach().clone() for name, tensor in self._averaged.shards().items()}
        self.ema = self.average()

    def loss(self, phase: int, part: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """A phase's loss and metrics, float32, with networks in the precision of the cluster."""
        with self._precision:
            loss, metrics = self.model.phases[phase].loss(self.networks, part, noise, self.step)
        return loss.float(), {name: value.float() for name, value in metrics.items()}

    def train_only(self, trained: str) -> None:
        """Hold all networks but this one fixed."""
        for name, parameters in self._parameters.items():
            wanted = name == trained
            if parameters[0].requires_grad != wanted:
                for parameter in parameters:
                    parameter.requires_grad = wanted

    @torch.no_grad()
    def update_ema(self, batch_size: int, half_life_images: int) -> None:
        """Move the average towards the sampling network's weights."""
        images = self.step * batch_size
        half_life = min(half_life_images, max(images * EMA_RAMP, 1e-8))
        weight = 1 - 0.5 ** (batch_size / half_life)
        source = self._averaged.shards()
        torch._foreach_lerp_(list(self._average.values()), [source[name] for name in self._average], weight)


def _check_fit(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Raise UserError naming the first tensor by which weights do not fit a network."""
    for name in [*own, *(name for name in other if name not in own)]:
        wanted, got = (list(part[name].shape) if name in part else None for part in (own, other))
        if wanted != got:
            raise UserError(f"expected {name} of shape {wanted}, got {got}")


def take_step(state: State, batch: Batch, spec: ModelSpec, place: Place, meter: Meter) -> None:
    """Run the phases on one batch, each in `accumulate` parts. A part's mean counts by its share of the batch."""
    for index, phase in enumerate(state.model.phases):
        state.train_only(phase.network)
        engine = state.engines[phase.network]
        lr = state.model.optimizers[phase.network].lr_at(state.step, spec.steps)
        *others, last = parts(batch, state.accumulate)
        for part in others:
            loss, metrics, share = _loss(state, index, part, spec, place)
            meter.add(phase.name, loss, metrics, share / place.world)
            engine.accumulate(loss * share)
        loss, metrics, share = _loss(state, index, last, spec, place)
        norm = engine.step(loss * share if share != 1 else loss, lr)
        if others:  # the norm is the whole batch's, but is counted with the last part of it
            norm = norm * (len(batch.rows_B) / len(last.rows_B))
        meter.add(phase.name, loss, metrics | {"grad_norm": norm}, share / place.world)


def _loss(
    state: State, phase: int, part: Batch, spec: ModelSpec, place: Place
) -> tuple[Tensor, dict[str, Tensor], float]:
    """A phase's loss and metrics on a part of the worker's batch, and the part's weight in a mean over workers."""
    noise = Noise(spec.seed, state.step, phase, part.rows_B, part.global_size)
    loss, metrics = state.loss(phase, part, noise)
    return loss, metrics, len(part.rows_B) * place.world / part.global_size


def parts(batch: Batch, count: int) -> list[Batch]:
    """A worker's batch in `count` parts of consecutive rows."""
    if count == 1:
        return [batch]
    cut = (torch.tensor_split(tensor, count) for tensor in (batch.images_BCHW, batch.labels_B, batch.rows_B))
    return [Batch(images, labels, rows, batch.global_size) for images, labels, rows in zip(*cut, strict=True)]
