"""Trains a model for a table by the project's own loop, so that a run that was stopped goes on from its checkpoint."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from pipeline.artifacts import Run, digest_of
from pipeline.errors import AtelierError
from pipeline.nodecache import NodeCache
from pipeline.recipe import load_recipe
from pipeline.records import find
from tests.bench.mnist import Stored
from tests.bench.table import Means
from trainers import checkpoints, families, loop, sample, stream
from trainers.engine import Engine, TorchEngine
from trainers.export import Sampler
from trainers.families import Adam, Model
from trainers.task import Place, Task

CHECKPOINTS = 20  # of a run
CACHE_BYTES = 10 << 30

# (the model, its sampling network as it is on the way) -> figures
Probe = Callable[[Model, nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Training:
    """What is trained, and how long."""

    family: str
    batch_size: int
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    ema_half_life_images: int = 20_000

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass
class Probed:
    """Makes the loop's engines, and asks the probe at some of the sampling network's steps."""

    model: Model
    probe: Probe
    every: int
    step: int
    points: list[dict[str, float]]
    keep: Callable[[list[dict[str, float]]], None]
    _made: int = 0

    def make_engine(self, module: nn.Module, settings: Adam) -> Engine:
        """For `loop.train`."""
        engine = TorchEngine(module, settings)
        name = list(self.model.networks)[self._made]
        self._made += 1
        if name == self.model.sampler:
            step = engine.step

            def probed(loss: Tensor, lr: float) -> Tensor:
                norm = step(loss, lr)
                self._after_step(module)
                return norm

            engine.step = probed  # type: ignore[method-assign]  # the engine itself, seen from outside
        return engine

    def _after_step(self, network: nn.Module) -> None:
        self.step += 1
        if self.step % self.every == 0:
            self.points.append({"step": self.step, **self.probe(self.model, network)})
            self.keep(self.points)


def train(
    training: Training, data: Stored, seed: int, means: Means, probe: Probe, points: int
) -> tuple[Sampler, list[dict[str, float]]]:
    """The trained sampler (its weights' average), and the probe's figures at `points` steps on the way."""
    task = _task(training, data, seed, means)
    if not find(task.store, task.run_ref, Run):
        config = families.parse_config(training.family, training.options, "model")
        model = families.build(training.family, config, stream.data_shape(data.dataset), seed)
        done = max(checkpoints.committed_steps(task.store, task.run_ref), default=0)
        every = max(1, training.steps // points)
        before = [point for point in _points(task) if point["step"] <= done]
        probed = Probed(model, probe, every, done, before, lambda found: _keep(task, found))
        loop.train(task, Place(0, 1, means.device), probed.make_engine, means.say)
    run = find(task.store, task.run_ref, Run)
    assert run is not None
    return sample.open_sampler(task.store, run, means.device), _points(task)


def _task(training: Training, data: Stored, seed: int, means: Means) -> Task:
    shape = stream.data_shape(data.dataset)
    model = {
        "family": training.family,
        "seed": seed,
        "batch_size": training.batch_size,
        "steps": training.steps,
        "ema_half_life_images": training.ema_half_life_images,
        "checkpoint_every_steps": max(1, training.steps // CHECKPOINTS),
        "log_every_steps": max(1, training.steps // CHECKPOINTS),
        **training.options,
    }
    recipe = load_recipe(
        json.dumps(
            {
                "name": "table",
                "source": {"kind": "digits"},
                "dataset": {"channels": shape.channels, "height": shape.height, "width": shape.width},
                "models": {training.family: model},
                "cluster": {"launcher": "local", "engine": "torch", "workers": 1},
            }
        )
    )
    shards = [shard.sha256 for shard in data.dataset.shards]
    run = digest_of({"model": model, "shards": shards, "device": means.device.type})
    cache = NodeCache(means.work / "cache", CACHE_BYTES, _refuse)
    return Task(data.store, recipe, training.family, data.dataset, run, cache)


def _points(task: Task) -> list[dict[str, float]]:
    key = f"curves/{task.run_id}.json"
    if not any(entry.key == key for entry in task.store.list("curves/")):
        return []
    found: list[dict[str, float]] = json.loads(task.store.get(key))
    return found


def _keep(task: Task, points: list[dict[str, float]]) -> None:
    task.store.put(f"curves/{task.run_id}.json", json.dumps(points).encode())


def _refuse(message: str) -> None:
    """A cache that does not serve would make another run of it."""
    raise AtelierError(message)
