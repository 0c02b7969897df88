"""What goes wrong while every number is finite is said once, with what to change, and is kept with the run."""

import json

import pytest
import torch

from pipeline.artifacts import Run
from pipeline.records import load
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import alarms, families, loop, stream
from trainers.alarms import Alarms, Line
from trainers.engine import TorchEngine
from trainers.task import Place, Task

HERE = Place(0, 1, torch.device("cpu"))


def task_of(digits: Digits, model: str, run_id: str, *overrides: str) -> Task:
    return Task(digits.store, small_recipe(*overrides), model, digits.dataset, run_id, node_cache())


def alarms_of(digits: Digits, model: str, said: list[str], lines: list[Line], *overrides: str) -> Alarms:
    task = task_of(digits, model, "alarms", *overrides)
    config = families.parse_config(task.spec.family, task.spec.options, model)
    built = families.build(task.spec.family, config, stream.data_shape(task.dataset), 0)
    return Alarms(task, built.alarms(), lines, said.append)


def game(step: int, accuracy: float, gradient: float) -> Line:
    return {"step": step, "discriminator/pair_accuracy": accuracy, "generator/grad_norm": gradient}


def test_a_discriminator_that_has_won_is_named_once(digits: Digits) -> None:
    said: list[str] = []
    watch = alarms_of(digits, "gan", said, [])
    lines = [game(step, 0.8, 2.0) for step in range(1, 31)]
    for step in range(31, 60):
        lines.append(game(step, 0.999, 0.001))
        watch.check(lines)
    assert len(said) == 1
    expected = "warning: train gan: the discriminator has won, phase generator, step 35; there is no checkpoint yet; "
    assert said[0].startswith(expected) and "r1_gamma" in said[0]
    assert [warning["step"] for warning in watch.warnings] == [35]


@pytest.mark.parametrize(("accuracy", "gradient"), [(0.999, 1.0), (0.95, 0.001)])
def test_one_sign_alone_is_no_win(digits: Digits, accuracy: float, gradient: float) -> None:
    said: list[str] = []
    watch = alarms_of(digits, "gan", said, [])
    lines = [game(step, 0.8, 2.0) for step in range(1, 31)]
    for step in range(31, 60):
        lines.append(game(step, accuracy, gradient))
        assert not watch.check(lines)


def test_each_accuracy_of_a_loss_with_two_must_be_near_one(digits: Digits) -> None:
    watch = alarms_of(digits, "gan", [], [])
    lines: list[Line] = [
        {"discriminator/real_accuracy": 1.0, "discriminator/fake_accuracy": fake, **game(step, 1.0, gradient)}
        for step, (fake, gradient) in enumerate([(0.5, 1.0)] * 20 + [(0.9, 0.0)] * alarms.WINDOW)
    ]
    assert not watch.check(lines)
    lines += [{"discriminator/fake_accuracy": 1.0, **game(50, 1.0, 0.0)}] * alarms.WINDOW
    assert watch.check(lines)


def test_a_resumed_run_does_not_say_it_again(digits: Digits) -> None:
    lines: list[Line] = [{"step": step, "vae/rate": 0.01} for step in range(300, 310)]
    said: list[str] = []
    watch = alarms_of(digits, "vae", said, lines)
    assert not watch.check([*lines, {"step": 310, "vae/rate": 0.0}])
    assert said == [] and [warning["step"] for warning in watch.warnings] == [304]


def test_a_posterior_is_not_judged_while_its_rate_warms_up(digits: Digits) -> None:
    lines: list[Line] = [{"step": step, "vae/rate": 0.0} for step in range(195, 210)]
    for end, sounds in ((6, False), (alarms.WINDOW + 6, True)):  # the warm-up of the default is 200 steps
        assert alarms_of(digits, "vae", [], []).check(lines[:end]) == sounds


def test_a_collapsing_vae_says_so_in_its_log_and_its_record(digits: Digits) -> None:
    overrides = ["models.vae.beta=1000.0", "models.vae.kl_warmup_steps=0", "models.vae.steps=60"]
    said: list[str] = []
    task = task_of(digits, "vae", "collapsed", *overrides)
    loop.train(task, HERE, TorchEngine, said.append)
    warned = [line for line in said if line.startswith("warning: train vae: the posterior has collapsed, phase vae")]
    assert len(warned) == 1 and "the last good checkpoint is step" in warned[0] and "free_bits" in warned[0]
    run = load(digits.store, task.run_ref, Run)
    assert "warnings.jsonl" in [entry.name for entry in run.files]
    (line,) = digits.store.get(f"{run.ref}/warnings.jsonl").splitlines()
    assert json.loads(line)["warning"] == "the posterior has collapsed"
