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

from pipeline.artifacts import Dataset
from pipeline.errors import TrainingError
from pipeline.records import load
from pipeline.sections import ClusterSpec, ModelSpec
from pipeline.store import open_store
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import zero
from trainers.checkpoints import Checkpoint
from trainers.engine import Engine, clip
from trainers.families import Adam, Batch
from trainers.meter import Meter
from trainers.state import State, take_step
from trainers.task import Place, Task

BATCH, STEPS, EPS = 12, 4, 1e-4
STAGES = ("zero0", "zero1", "zero2", "zero3")
KINDS = ("torch", *STAGES, "zero2-offload", "zero3-offload")
PLAIN = ("torch", *STAGES)
MOVED_AFTER = 2  # of the steps
SMALL: dict[str, Any] = {"preset": "tiny", "seed": 3, "lr": 1e-3, "lr_warmup_steps": 0}
MODELS: dict[str, dict[str, Any]] = {  # what differs for engines: double backwards, networks entered at many places ...
    "vae": {"family": "vae", "likelihood": "gaussian"},
    "ladder": {"family": "vae", "depth": 3, "likelihood": "logistic_mixture", "importance_samples": 2},
    "gan": {"family": "gan"},
    "residual": {"family": "gan", "preset": "base", "network": "conv", "clip_norm": 0.05},
    "perturbed": {"family": "gan", "penalty": "perturbed", "ada_target": 0.6},
    "vaegan": {"family": "vaegan"},
}
PARTED = ("vae", "gan")  # of them, those that other promises are tested with


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
        metrics = {
            f"metric/{name}": torch.tensor(value)
            for name, value in meter.lines[-1].items()
            if not name.endswith("pixel_std")  # over the images that a worker has
        }
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
    os._exit(0)  # about one in thirty times, gloo's threads abort while the groups are taken down


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


def kinds_of(world: int) -> tuple[str, ...]:
    """Two workers have all there is to go wrong; one is tried in each stage."""
    return PLAIN if world == 1 else KINDS


@pytest.fixture(scope="module")
def results(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every model in every kind of engine, by one and by two workers."""
    results = Results(digits, tmp_path_factory.mktemp("engines"))
    for world in (1, 2):
        parted = [Job(world, kind, model, accumulate=3) for model in PARTED for kind in PLAIN]
        results.make([Job(world, kind, model) for model in MODELS for kind in kinds_of(world)] + parted)
    return results


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    """Every value, relative to its own size or to 1, whichever is more."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        worst = ((tensor - right[name]).abs() / right[name].abs().clamp(min=1)).max()
        assert worst <= tolerance, f"{name}: {worst}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("world", "kind"), [(world, kind) for world in (1, 2) for kind in kinds_of(world)])
def test_every_engine_takes_the_steps_of_one_torch_worker(results: Results, world: int, kind: str, model: str) -> None:
    assert_close(results.of(Job(world, kind, model)), results.of(Job(1, "torch", model)), 1e-5)


@pytest.mark.parametrize("model", PARTED)
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("world", [1, 2])
def test_a_batch_in_parts_gives_the_steps_of_a_whole_one(results: Results, world: int, kind: str, model: str) -> None:
    assert_close(results.of(Job(world, kind, model, accumulate=3)), results.of(Job(1, "torch", model)), 1e-5)


def without_metrics(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a run goes on from."""
    return {name: tensor for name, tensor in found.items() if not name.startswith("metric/")}


@pytest.fixture(scope="module")
def moved(results: Results) -> Results:
    """Runs that began in each kind of engine on two workers, and go on in another and on one to four."""
    results.make([Job(2, kind, model, MOVED_AFTER) for model in PARTED for kind in PLAIN])
    for world in (1, 2, 3, 4):
        same = [going_on(world, kind, model, kind) for model in PARTED for kind in PLAIN if world == 2]
        results.make([going_on(world, kind, model) for model in PARTED for kind in PLAIN] + same)
    return results


def going_on(world: int, kind: str, model: str, before: str = "") -> Job:
    """The second part of a run, which began in the engine `before`: with none named, in one that differs by world."""
    before = before or PLAIN[(PLAIN.index(kind) + world) % len(PLAIN)]
    return Job(world, kind, model, STEPS, Job(2, before, model, MOVED_AFTER))


@pytest.mark.parametrize("model", PARTED)
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_run_goes_on_in_another_engine_and_on_other_workers(
    moved: Results, world: int, kind: str, model: str
) -> None:
    straight, gone_on = moved.of(Job(1, "torch", model)), moved.of(going_on(world, kind, model))
    for name, tensor in without_metrics(straight).items():
        difference = (gone_on[name] - tensor).norm() / tensor.norm().clamp(min=1e-3)
        assert difference <= (1e-5 if name.startswith("optimizer/") else 1e-6), f"{name}: {difference}"


@pytest.mark.parametrize("model", PARTED)
@pytest.mark.parametrize("kind", PLAIN)
def test_a_run_goes_on_in_its_own_engine_bit_for_bit(moved: Results, kind: str, model: str) -> None:
    straight, gone_on = moved.of(Job(2, kind, model)), moved.of(going_on(2, kind, model, kind))
    assert_close(without_metrics(gone_on), without_metrics(straight), 0.0)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_as_by_torch(clip_norm: float) -> None:
    random = torch.Generator().manual_seed(1)
    ours, theirs = ([nn.Parameter(torch.zeros(size)) for size in ((3, 4), (5,))] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        one.grad = torch.randn(one.shape, generator=random)
        other.grad = one.grad.clone()
    norm = clip([parameter.grad for parameter in ours if parameter.grad is not None], clip_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, clip_norm or 1e9))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@dataclass
class Hidden:
    """An output that DeepSpeed does not look into."""

    x: Tensor


class Hiding(nn.Linear):
    """A network that gives such outputs."""

    def forward(self, input: Tensor) -> Hidden:  # type: ignore[override]  # that is the mistake
        return Hidden(super().forward(input))


def hide(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=1)
    engine = zero.deepspeed_engine(Hiding(2, 2), Adam(lr=0.1), 3)
    with pytest.raises(TrainingError, match="NamedTuple, or choose zero: 2"):
        engine.module(torch.zeros(1, 2))
    dist.destroy_process_group()


def test_a_network_that_zero_3_would_train_wrongly_is_refused(tmp_path: Path) -> None:
    spawn(hide, (str(tmp_path),), nprocs=1)  # type: ignore[no-untyped-call]
