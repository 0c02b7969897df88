"""What is said of the pools that recipes name (made in a real Airflow: tests/dags/test_ray_job.py)."""

from typing import Any, cast

import pytest

from pipeline.airflow_client import AirflowClient
from pipeline.pools import make_pools
from pipeline.recipe import load_recipe


class Airflow:
    """An Airflow with one pool that is there already."""

    def __init__(self, slots: int, include_deferred: bool) -> None:
        self.pool = {"name": "gpus", "slots": slots, "include_deferred": include_deferred}

    def ask(self, method: str, path: str, body: Any = None, *, missing_is_none: bool = False) -> Any:
        assert (method, path, body, missing_is_none) == ("GET", "/pools/gpus", None, True)
        return self.pool


@pytest.mark.parametrize(
    ("slots", "include_deferred", "words"),
    [
        (2, True, []),
        (-1, True, []),
        (1, True, ["a pool gpus of 2 slots or more"]),
        (2, False, ["a pool gpus that includes deferred tasks, got one that does not"]),
        (1, False, ["a pool gpus of 2 slots or more", "a pool gpus that includes deferred tasks"]),
    ],
)
def test_a_pool_that_does_not_do_is_told_of(slots: int, include_deferred: bool, words: list[str]) -> None:
    recipe = load_recipe("digits", ["airflow.pool=gpus", "cluster.workers=2"])
    lines = make_pools(cast(AirflowClient, Airflow(slots, include_deferred)), [recipe])
    assert len(lines) == len(words)
    for line, expected in zip(lines, words, strict=True):
        assert line.startswith(f"recipe digits: expected {expected}") and "\n" not in line
        assert "under Admin, Pools" in line
