"""The DAGs of the recipes: what they are made of, and how a broken recipe shows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.recipe import Recipe, load_recipe
from pipeline.settings import Settings
from tests.dags.conftest import BROKEN, REPOSITORY, SMALL, Running

PARSE = """
import json, logging, sys
logging.disable()
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
dags = {
    dag.dag_id: {
        "schedule": str(dag.schedule),
        "tasks": {t.task_id: sorted(t.upstream_task_ids) for t in dag.tasks},
        "owners": sorted({t.owner for t in dag.tasks}),
        "pools": {t.task_id: [t.pool, t.pool_slots] for t in dag.tasks},
        "tags": sorted(dag.tags),
        "params": {name: dag.params.get_param(name).schema for name in dag.params},
        "doc": dag.doc_md,
        "file": dag.fileloc,
    }
    for dag in bag.dags.values()
}
heavy = sorted({"torch", "ray", "boto3", "numpy", "trainers"} & set(sys.modules))
print(json.dumps({"dags": dags, "errors": bag.import_errors, "heavy": heavy}))
"""


def parse(home: Path, recipes: Path) -> Any:
    """What Airflow finds in the project's DAGs folder, in a process of its own."""
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "ATELIER_RECIPES": str(recipes)}
    command = [sys.executable, "-c", PARSE, str(REPOSITORY / "dags")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory, recipes: Path) -> Any:
    return parse(tmp_path_factory.mktemp("airflow"), recipes)


def test_parsing_imports_no_torch_ray_boto3_or_numpy(parsed: Any) -> None:
    assert parsed["heavy"] == []


def test_every_recipe_has_its_two_dags(parsed: Any) -> None:
    shipped = {file.stem for file in (REPOSITORY / "pipeline/recipes").glob("*.yaml")}
    expected = {
        f"{name}_{part}" for name in {*shipped, "small", "watched", "arriving"} for part in ("dataset", "models")
    }
    assert set(parsed["dags"]) == {*expected, "housekeeping", "orphans"}


def test_orphaned_jobs_are_looked_for_every_five_minutes_and_garbage_every_hour(parsed: Any) -> None:
    found = {dag_id: parsed["dags"][dag_id] for dag_id in ("orphans", "housekeeping")}
    assert {dag_id: list(dag["tasks"]) for dag_id, dag in found.items()} == {
        "orphans": ["stop_orphans"],
        "housekeeping": ["collect_garbage"],
    }
    assert [dag["schedule"] for dag in found.values()] == ["*/5 * * * *", "@hourly"]


def test_the_dags_of_recipes_are_of_one_file_whether_or_not_there_are_broken_recipes(tmp_path: Path) -> None:
    found = parse(tmp_path / "airflow", tmp_path)
    assert found["errors"] == {}
    files = {
        Path(dag["file"]).name for dag_id, dag in found["dags"].items() if dag_id.endswith(("_dataset", "_models"))
    }
    assert files == {"recipes.py"}


def test_each_model_is_trained_measured_and_published_by_itself(parsed: Any) -> None:
    assert parsed["dags"]["small_dataset"]["tasks"] == {"ingest": []}
    assert parsed["dags"]["digits_models"]["tasks"] == {
        "dataset": [],
        "chosen": [],
        "model.train": ["chosen", "dataset"],
        "model.evaluate": ["chosen", "model.train"],
        "model.sample": ["chosen", "model.train"],
        "model.publish": ["chosen", "model.evaluate", "model.sample", "model.train"],
        "model.promote": ["chosen", "model.publish"],
    }


def test_owner_tags_and_docs_are_the_recipes(parsed: Any) -> None:
    dag = parsed["dags"]["small_models"]
    assert dag["owners"] == ["vision"]
    assert dag["tags"] == ["atelier", "nightly", "small"]
    assert "| `other` | vae | 4 of 64 images | `small-other` |" in dag["doc"]


def test_a_watched_source_schedules_the_ingest(parsed: Any) -> None:
    assert "watched_source" in parsed["dags"]["watched_dataset"]["schedule"]


def test_a_pool_is_taken_a_slot_for_each_worker_by_training_only(tmp_path: Path) -> None:
    text = SMALL.replace("airflow: {", "airflow: {pool: gpus, ").replace(
        "cluster: {launcher: local", "cluster: {workers: 3"
    )
    (tmp_path / "small.yaml").write_text(text)
    dag = parse(tmp_path / "airflow", tmp_path)["dags"]["small_models"]
    assert dag["pools"]["model.train"] == ["gpus", 3]
    assert dag["pools"]["model.evaluate"] == ["gpus", 1]
    assert dag["pools"]["model.publish"] == ["default_pool", 1]
    assert dag["params"]["workers"]["maximum"] == 3
    assert "A training takes 3 slots of the pool `gpus`" in dag["doc"]


class Events(list[SimpleNamespace]):
    """What Airflow gives for an inlet: the newest event here."""

    def ascending(self, _: bool) -> "Events":
        return self

    def limit(self, _: int) -> "Events":
        return self


