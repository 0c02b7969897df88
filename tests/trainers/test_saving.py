"""The writer beside the steps: they go on while it writes, one checkpoint is under way, and its errors end the run."""

import threading
from pathlib import Path

import pytest
import torch

from pipeline.errors import RecipeError, StoreError, TrainingError
from pipeline.filestore import FileStore
from pipeline.store import Store
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import checkpoints, loop
from trainers.checkpoints import Checkpoint
from trainers.engine import TorchEngine
from trainers.saving import Saver
from trainers.task import Place, Task

HERE = Place(0, 1, torch.device("cpu"))


class HeldStore(FileStore):
    """A folder whose writes wait for a sign."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.sign, self.reached = threading.Event(), threading.Event()

    def put(self, key: str, data: bytes | Path) -> str:
        self.reached.set()
        assert self.sign.wait(60)
        return super().put(key, data)


def task_in(store: Store, digits: Digits, run_id: str, *overrides: str) -> Task:
    return Task(store, small_recipe(*overrides), "vae", digits.dataset, run_id, node_cache())


def checkpoint(step: int, weights: torch.Tensor, loss: float = 1.0) -> Checkpoint:
    return Checkpoint(step, {"vae/weight": weights}, [{"step": step, "vae/loss": loss}])


def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_what_was_then(tmp_path: Path, digits: Digits) -> None:
    store = HeldStore(f"file://{tmp_path}")
    task, weights = task_in(store, digits, "held"), torch.zeros(5)
    with Saver(task, HERE) as saver:
        saver.checkpoint(checkpoint(10, weights))
        assert store.reached.wait(60) and not saver.idle
        weights.fill_(7.0)  # the next step's update
        assert checkpoints.committed_steps(store, task.run_ref) == []
        store.sign.set()
        saver.checkpoint(checkpoint(20, weights))  # waits for the first
        assert 10 in checkpoints.committed_steps(store, task.run_ref)
        saver.settle()
        assert saver.idle
    found = {step: _weights(store, task, step) for step in (10, 20)}
    assert found[10].tolist() == [0.0] * 5 and found[20].tolist() == [7.0] * 5


def _weights(store: FileStore, task: Task, step: int) -> torch.Tensor:
    from safetensors.torch import load

    return load(store.get(f"{checkpoints.folder_of(task.run_ref, step)}/state.safetensors"))["vae/weight"]


def test_the_copy_is_no_view_and_its_memory_serves_again(digits: Digits) -> None:
    saver, weights = Saver(task_in(digits.store, digits, "copied"), HERE), torch.zeros(5)
    first = saver._to_host({"w": weights})["w"]
    weights.fill_(7.0)
    assert first.tolist() == [0.0] * 5
    assert saver._to_host({"w": weights})["w"].data_ptr() == first.data_ptr() and first.tolist() == [7.0] * 5


def test_a_checkpoint_under_way_is_committed_when_the_run_fails(tmp_path: Path, digits: Digits) -> None:
    store = HeldStore(f"file://{tmp_path}")
    task = task_in(store, digits, "failing")
    threading.Timer(0.2, store.sign.set).start()
    with pytest.raises(KeyError), Saver(task, HERE) as saver:
        saver.checkpoint(checkpoint(10, torch.zeros(5)))
        raise KeyError
    assert checkpoints.committed_steps(store, task.run_ref) == [10]


def test_an_error_of_the_writer_ends_the_run(digits: Digits) -> None:
    task = Task(digits.store, small_recipe(), "vae", digits.dataset, "blocked", node_cache())
    digits.store.put(f"{task.run_ref}/checkpoints", b"a file where the folder goes")
    with pytest.raises(StoreError, match="no key is the folder of another"):
        loop.train(task, HERE, TorchEngine, print)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_never_committed(tmp_path: Path, digits: Digits, bad: float) -> None:
    store = FileStore(f"file://{tmp_path}")
    task = task_in(store, digits, "lost")
    with Saver(task, HERE) as saver:
        saver.checkpoint(checkpoint(10, torch.zeros(5)))
        saver.checkpoint(checkpoint(20, torch.tensor([0.0, bad])))
        with pytest.raises(TrainingError, match=r"vae/weight became .* by step 20"):
            saver.settle()
    assert checkpoints.committed_steps(store, task.run_ref) == [10]


def test_the_best_by_a_logged_metric_and_the_newest_are_kept(tmp_path: Path, digits: Digits) -> None:
    store = FileStore(f"file://{tmp_path}")
    task = task_in(store, digits, "best", "models.vae.keep_best=vae/loss", "models.vae.keep_last=1")
    with Saver(task, HERE) as saver:
        for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 1.5)):
            saver.checkpoint(checkpoint(step, torch.zeros(5), loss))
    assert checkpoints.committed_steps(store, task.run_ref) == [20, 40]
    with pytest.raises(RecipeError, match=r"models.vae.keep_best: expected one of vae/loss; got 'vae/los'"):
        Saver(task_in(store, digits, "best", "models.vae.keep_best=vae/los"), HERE).checkpoint(
            checkpoint(50, torch.zeros(5))
        )
