"""A step that does not end is named: whose it is, what it is at and where it stands."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import watchdog
from trainers.task import Place, Task
from trainers.watchdog import Watchdog


@contextmanager
def watched(digits: Digits, said: list[str], heard: threading.Event) -> Iterator[Watchdog]:
    def say(line: str) -> None:
        said.append(line)
        heard.set()

    task = Task(digits.store, small_recipe(), "gan", digits.dataset, "watched", node_cache())
    with Watchdog(task, Place(1, 2, torch.device("cpu")), say, lambda: "in phase generator") as dog:
        yield dog


def a_collective_that_hangs(heard: threading.Event) -> bool:
    return heard.wait(60)


def test_a_step_that_hangs_is_named_with_its_place(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LEAST_SECONDS", 0.3)
    monkeypatch.setattr(watchdog, "CHECK_SECONDS", 0.05)
    said: list[str] = []
    heard = threading.Event()
    with watched(digits, said, heard) as dog:
        for step in range(1, 21):
            dog.step_done(step)
        assert a_collective_that_hangs(heard)
    assert said[0].startswith("warning: train gan: rank 1 of 2 is at step 21 for 0 s (usual: ")
    assert ", in phase generator, in wait (threading.py:" in said[0]
    assert "< a_collective_that_hangs (test_watchdog.py:" in said[0] and "\n" not in said[0]


def test_slow_steps_are_no_hang_and_the_first_ones_may_compile(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(digits, [], threading.Event()) as dog:
        assert dog._limit() == watchdog.FIRST_SECONDS
        dog._seconds.extend([10.0] * watchdog.REMEMBERED)
        assert dog._limit() == 200.0
        dog._seconds.extend([0.001] * watchdog.REMEMBERED)
        assert dog._limit() == watchdog.LEAST_SECONDS
