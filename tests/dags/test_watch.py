"""The watch on a source: what makes an event, and what does not."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import Dataset
from pipeline.pictures import encode_png
from pipeline.recipe import load_recipe
from pipeline.records import open_record
from pipeline.store import open_store
from tests.dags.conftest import WATCHED, Running, until, watched_folder


def images(first: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Names, with a class folder, and PNGs of noise."""
    rng = np.random.default_rng(first)
    for index in range(first, first + count):
        yield f"{'ab'[index % 2]}/{index}.png", encode_png(rng.integers(0, 256, (8, 8, 1), dtype=np.uint8))


def add_images(folder: Path, first: int, count: int) -> None:
    for name, data in images(first, count):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


class Kept:
    """What Airflow keeps for an asset, in memory: it outlives a trigger, as the database outlives a triggerer."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def aget(self, key: str) -> Any:
        return self.values.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = value


def events(recipe_json: str, kept: Kept, seconds: float = 1.0, settle: float = 0.0) -> list[dict[str, Any]]:
    """What a new trigger fires within some seconds."""
    from dags.watch import SourceTrigger

    trigger = SourceTrigger(recipe_json=recipe_json, poll_seconds=0.05, settle_seconds=settle)
    trigger.asset_state_store = kept  # type: ignore[assignment]  # a double
    found: list[dict[str, Any]] = []

    async def watch() -> None:
        async for event in trigger.run():
            found.append(event.payload)

    async def limited() -> None:
        try:
            await asyncio.wait_for(watch(), seconds)
        except TimeoutError:
            return

    asyncio.run(limited())
    return found


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A folder and the recipe that watches it."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "watched.yaml").write_text(WATCHED.replace("FOLDER", str(folder)))
    return folder, load_recipe(str(tmp_path / "watched.yaml")).to_json()


def test_an_empty_source_makes_no_event_and_an_unchanged_one_only_its_first(watched: tuple[Path, str]) -> None:
    folder, recipe_json = watched
    kept = Kept()
    assert events(recipe_json, kept) == []
    add_images(folder, 0, 4)
    assert len(events(recipe_json, kept)) == 1
    assert events(recipe_json, kept) == []


def test_what_arrived_while_no_trigger_ran_makes_one_event(watched: tuple[Path, str]) -> None:
    folder, recipe_json = watched
    kept = Kept()
    add_images(folder, 0, 4)
    events(recipe_json, kept)
    add_images(folder, 4, 2)
    add_images(folder, 6, 2)
    assert len(events(recipe_json, kept)) == 1


def test_an_event_that_a_dying_triggerer_lost_is_made_again(watched: tuple[Path, str]) -> None:
    folder, recipe_json = watched
    add_images(folder, 0, 4)

    async def first_only() -> None:
        from dags.watch import SourceTrigger

        trigger = SourceTrigger(recipe_json=recipe_json, poll_seconds=0.05, settle_seconds=0)
        trigger.asset_state_store = kept  # type: ignore[assignment]  # a double
        running = trigger.run()
        await anext(running)  # fired, and killed before the next look
        await running.aclose()  # type: ignore[attr-defined]  # it is a generator

    kept = Kept()
    asyncio.run(first_only())
    assert len(events(recipe_json, kept)) == 1


def test_a_source_that_still_changes_has_not_settled() -> None:
    from dags.watch import Rest

    rest = Rest(10)
    assert [rest.has(value, now) for value, now in [("a", 0), ("a", 9), ("b", 10), ("b", 19), ("b", 20)]] == [
        False, False, False, False, True,
    ]  # fmt: skip


@pytest.mark.stack
def test_images_that_arrive_are_ingested_once_without_a_hand(running: Running, recipes: Path) -> None:
    running.airflow.ask("PATCH", "/dags/watched_models", {"is_paused": True})  # nothing is to be trained here
    folder = watched_folder(recipes)

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = running.airflow.ask("GET", "/dags/watched_dataset/dagRuns")["dag_runs"]
        return found

    for first in (0, 6):  # two arrivals within the settle time
        add_images(folder, first, 6)
    until(lambda: len(runs()) == 1 and runs()[0]["state"] == "success")
    add_images(folder, 12, 4)
    until(lambda: len(runs()) == 2 and all(run["state"] == "success" for run in runs()))
    uris = {running.airflow.result_of(running.stages("watched_dataset", run["dag_run_id"])["ingest"]) for run in runs()}
    assert len(uris) == 2
    assert running.events_of("watched_dataset") == 2
    running.tell("watched_source", {})  # a scheduled run that finds the source as it was, as cron makes them
    until(lambda: len(runs()) == 3 and all(run["state"] == "success" for run in runs()))
    assert running.events_of("watched_dataset") == 2


@pytest.mark.stack
def test_images_that_are_put_under_a_prefix_of_the_store_are_ingested_without_a_hand(running: Running) -> None:
    running.airflow.ask("PATCH", "/dags/arriving_models", {"is_paused": True})

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = running.airflow.ask("GET", "/dags/arriving_dataset/dagRuns")["dag_runs"]
        return found

    with pytest.MonkeyPatch.context() as patch:
        for name, value in running.stack.store_environment.items():
            patch.setenv(name, value)
        store = open_store("s3://atelier")
        for name, data in images(0, 6):
            store.put(f"incoming/{name}", data)
        until(lambda: len(runs()) == 1 and runs()[0]["state"] == "success")
        stage = running.stages("arriving_dataset", runs()[0]["dag_run_id"])["ingest"]
        _, dataset = open_record(running.airflow.result_of(stage), Dataset)
        assert isinstance(dataset, Dataset) and sum(dataset.splits.values()) == 6
