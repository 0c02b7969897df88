"""Grids of fixed latents while a run trains, which leave the run as it is."""

import numpy as np
import torch

from pipeline.artifacts import Run
from pipeline.pictures import decode_png
from pipeline.records import load
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import loop
from trainers.engine import TorchEngine
from trainers.previews import Previews
from trainers.state import State
from trainers.task import Place, Task

HERE = Place(0, 1, torch.device("cpu"))


def task_of(digits: Digits, model: str, run_id: str, *overrides: str) -> Task:
    return Task(digits.store, small_recipe(*overrides), model, digits.dataset, run_id, node_cache())


def previews_of(digits: Digits, task: Task) -> list[str]:
    return [entry.key.rpartition("/")[2] for entry in digits.store.list(f"{task.run_ref}/previews/")]


def test_previews_come_when_asked_for_and_change_no_file_of_the_run(digits: Digits) -> None:
    files = {}
    for model in ("vae", "gan"):
        for every in (0, 5):
            task = task_of(digits, model, f"preview-{model}-{every}", f"models.{model}.preview_every_steps={every}")
            loop.train(task, HERE, TorchEngine, print)
            files[every] = load(digits.store, task.run_ref, Run).files
            names = ["000000005.png", "000000010.png", "000000012.png"]
            assert previews_of(digits, task) == (names if every else [])
        assert files[0] == files[5]
        first, last = (decode_png(digits.store.get(f"{task.run_ref}/previews/{name}")) for name in (names[0], names[2]))
        assert first.shape == last.shape and first.std() > 10 and not np.array_equal(first, last)


def test_a_short_run_has_the_one_of_its_last_step(digits: Digits) -> None:
    task = task_of(digits, "vae", "preview-short")
    loop.train(task, HERE, TorchEngine, print)
    assert previews_of(digits, task) == ["000000012.png"]


def test_the_images_are_those_of_the_averaged_weights_a_row_for_each_class(digits: Digits) -> None:
    task = task_of(digits, "gan", "preview-weights")
    state = State(task, HERE, TorchEngine)
    previews = Previews(task, HERE, state)
    before = previews.draw(state.average())
    assert before.shape == (80, 8, 8, 1) and previews.labels[:9] == [0] * 8 + [1]
    with torch.no_grad():
        for parameter in state.networks[state.model.sampler].parameters():
            parameter.add_(1.0)
    assert np.array_equal(previews.draw(state.average()), before)  # the average has not moved
    for tensor in state.average().values():
        tensor.mul_(2.0)
    assert not np.array_equal(previews.draw(state.average()), before)
