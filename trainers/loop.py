"""The one training loop, for every family, either engine and any number of workers.

It runs inside each worker. A step runs the family's phases in order; each trains one network and holds the others
fixed. What leaves the loop is in the store: checkpoints on the way, and at the end the exported sampling network and
the run's record, which the first worker commits.
"""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline import __version__
from pipeline.artifacts import Dataset, Run, commit, file_entry
from pipeline.errors import TrainingError
from pipeline.nodecache import NodeCache
from pipeline.recipe import ModelSpec, Recipe
from pipeline.store import Store
from trainers import checkpoints, export, families, stream
from trainers.checkpoints import Checkpoint
from trainers.engine import Engine
from trainers.families import Adam, Batch, Model, Noise

EMA_RAMP = 0.05  # the half-life is at most this share of the images seen so far (Karras et al. 2022, section C)

MakeEngine = Callable[[nn.Module, Adam], Engine]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Which worker this is, of how many, and on which device it computes."""

    rank: int
    world: int
    device: torch.device


@dataclass(frozen=True)
class Task:
    """What to train."""

    store: Store
    recipe: Recipe
    model: str
    dataset: Dataset
    run_id: str
    cache: NodeCache  # of this worker's node

    @property
    def spec(self) -> ModelSpec:
        """The model's section of the recipe."""
        return self.recipe.models[self.model]

    @property
    def run_ref(self) -> str:
        """The folder of the run in the store."""
        return f"runs/{self.run_id}"


class State:
    """What changes while a run trains: networks in their engines, the moving average, the log."""

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


def train(task: Task, place: Place, make_engine: MakeEngine, say: Say) -> None:
    """Train from the newest complete checkpoint to the last step, and commit the run. Raises TrainingError."""
    spec = task.spec

    # --- Data: the training split, whole on the device where it fits.
    if place.rank == 0:
        shards = stream.split_shards(task.dataset, "train")
        say(f"train {task.model}: {task.dataset.splits['train']:,} images in {len(shards):,} shards")
    reader = stream.open_split(task.cache, task.store, task.dataset, "train", place.device, place.world)
    order = stream.order_of(reader.shard_sizes, spec.batch_size, spec.seed, reader.image_bytes)

    # --- State: new, or where an earlier attempt left off.
    state = State(task, place, make_engine)
    if saved := checkpoints.newest(task.store, task.run_ref):
        state.restore(saved)
        say(f"train {task.model}: resumed at step {saved.step:,}/{spec.steps:,}")
    meter = Meter(task, place, state, say)

    # --- Steps.
    with closing(stream.batches(order, reader, place.rank, place.world, state.step, state.augment)) as batches:
        while state.step < spec.steps:
            take_step(state, next(batches), spec, place, meter)
            state.step += 1
            state.update_ema(spec.batch_size, spec.ema_half_life_images)
            if meter.due():
                meter.read()
            if state.step % spec.checkpoint_every_steps == 0 or state.step == spec.steps:
                meter.read()  # a loss that is not finite must not reach a checkpoint
                checkpoint = state.checkpoint()
                if place.rank == 0:
                    checkpoints.save(task.store, task.run_ref, checkpoint)

    # --- The run's files, then its record.
    if place.rank == 0:
        finish(task, state)


def take_step(state: State, batch: Batch, spec: ModelSpec, place: Place, meter: "Meter") -> None:
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


class Meter:
    """Sums metrics on the device and reads them only when they are due."""

    def __init__(self, task: Task, place: Place, state: State, say: Say) -> None:
        self.task, self.place, self.state, self.say = task, place, state, say
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._since = time.perf_counter()

    def add(self, phase: str, loss: Tensor, metrics: dict[str, Tensor], weight: float) -> None:
        """Count one phase's metrics with this worker's share of the global batch."""
        for name, value in {"loss": loss.detach(), **metrics}.items():
            key = f"{phase}/{name}"
            weighted = value * weight
            self._sums[key] = self._sums[key] + weighted if key in self._sums else weighted

    def due(self) -> bool:
        """Count a step; true at every `log_every_steps`th."""
        self._steps += 1
        return self.state.step % self.task.spec.log_every_steps == 0

    def read(self) -> None:
        """Log the means since the last reading, over all workers. Raises TrainingError where one is not finite."""
        if not self._steps:
            return
        sums = torch.stack(list(self._sums.values())) / self._steps
        if self.place.world > 1:
            dist.all_reduce(sums)
        values = dict(zip(self._sums, sums.tolist(), strict=True))
        seconds = time.perf_counter() - self._since
        rate = self._steps * self.task.spec.batch_size / seconds
        self._sums, self._steps, self._since = {}, 0, time.perf_counter()
        for key, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(self._not_finite(key, value))
        self.state.metrics.append({"step": self.state.step, **values})  # no times: a rerun logs the same bytes
        if self.place.rank == 0:
            self._print(values, rate)

    def _print(self, values: dict[str, float], rate: float) -> None:
        spec, step = self.task.spec, self.state.step
        losses = "  ".join(f"{key.replace('/loss', '')} {value:.3f}" for key, value in values.items() if "/loss" in key)
        left = (spec.steps - step) * spec.batch_size / rate
        self.say(
            f"train {self.task.model} step {step:,}/{spec.steps:,}  {rate:,.0f} images/s  {losses}  {left:.0f} s left"
        )

    def _not_finite(self, key: str, value: float) -> str:
        phase, _, metric = key.partition("/")
        steps = checkpoints.committed_steps(self.task.store, self.task.run_ref)
        good = f"the last good checkpoint is step {steps[-1]:,}" if steps else "there is no checkpoint yet"
        return (
            f"train {self.task.model}: {metric} of phase {phase} became {value} by step {self.state.step:,}; {good}; "
            "lower the learning rate (models." + self.task.model + ".lr) or change the seed"
        )


def finish(task: Task, state: State) -> Run:
    """Write the exported network and the log, then commit the run's record."""
    spec = task.spec
    files = export.export(spec.family, spec.options, task.dataset, state.ema)
    files["metrics.jsonl"] = checkpoints.metrics_bytes(state.metrics)
    for name, data in files.items():
        task.store.put(f"{task.run_ref}/{name}", data)
    last = {key: value for key, value in state.metrics[-1].items() if key != "step"}
    return commit(
        task.store,
        Run(
            code_version=__version__,
            id=task.run_id,
            recipe=task.recipe.name,
            model=task.model,
            family=spec.family,
            config=spec.model_dump(mode="json"),
            dataset=task.dataset.ref,
            steps=spec.steps,
            images_seen=spec.steps * spec.batch_size,
            files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
            metrics=last,
        ),
    )
