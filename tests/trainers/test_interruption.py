"""Runs that are asked to stop, by signals to real processes, end with what an undisturbed run ends with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pipeline.artifacts import Dataset, Run
from pipeline.errors import Interrupted, Stopped
from pipeline.ids import run_id
from pipeline.ingest import ingest
from pipeline.recipe import Recipe, load_recipe
from pipeline.records import find, load
from pipeline.store import Store, open_store
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import checkpoints, loop
from trainers.engine import TorchEngine
from trainers.interruption import Agreement, Interruption, Signals, caught, stopped
from trainers.task import Place, Task

HERE = Place(0, 1, torch.device("cpu"))
STEPS = 400
SETTINGS = (
    "cluster.launcher=local",
    "cluster.engine=torch",
    "cluster.zero=0",
    "cluster.workers=1",
    f"models.gan.steps={STEPS}",
    "models.gan.batch_size=32",
    "models.gan.checkpoint_every_steps=60",
)


def digits_recipe() -> Recipe:
    return load_recipe("digits", SETTINGS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing disturbed."""
    store = open_store(f"file://{tmp_path_factory.mktemp('undisturbed')}")
    process = started(store)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    return run_of(store)


def started(store: Store) -> subprocess.Popen[str]:
    """A real `atelier train` of the digits recipe, in a process of its own."""
    ingest(store, digits_recipe())
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline.cli", "train", "digits", "--model", "gan", "--store", store.uri]
    return subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_ref(store: Store) -> str:
    recipe = digits_recipe()
    return f"runs/{run_id(recipe, 'gan', ingest(store, recipe).ref)}"


def run_of(store: Store) -> Run:
    return load(store, run_ref(store), Run)


def wait_for_checkpoint(process: subprocess.Popen[str], store: Store) -> None:
    deadline, ref = time.monotonic() + 120, run_ref(store)
    while not checkpoints.committed_steps(store, ref):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_commits_the_step_and_a_rerun_ends_with_the_same_files(
    tmp_path: Path, undisturbed: Run, number: signal.Signals
) -> None:
    store = open_store(f"file://{tmp_path}")
    process = started(store)
    wait_for_checkpoint(process, store)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    last = err.strip().splitlines()[-1]
    step = checkpoints.committed_steps(store, run_ref(store))[-1]
    assert f"stopped at step {step:,}/{STEPS}, which is committed, on {number.name}; the same command" in last, err
    assert "Traceback" not in err and find(store, run_ref(store), Run) is None
    again = started(store)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0 and f"resumed at step {step:,}/{STEPS}" in err, err
    assert run_of(store).files == undisturbed.files


def test_a_killed_process_run_again_ends_with_the_same_files(tmp_path: Path, undisturbed: Run) -> None:
    store = open_store(f"file://{tmp_path}")
    for _ in range(2):
        process = started(store)
        wait_for_checkpoint(process, store)
        process.kill()
        process.communicate(timeout=60)
    again = started(store)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0 and "resumed at step" in err, err
    assert run_of(store).files == undisturbed.files


class AskedAt(Interruption):
    """Asks one worker to stop, from its own step on."""

    def __init__(self, calls: int, number: int) -> None:
        self.calls, self.number = calls, number

    def signal_number(self) -> int:
        self.calls -= 1
        return self.number if self.calls <= 0 else 0


def test_a_stop_in_the_last_step_finishes_the_run(digits: Digits) -> None:
    task = Task(digits.store, small_recipe("models.vae.steps=1"), "vae", digits.dataset, "last-step", node_cache())
    loop.train(task, HERE, TorchEngine, print, AskedAt(1, signal.SIGTERM))
    assert load(digits.store, task.run_ref, Run).steps == 1


def worker(rank: int, world: int, folder: str, run: str, dataset_ref: str, store_uri: str, asked: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{run}-{asked}", rank=rank, world_size=world)
    store = open_store(store_uri)
    recipe = small_recipe("models.vae.steps=40", "models.vae.checkpoint_every_steps=40", "models.vae.batch_size=24")
    task = Task(store, recipe, "vae", load(store, dataset_ref, Dataset), run, node_cache())
    place = Place(rank, world, torch.device("cpu"))
    interruption = AskedAt(1, signal.SIGTERM) if asked and rank == 1 else Interruption()
    try:
        loop.train(task, place, TorchEngine, print, interruption)
        assert not asked
    except Stopped as error:
        assert asked and "on SIGTERM" in str(error)
    dist.barrier()
    dist.destroy_process_group()


def test_two_workers_stop_at_one_step_though_one_is_asked(digits: Digits, tmp_path: Path) -> None:
    for run, attempts in (("together", (True, False)), ("straight-together", (False,))):
        for asked in attempts:
            arguments = (2, str(tmp_path), run, digits.dataset.ref, digits.store.uri, asked)
            spawn(worker, arguments, nprocs=2)  # type: ignore[no-untyped-call]
            if asked:
                assert checkpoints.committed_steps(digits.store, f"runs/{run}") == [1]
    files = [load(digits.store, f"runs/{run}", Run).files for run in ("together", "straight-together")]
    assert files[0] == files[1]


def test_a_draining_node_makes_checkpoints_and_the_run_goes_on(digits: Digits) -> None:
    class Draining(Interruption):
        def draining(self) -> bool:
            return True

    said: list[str] = []
    settings = ("models.vae.checkpoint_every_steps=12", "models.vae.keep_last=99")
    task = Task(digits.store, small_recipe(*settings), "vae", digits.dataset, "draining", node_cache())
    loop.train(task, HERE, TorchEngine, said.append, Draining())
    assert 1 in checkpoints.committed_steps(digits.store, task.run_ref)
    assert load(digits.store, task.run_ref, Run).steps == 12
    assert sum("a node of this run is about to go" in line for line in said) == 1


def test_a_repeated_signal_is_ignored_at_once_and_meant_later(monkeypatch: pytest.MonkeyPatch) -> None:
    own = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made it deaf
    before = signal.getsignal(signal.SIGINT)
    with caught() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # as `timeout` sends it once more
        assert signals.signal_number() == signal.SIGINT
        monkeypatch.setattr("trainers.interruption.REPEAT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, own)


def test_the_error_has_the_signals_exit_status() -> None:
    assert stopped(signal.SIGTERM, "x").exit_status == 128 + signal.SIGTERM
    error = stopped(signal.SIGINT, "x")
    assert isinstance(error, Interrupted) and error.exit_status == 128 + signal.SIGINT


def test_one_worker_hears_of_a_signal_at_the_next_step() -> None:
    signals = Signals()
    agreement = Agreement(HERE, signals, 100)
    assert agreement.due(101)
    agreement.reach(101, True, print)
    assert not agreement.due(102)  # hundreds of such steps fit into the time between two meetings
    signals.number = signal.SIGTERM
    assert agreement.due(102) and agreement.reach(102, True, print).signal_number == signal.SIGTERM
