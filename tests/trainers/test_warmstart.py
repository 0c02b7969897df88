"""`warm_start: champion`: what a run begins with, and that it is settled once."""

import json

import pytest
import torch

from pipeline import __version__, releases
from pipeline.artifacts import Evaluation, Release, Run
from pipeline.recipe import Recipe, load_recipe
from pipeline.records import commit
from pipeline.settings import Settings
from tests.made import PROTOCOL
from tests.made_releases import FIGURES
from tests.trainers.conftest import SMALL, Digits, node_cache
from trainers import checkpoints, launch, sampleset, warmstart
from trainers.engine import TorchEngine
from trainers.families import Batch, Noise
from trainers.state import State
from trainers.task import Place, Task

HERE = Place(0, 1, torch.device("cpu"))


def recipe(name: str, *overrides: str) -> Recipe:
    """Another recipe for each test: releases of one are not those of another."""
    return load_recipe(json.dumps(SMALL), [f"name={name}", *overrides])


def train(digits: Digits, of: Recipe, model: str = "vae") -> tuple[Run, list[str]]:
    said: list[str] = []
    run = launch.train(digits.store, of, model, digits.dataset, Settings.from_environment(), said.append)
    return run, said


def crowned(digits: Digits, of: Recipe, run: Run, model: str = "vae") -> Release:
    """The run's release, as champion; its figures are made up."""
    evaluation = commit(
        digits.store,
        Evaluation(
            code_version=__version__, id=run.id, run=run.ref, dataset=run.dataset, protocol=PROTOCOL,
            extractor_note="A note.", figures=dict(FIGURES),
        ),
    )  # fmt: skip
    samples = sampleset.sample_run(digits.store, run, 30, 0)
    release = releases.publish(digits.store, of, model, run.ref, evaluation.ref, samples.ref)
    releases.promote(digits.store, release.name, release.number, "champion", who="test", why="test")
    return release


def first_loss(task: Task, *, checkpoint: str | None = None) -> float:
    """The loss before the first step; with `checkpoint` of the average in the last checkpoint of that run."""
    state = State(task, HERE, TorchEngine)
    if checkpoint:
        saved = checkpoints.newest(task.store, checkpoint)
        assert saved is not None
        state.engines[state.model.sampler].load_weights(saved.part("ema"))
    else:
        warmstart.begin(task, state, print)
    images_BCHW = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    batch = Batch(images_BCHW, torch.arange(12) % 10, torch.arange(12), 12)
    return float(state.loss(0, batch, Noise(3, 0, 0, batch.rows_B, 12))[0].detach())


def task_of(digits: Digits, of: Recipe, run_id: str) -> Task:
    return Task(digits.store, of, "vae", digits.dataset, run_id, node_cache())


def test_the_first_loss_is_the_champions(digits: Digits) -> None:
    cold = recipe("firstloss")
    run, _ = train(digits, cold)
    crowned(digits, cold, run)
    warm = recipe("firstloss", "models.vae.warm_start=champion", "models.vae.seed=5")
    task = task_of(digits, warm, "first-loss")
    warmstart.choose(task, print)
    champions = first_loss(task, checkpoint=run.ref)
    assert first_loss(task) == champions
    assert first_loss(task_of(digits, recipe("firstloss", "models.vae.seed=5"), "cold")) != champions


def test_a_run_begins_where_it_began_though_it_is_the_champion_now(digits: Digits) -> None:
    warm = recipe("settled", "models.vae.warm_start=champion")
    run, said = train(digits, warm)
    assert "train vae: starts anew, settled-vae@champion names no release yet" in said
    crowned(digits, warm, run)
    again, _ = train(digits, warm)
    assert again == run
    [start] = [entry for entry in run.files if entry.name == warmstart.FILE]
    assert json.loads(digits.store.get(run.key_of(start))) == {"release": None}


def test_the_next_run_says_which_release_it_starts_with(digits: Digits) -> None:
    cold = recipe("named")
    run, _ = train(digits, cold)
    release = crowned(digits, cold, run)
    warm, said = train(digits, recipe("named", "models.vae.warm_start=champion"))
    assert "train vae: starts with the weights of named-vae 1" in said
    assert warm.ref != run.ref
    assert json.loads(digits.store.get(f"{warm.ref}/{warmstart.FILE}")) == {"release": release.ref}


def test_networks_that_do_not_fit_start_anew_with_one_clear_line(digits: Digits) -> None:
    cold = recipe("unfit")
    run, _ = train(digits, cold)
    crowned(digits, cold, run)
    _, said = train(digits, recipe("unfit", "models.vae.warm_start=champion", "models.vae.latent_size=7"))
    [line] = [line for line in said if "starts anew" in line]
    assert line.startswith("train vae: starts anew, unfit-vae 1 does not fit: expected ")


@pytest.mark.parametrize("kept", [True, False])
def test_a_critic_starts_with_the_checkpoint_of_the_champions_run(digits: Digits, kept: bool) -> None:
    name = f"critic{int(kept)}"
    cold = recipe(name)
    run, _ = train(digits, cold, "gan")
    crowned(digits, cold, run, "gan")
    if not kept:
        for entry in list(digits.store.list(f"{run.ref}/checkpoints/")):
            digits.store.delete(entry.key)
    _, said = train(digits, recipe(name, "models.gan.warm_start=champion"), "gan")
    [line] = [line for line in said if "starts with the weights" in line]
    assert ("anew: the checkpoints of its run are gone" in line) is not kept


def test_a_run_is_done_again_by_a_word_and_found_by_it(digits: Digits) -> None:
    def run_of(again: str | None) -> str:
        return launch.train(
            digits.store, recipe("oncemore"), "vae", digits.dataset, Settings.from_environment(), print, again
        ).id

    first = run_of(None)
    assert run_of("cleared") not in {first, run_of("other")}
    assert run_of("cleared") == run_of("cleared")
    assert run_of(None) == first


def test_warm_start_is_part_of_a_runs_identity_and_its_absence_is_not() -> None:
    warm, cold = (recipe("id", *set_).models["vae"] for set_ in (["models.vae.warm_start=champion"], []))
    assert warm.identity["warm_start"] == "champion"
    assert "warm_start" not in cold.identity