def event(at: int, uri: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(timestamp=at, extra={"uri": uri or f"s3://b/datasets/x/{at}"} if uri != "" else None)


def test_the_newest_event_is_trained_on_even_where_it_started_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    from dags.recipes import newest_uri

    assert newest_uri({"x": [event(2), event(3), event(1)]}, [Events([event(3)])]) == "s3://b/datasets/x/3"
    assert newest_uri({"x": [event(2)]}, [Events([event(5)])]) == "s3://b/datasets/x/5"
    assert newest_uri({"x": [event(2), event(3, "")]}, [Events([event(3, "")])]) == "s3://b/datasets/x/2"


def test_a_broken_recipe_is_an_import_error_with_its_line_and_spoils_no_other(parsed: Any) -> None:
    [(file, trace)] = parsed["errors"].items()
    assert Path(file).name == "broken_recipes.py"
    last = trace.strip().splitlines()[-1]
    assert "broken.yaml:4: dataset" in last


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("twin", SMALL, "twin.yaml: expected a name that no other recipe has, got 'small'"),
        ("cron", SMALL + "schedule: every day\n", "cron.yaml:12: expected cron such as"),
        ("never", SMALL + "schedule: 0 0 31 2 *\n", "never.yaml:12: expected cron such as"),
        ("watch", SMALL + "schedule: {watch: sauce}\n", "watch.yaml:12: schedule"),
        (
            "day",
            SMALL + "schedule: 2026-13-45\n",
            "day.yaml: expected YAML, got month must be in 1..12",
        ),
        ("tags", SMALL.replace("nightly", "n" * 101), "tags.yaml:11: airflow.tags.0: expected"),
        ("soon", SMALL.replace("owner", "retry_seconds: .inf, owner"), "soon.yaml:11: airflow.retry_seconds: expected"),
    ],
)
def test_what_airflow_cannot_take_is_refused_by_recipe(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(SMALL)
    (tmp_path / f"{name}.yaml").write_text(text if name == "twin" else text.replace("name: small", f"name: {name}"))
    found = parse(tmp_path / "airflow", tmp_path)
    assert "small_models" in found["dags"]
    [trace] = found["errors"].values()
    assert words in trace


def test_whatever_a_recipe_raises_is_told_of_with_its_place_and_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    from dags import recipes

    (tmp_path / "a.yaml").write_text(SMALL.replace("name: small", "name: odd"))
    (tmp_path / "c.yaml").write_text(SMALL)
    (tmp_path / "b.yaml").write_text(SMALL)
    real = recipes.common

    def reads_all_but_one(reference: str) -> Recipe:
        if reference.endswith("c.yaml"):
            raise ValueError("nor of this")
        return load_recipe(reference)

    def fails_for_one(recipe: Recipe) -> dict[str, Any]:
        if recipe.name == "odd":
            raise KeyError("nobody\nthought of it")
        return real(recipe)

    monkeypatch.setattr("dags.shelf.load_recipe", reads_all_but_one)
    monkeypatch.setattr(recipes, "common", fails_for_one)
    monkeypatch.setenv("ATELIER_RECIPES", str(tmp_path))
    dags, problems = recipes.dags_of(Settings.from_environment())
    assert {"small_dataset", "small_models", "digits_models"} <= set(dags)
    assert not {dag_id for dag_id in dags if dag_id.startswith("odd")}
    unread, line = problems
    assert unread == f"{tmp_path}/c.yaml: expected a recipe, got ValueError: nor of this; this recipe is left out"
    assert line.startswith(f"{tmp_path}/a.yaml:2: expected the DAGs of odd, got KeyError: ") and "\n" not in line


def test_a_file_takes_the_place_of_the_one_with_its_name_in_an_earlier_folder(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(SMALL.replace("small", "digits") + "schedule: '0 3 * * *'\n")
    found = parse(tmp_path / "airflow", tmp_path)
    assert found["errors"] == {}
    assert "0 3 * * *" in found["dags"]["digits_dataset"]["schedule"]


@pytest.mark.stack
def test_a_run_by_hand_without_a_dataset_says_what_to_do(running: Running) -> None:
    running.start("mnist_models", "by-hand", {})  # which nobody has ingested here
    state, stages = running.ended("mnist_models", "by-hand")
    assert (state, stages["dataset"].try_number) == ("failed", 1)
    assert "start the run with the parameter `dataset`" in str(running.airflow.error_of(stages["dataset"]))


@pytest.mark.stack
def test_airflow_shows_the_broken_recipe_and_runs_the_others(running: Running) -> None:
    errors = running.airflow.ask("GET", "/importErrors")["import_errors"]
    assert any("broken.yaml" in error["stack_trace"] for error in errors)
    assert BROKEN != SMALL and running.airflow.ask("GET", "/dags/small_models")["is_paused"] is False
