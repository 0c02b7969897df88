"""The engines take the same steps for the real families, and a run moves between them and numbers of workers.

All engines are compared with a plain torch engine alone. Adam divides a gradient by its own size, so where a gradient
is nothing but rounding, so is the step; a larger `eps` than the families' keeps such parameters still, and what is
left of a difference is an engine's.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from pipeline.artifacts import Dataset, load
from pipeline.recipe import ClusterSpec, ModelSpec
from pipeline.store import open_store
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import zero
from trainers.checkpoints import Checkpoint
from trainers.engine import Engine, TorchEngine, clip
from trainers.families import Adam, Batch
from trainers.meter import Meter
from trainers.state import State, take_step
from trainers.task import Place, Task

BATCH, STEPS, EPS = 12, 6, 1e-4
STAGES = ("zero0", "zero1", "zero2", "zero3")
KINDS = ("torch", *STAGES, "zero1-offload", "zero2-offload", "zero3-offload")
SMALL: dict[str, Any] = {"preset": "tiny", "seed": 3}
MODELS: dict[str, dict[str, Any]] = {  # what differs for engines: double backwards, networks entered at many places ...
    "vae": {"family": "vae", "likelihood": "gaussian"},
    "ladder": {"family": "vae", "depth": 3, "likelihood": "logistic_mixture", "importance_samples": 2},
    "gan": {"family": "gan"},
    "residual": {"family": "gan", "preset": "base", "network": "conv", "clip_norm": 0.05},
    "perturbed": {"family": "gan", "penalty": "perturbed", "ada_target": 0.6},
    "vaegan": {"family": "vaegan"},
}


@dataclass(frozen=True)
class Job:
    """Steps of one model in one kind of engine, from what another job left where it names one."""

    world: int
    kind: str
    model: str
    stop: int = STEPS
    begin: "Job | None" = None
    accumulate: int = 1

    @property
    def file(self) -> str:
        """The name of its files, without the ending."""
        own = f"{self.model}-{self.world}x{self.kind}x{self.accumulate}-{self.stop}"
        return f"{self.begin.file}-{own}" if self.begin else own

    @property
    def spec(self) -> ModelSpec:
        """The model's section of a recipe."""
        return ModelSpec.model_validate({**SMALL, "steps": 50, "batch_size": BATCH, **MODELS[self.model]})

    @property
    def cluster(self) -> ClusterSpec:
        """The engine's section of a recipe."""
        if self.kind == "torch":
            return ClusterSpec(engine="torch", accumulate=self.accumulate)
        stage, _, offload = self.kind.removeprefix("zero").partition("-")
        where = "cpu" if offload else "none"
        return ClusterSpec.model_validate({"zero": int(stage), "offload": where, "accumulate": self.accumulate})


def batch_of(step: int, rank: int, world: int) -> Batch:
    """A worker's rows of a global batch of random images."""
    random = torch.Generator().manual_seed(step)
    images_BCHW = torch.rand(BATCH, 1, 8, 8, generator=random)
    labels_B = torch.randint(10, (BATCH,), generator=random)
    rows_B = torch.arange(BATCH)[rank::world]
    return Batch(images_BCHW[rows_B], labels_B[rows_B], rows_B, BATCH)


def run(job: Job, task: Task, rank: int, world: int, folder: Path) -> None:
    """Take the steps; the first worker saves what a checkpoint holds, and the metrics."""
    recipe = task.recipe.model_copy(update={"models": {job.model: job.spec}, "cluster": job.cluster})
    task = replace(task, recipe=recipe, model=job.model)
    place = Place(rank, world, torch.device("cpu"))
    make = zero.maker(job.cluster)

    def make_engine(module: nn.Module, settings: Adam) -> Engine:
        return make(module, replace(settings, eps=EPS))

    state = State(task, place, make_engine)
    meter = Meter(task, place, lambda line: None, state.metrics)
    if job.begin:
        state.restore(Checkpoint(job.begin.stop, load_file(folder / f"{job.begin.file}.safetensors"), []))
    while state.step < job.stop:
        take_step(state, batch_of(state.step, rank, world), job.spec, place, meter)
        state.step += 1
        state.update_ema(BATCH, 100)
        meter.due(state.step)
    meter.read(state.step)
    whole = state.checkpoint()
    if rank == 0:
        metrics = {f"metric/{name}": torch.tensor(value) for name, value in meter.lines[-1].items()}
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in whole.tensors.items()}
        save_file(tensors | metrics, folder / f"{job.file}.safetensors")


def worker(rank: int, jobs: list[Job], folder: str, dataset_ref: str, store_uri: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # a launcher's duty; DeepSpeed insists on it
    store, world = open_store(store_uri), jobs[0].world
    task = Task(store, small_recipe(), "vae", load(store, dataset_ref, Dataset), "engines", node_cache())
    rendezvous = f"file://{folder}/rendezvous-{jobs[0].file}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    for job in jobs:
        run(job, task, rank, world, Path(folder))
    dist.barrier()
    dist.destroy_process_group()


class Results:
    """What jobs left, each run once."""

    def __init__(self, digits: Digits, folder: Path) -> None:
        self.digits, self.folder = digits, folder

    def make(self, jobs: list[Job]) -> None:
        """Run jobs of one number of workers."""
        arguments = (jobs, str(self.folder), self.digits.dataset.ref, self.digits.store.uri)
        spawn(worker, arguments, nprocs=jobs[0].world)  # type: ignore[no-untyped-call]

    def of(self, job: Job) -> dict[str, Tensor]:
        """Networks, average, optimizers and mean metrics at the end."""
        return load_file(self.folder / f"{job.file}.safetensors")


@pytest.fixture(scope="module")
def straight(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every model in every kind of engine, by one and by two workers."""
    results = Results(digits, tmp_path_factory.mktemp("straight"))
    for world in (1, 2):
        results.make([Job(world, kind, model) for model in MODELS for kind in KINDS])
    return results


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2])
def test_every_engine_takes_the_steps_of_one_torch_worker(
    straight: Results, world: int, kind: str, model: str
) -> None:
    assert_close(straight.of(Job(world, kind, model)), straight.of(Job(1, "torch", model)), 1e-5)
