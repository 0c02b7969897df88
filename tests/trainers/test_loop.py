"""The training loop on the real digits: resumable to the bit, the same for any number of workers, and loud."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from pipeline import ids
from pipeline.artifacts import Run
from pipeline.errors import TrainingError
from pipeline.records import load
from pipeline.store import Store, open_store
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import checkpoints, loop
from trainers.engine import TorchEngine
from trainers.families import Adam
from trainers.task import Place, Task

HERE = Place(0, 1, torch.device("cpu"))


class KilledError(Exception):
    """Stands for a kill: raised in the middle of a run."""


class DyingEngine(TorchEngine):
    """An engine whose process dies at a step of its own."""

    def __init__(self, module: nn.Module, settings: Adam, steps_left: int) -> None:
        super().__init__(module, settings)
        self.steps_left = steps_left

    def step(self, loss: Tensor, lr: float) -> Tensor:
        if not self.steps_left:
            raise KilledError
        self.steps_left -= 1
        return super().step(loss, lr)


def task_of(digits: Digits, model: str, run_id: str, *overrides: str) -> Task:
    return Task(digits.store, small_recipe(*overrides), model, digits.dataset, run_id, node_cache())


def weights(store: Store, task: Task) -> bytes:
    return store.get(f"{task.run_ref}/model.safetensors")


@pytest.mark.parametrize("model", ["vae", "gan"])
@pytest.mark.parametrize("killed_after", [0, 3, 4, 7, 11])
def test_resume_matches_straight_run(digits: Digits, model: str, killed_after: int) -> None:
    straight = task_of(digits, model, f"straight-{model}")
    loop.train(straight, HERE, TorchEngine, print)
    resumed = task_of(digits, model, f"resumed-{model}-{killed_after}")
    with pytest.raises(KilledError):
        loop.train(resumed, HERE, lambda m, s: DyingEngine(m, s, killed_after), print)
    said: list[str] = []
    loop.train(resumed, HERE, TorchEngine, said.append)
    assert any("resumed at step" in line for line in said) == (killed_after >= 4)
    for name in ("model.safetensors", "config.json", "metrics.jsonl"):
        assert digits.store.get(f"{resumed.run_ref}/{name}") == digits.store.get(f"{straight.run_ref}/{name}"), name


@pytest.mark.parametrize("killed_after", [6, 10])
def test_a_checkpoint_between_two_log_lines_changes_neither(digits: Digits, killed_after: int) -> None:
    uneven = ["models.vae.checkpoint_every_steps=5", "models.vae.log_every_steps=4"]
    seldom = ["models.vae.checkpoint_every_steps=12", "models.vae.log_every_steps=4"]
    straight = task_of(digits, "vae", "without-checkpoints", *seldom)
    loop.train(straight, HERE, TorchEngine, print)
    resumed = task_of(digits, "vae", f"between-{killed_after}", *uneven)
    with pytest.raises(KilledError):
        loop.train(resumed, HERE, lambda m, s: DyingEngine(m, s, killed_after), print)
    loop.train(resumed, HERE, TorchEngine, print)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert digits.store.get(f"{resumed.run_ref}/{name}") == digits.store.get(f"{straight.run_ref}/{name}"), name


def test_what_leaves_the_result_as_it_is_enters_no_id() -> None:
    def id_of(*overrides: str) -> str:
        return ids.run_id(small_recipe(*overrides), "vae", "datasets/d/1")

    for override in ("keep_last=5", "keep_best=vae/loss", "preview_every_steps=3"):
        assert id_of(f"models.vae.{override}") == id_of(), override
    assert id_of("models.vae.steps=13") != id_of()


def test_the_run_record_states_its_files_and_comes_last(digits: Digits) -> None:
    task = task_of(digits, "vae", "recorded")
    loop.train(task, HERE, TorchEngine, print)
    run = load(digits.store, task.run_ref, Run)
    assert run.steps == 12 and run.images_seen == 12 * 48
    for entry in run.files:
        assert len(digits.store.get(f"{run.ref}/{entry.name}")) == entry.bytes
    lines = [json.loads(line) for line in digits.store.get(f"{run.ref}/metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert checkpoints.committed_steps(digits.store, run.ref) == [8, 12]


def test_a_loss_that_is_not_finite_stops_before_the_checkpoint(digits: Digits) -> None:
    task = task_of(
        digits, "vae", "diverged", "models.vae.lr=1.0", "models.vae.lr_warmup_steps=0", "models.vae.steps=40"
    )
    with pytest.raises(TrainingError, match=r"phase vae became (nan|inf) by step .*checkpoint.*learning rate"):
        loop.train(task, HERE, Poisoned, print)
    assert checkpoints.committed_steps(digits.store, task.run_ref) == [4]


class Poisoned(TorchEngine):
    """An engine whose weights turn to infinity after some steps, as a diverging run's do."""

    steps = 0

    def step(self, loss: Tensor, lr: float) -> Tensor:
        norm = super().step(loss, 1e-4)
        self.steps += 1
        if self.steps == 5:
            with torch.no_grad():
                next(self.module.parameters()).fill_(float("inf"))
        return norm


def worker(rank: int, world: int, folder: str, run_id: str, model: str, dataset_ref: str, store_uri: str) -> None:
    from pipeline.artifacts import Dataset

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{run_id}", rank=rank, world_size=world)
    store = open_store(store_uri)
    recipe = small_recipe("models.gan.batch_size=24", "models.vae.batch_size=24")
    task = Task(store, recipe, model, load(store, dataset_ref, Dataset), run_id, node_cache())
    loop.train(task, Place(rank, world, torch.device("cpu")), TorchEngine, print)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("model", ["vae", "gan"])
def test_two_and_three_workers_train_what_one_trains(digits: Digits, tmp_path: Path, model: str) -> None:
    found = {}
    for world in (1, 2, 3):
        run_id = f"world-{model}-{world}"
        arguments = (world, str(tmp_path), run_id, model, digits.dataset.ref, digits.store.uri)
        spawn(worker, arguments, nprocs=world)  # type: ignore[no-untyped-call]
        found[world] = load_safetensors(digits.store.get(f"runs/{run_id}/model.safetensors"))
    for world in (2, 3):
        for name, tensor in found[1].items():
            torch.testing.assert_close(found[world][name], tensor, rtol=1e-4, atol=1e-5, msg=f"{world} {name}")
