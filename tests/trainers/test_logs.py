"""The logs of a run: written while it trains, the same bytes for the same run, times in a file of their own."""

import json
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator

from pipeline.artifacts import Run
from pipeline.records import load
from tests.trainers.conftest import Digits, node_cache, small_recipe
from tests.trainers.test_loop import DyingEngine, KilledError
from trainers import loop, saving
from trainers.engine import TorchEngine
from trainers.meter import Meter
from trainers.task import Place, Task

HERE = Place(0, 1, torch.device("cpu"))


def task_of(digits: Digits, run_id: str, *overrides: str) -> Task:
    return Task(digits.store, small_recipe(*overrides), "vae", digits.dataset, run_id, node_cache())


def lines(digits: Digits, task: Task, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in digits.store.get(f"{task.run_ref}/{name}").splitlines()]


def test_logs_are_in_the_store_while_the_run_trains(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(saving, "LOG_SHARE", 1e9)
    task = task_of(digits, "logged")
    with pytest.raises(KilledError):
        loop.train(task, HERE, lambda m, s: DyingEngine(m, s, 9), print)
    assert [line["step"] for line in lines(digits, task, "metrics.jsonl")][:1] == [2]
    assert lines(digits, task, "timing.jsonl")[0]["step"] == 2
    loop.train(task, HERE, TorchEngine, print)
    steps = [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines(digits, task, "metrics.jsonl")] == steps
    timing = lines(digits, task, "timing.jsonl")
    assert [line["step"] for line in timing][-2:] == steps[-2:]
    assert all(line["images_per_second"] > 0 and 0 <= line["data_wait"] < 1 for line in timing)
    assert all(line["memory_bytes"] > 1e6 for line in timing)


def test_times_are_in_no_file_of_the_record(digits: Digits) -> None:
    task = task_of(digits, "timed")
    loop.train(task, HERE, TorchEngine, print)
    names = [entry.name for entry in load(digits.store, task.run_ref, Run).files]
    assert names == ["config.json", "metrics.jsonl", "model.safetensors"]
    assert set(lines(digits, task, "metrics.jsonl")[0]) == {
        "step",
        "vae/loss",
        "vae/distortion",
        "vae/rate",
        "vae/grad_norm",
    }


def test_tensorboard_reads_what_was_logged(digits: Digits) -> None:
    task = task_of(digits, "events")
    loop.train(task, HERE, TorchEngine, print)
    folder = digits.store.uri.removeprefix("file://") + f"/{task.run_ref}/tensorboard"
    events = event_accumulator.EventAccumulator(folder)
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("vae/loss")]
    logged = lines(digits, task, "metrics.jsonl")
    assert [step for step, _ in found] == [line["step"] for line in logged]
    assert [value for _, value in found] == pytest.approx([line["vae/loss"] for line in logged])
    timing = lines(digits, task, "timing.jsonl")
    assert [event.wall_time for event in events.Scalars("timing/data_wait")] == [line["at"] for line in timing]


def test_the_share_of_the_peak_is_work_over_time(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("trainers.meter.time.perf_counter", lambda: clock[0])
    meter = Meter(task_of(digits, "flops"), HERE, print, [], flops_per_step=6e9, peak_flops=1e12)
    for step in (1, 2):
        meter.add("vae", torch.tensor(1.0), {}, 1.0)
        meter.due(step)
    clock[0] = 100.5
    meter.read(2)
    (line,) = meter.timing
    assert line["images_per_second"] == 2 * 48 / 0.5
    assert line["flops_per_second"] == 2.4e10 and line["mfu"] == pytest.approx(0.024)
