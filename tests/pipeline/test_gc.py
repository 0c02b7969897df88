"""What is garbage, and that nothing that is needed ever is."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import gc, releases
from pipeline.artifacts import Release
from pipeline.records import find, load, read_file
from pipeline.store import Store, open_store
from tests.made_releases import parents, published, recipe

OLD = 40 * gc.DAY_SECONDS


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store on disk, whose objects can be made old."""
    return open_store(f"file://{tmp_path}/store")


def age(tmp_path: Path) -> None:
    """Let all that the store holds be written long ago."""
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (time.time() - OLD, time.time() - OLD))


def refs(store: Store, needed: set[str] | None = None) -> set[str]:
    return {one.ref for one in gc.find_garbage(store, 30, needed or set())}


def test_runs_without_a_release_are_garbage_with_what_was_made_of_them(store: Store, tmp_path: Path) -> None:
    run, evaluation, samples = parents(store, "b")
    assert refs(store) == set()  # all of it is young
    age(tmp_path)
    assert {run, evaluation, samples} <= refs(store)


def test_what_a_release_stands_on_is_kept_and_still_verifies_after_a_sweep(store: Store, tmp_path: Path) -> None:
    release = published(store, "a")
    releases.promote(store, release.name, release.number, "champion", who="test", why="test")
    lost = parents(store, "b")
    age(tmp_path)
    swept = {one.ref for one in gc.collect(store, 30, delete=True)}
    assert swept == set(lost)
    assert all(not list(store.list(f"{ref}/")) for ref in lost)
    assert load(store, release.ref, Release) == release
    for parent in release.parents:
        assert list(store.list(f"{parent.ref}/")), parent.ref
    for entry in release.files:
        read_file(store, release, entry)


def test_nothing_is_deleted_unless_asked(store: Store, tmp_path: Path) -> None:
    parents(store, "b")
    age(tmp_path)
    before = [entry.key for entry in store.list("")]
    assert gc.collect(store, 30)
    assert [entry.key for entry in store.list("")] == before


def test_what_a_running_job_was_given_is_kept_with_what_that_stands_on(store: Store, tmp_path: Path) -> None:
    run, _, _ = parents(store, "b")
    age(tmp_path)
    command = f"timeout 60 atelier evaluate '{recipe().to_json()}' --run {store.uri}/{run} --json"
    dataset = json.loads(store.get(f"{run}/run.json"))["dataset"]
    assert gc.refs_in(command) == {run}
    assert refs(store, gc.refs_in(command)) & {run, dataset} == set()


def test_a_run_on_its_way_is_kept_and_one_given_up_long_ago_is_not(store: Store, tmp_path: Path) -> None:
    for name in ("ongoing", "givenup"):
        store.put(f"runs/{name}/checkpoints/000000004/checkpoint.json", b"{}")
    age(tmp_path)
    store.put("runs/ongoing/metrics.jsonl", b"")  # its log is written all the time
    assert refs(store) == {"runs/givenup"}


def test_the_champion_that_an_unfinished_run_began_with_is_kept_by_it(store: Store, tmp_path: Path) -> None:
    run, *_ = parents(store, "c")
    store.put("runs/warm/start.json", json.dumps({"release": None, "begun_with": run}).encode())
    age(tmp_path)
    store.put("runs/warm/metrics.jsonl", b"")
    assert run not in refs(store)


def test_what_came_to_be_needed_between_the_two_looks_is_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, evaluation, samples = parents(store, "b")
    age(tmp_path)
    look = gc.find_garbage
    looks: list[int] = []

    def meanwhile(*arguments: object) -> list[gc.Garbage]:
        if looks:
            releases.publish(store, recipe(), "vae", run, evaluation, samples)
        looks.append(1)
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(gc, "find_garbage", meanwhile)
    assert gc.collect(store, 30, delete=True) == []
    assert find(store, "releases/tiny-vae/1", Release) is not None


def test_the_command_shows_what_it_would_delete_and_deletes_when_told(store: Store, tmp_path: Path) -> None:
    parents(store, "b")
    age(tmp_path)

    def run(*words: str) -> dict[str, object]:
        command = [sys.executable, "-m", "pipeline.cli", "gc", "--store", store.uri, "--json", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, object] = json.loads(result.stdout)
        return found

    shown = run()
    assert shown["deleted"] is False and shown["folders"]
    assert run("--needed", f"{store.uri}/runs/{'b' * 16}")["garbage"] == []
    assert run("--delete")["garbage"] == shown["garbage"]
    assert run()["garbage"] == []
