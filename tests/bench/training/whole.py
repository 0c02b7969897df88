"""The whole trainer on a data set in a store: `trainers.loop` with its stream, engine, metrics and checkpoints."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.artifacts import Dataset
from pipeline.errors import AtelierError
from pipeline.nodecache import NodeCache
from pipeline.recipe import load_recipe
from pipeline.store import Store, open_store
from tests.bench.training.cases import Case
from tests.bench.training.clock import Clock
from tests.made import Part, made_dataset
from trainers import loop
from trainers.engine import Engine, TorchEngine
from trainers.families import Adam
from trainers.task import Place, Task
from trainers.zero import deepspeed_engine

SHARD_IMAGES = 2000
CACHE_BYTES = 10 << 30
CPU = torch.device("cpu")
ALONE = Place(0, 1, CPU)
NEVER = 10**9


@dataclass(frozen=True)
class Data:
    """Images in a store of this machine, and where they are cached; goes to other processes as it is."""

    folder: Path
    dataset: Dataset

    @property
    def store(self) -> Store:
        """The store that they lie in."""
        return open_store(f"file://{self.folder}/store")


def make_data(images_NCHW: Tensor, folder: Path) -> Data:
    """Write the images as shards of blocks, without labels."""
    store = open_store(f"file://{folder}/store")
    images_NHWC = images_NCHW.permute(0, 2, 3, 1).numpy()
    keys_N = np.arange(len(images_NHWC), dtype=np.uint64)
    shards = [slice(at, at + SHARD_IMAGES) for at in range(0, len(images_NHWC), SHARD_IMAGES)]
    parts = [Part(images_NHWC[shard], None, keys_N[shard]) for shard in shards]
    return Data(folder, made_dataset(store, parts))


@dataclass(frozen=True)
class Plan:
    """How long a run is, and after how many steps it writes a checkpoint (at the end it does so anyway)."""

    steps: int
    checkpoint_every: int = NEVER
    log_every: int = 50


@dataclass
class Watched:
    """Makes engines and marks the end of each step of the loop: that of the engine which was made last."""

    kind: str  # torch or deepspeed
    clock: Clock = field(default_factory=Clock)

    def make_engine(self, module: nn.Module, settings: Adam) -> Engine:
        """For `loop.train`."""
        engine = engine_of(self.kind, module, settings)
        self._last, step = engine, engine.step

        def marked(*arguments: Any, **named: Any) -> Any:
            result = step(*arguments, **named)
            if engine is self._last:
                self.clock.tick()
            return result

        engine.step = marked  # type: ignore[method-assign]  # the figure is of the engine itself, not of another class
        return engine


def engine_of(kind: str, module: nn.Module, settings: Adam, zero: int = 0) -> Engine:
    """An engine by the recipe's name for it; deepspeed needs a process group."""
    if kind == "torch":
        return TorchEngine(module, settings)
    return deepspeed_engine(module, settings, zero)


def new_run() -> str:
    """An id that no run has; all workers of one must be given the same."""
    return uuid.uuid4().hex


def train(case: Case, data: Data, engine: str, plan: Plan, run: str, place: Place = ALONE) -> Clock:
    """Train a new run to its end; gives the marks of its steps."""
    watched = Watched(engine)
    task = task_of(case, data, plan, run)
    loop.train(task, place, watched.make_engine, _unheard)
    task.cache.close()
    return watched.clock


def task_of(case: Case, data: Data, plan: Plan, run: str) -> Task:
    """The task of a recipe with this one model."""
    model = {
        "family": case.family,
        "batch_size": case.batch_size,
        "steps": plan.steps,
        "checkpoint_every_steps": plan.checkpoint_every,
        "log_every_steps": plan.log_every,
        **case.all_options,
    }
    recipe = load_recipe(
        json.dumps(
            {
                "name": "bench",
                "source": {"kind": "digits"},
                "dataset": {name: getattr(data.dataset, name) for name in ("channels", "height", "width")},
                "models": {"model": model},
                "cluster": {"launcher": "local", "engine": "torch", "workers": 1},
            }
        )
    )
    cache = NodeCache(data.folder / "cache", CACHE_BYTES, _refuse)
    return Task(data.store, recipe, "model", data.dataset, run, cache)


@contextmanager
def process_group(folder: Path, rank: int = 0, world: int = 1) -> Iterator[None]:
    """A gloo group that meets over a file of the folder."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{world}", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _unheard(line: str) -> None:
    """Progress lines are made, and not shown."""


def _refuse(message: str) -> None:
    """A cache that does not serve would be another figure."""
    raise AtelierError(message)
