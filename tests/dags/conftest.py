"""A real stack for the DAGs: SeaweedFS, a Ray head with token authentication, and Airflow with all its components."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import stack
from pipeline.airflow_client import AirflowClient, StageView
from pipeline.errors import StackError
from pipeline.jobs import Job, JobsClient

REPOSITORY = Path(__file__).parents[2]
SMALL = """
name: small
source: {kind: digits}
dataset: {channels: 1, height: 8, width: 8}
models:
  vae: {family: vae, steps: 5}
  other: {family: vae, steps: 4}
cluster: {launcher: local, engine: torch}
evaluation: {num_samples: 60}
release: {num_samples: 10}
airflow: {notify: alerts, late_after_minutes: 1, owner: vision, tags: [nightly]}
"""
WATCHED = """
name: watched
source: {kind: folder, path: FOLDER}
dataset: {channels: 1, height: 8, width: 8}
models:
  vae: {family: vae, steps: 5}
schedule: {watch: source, poll_seconds: 1, settle_seconds: 4}
"""
WATCHED_PREFIX = (
    WATCHED.replace("name: watched", "name: arriving")
    .replace("FOLDER", "s3://atelier/incoming")
    .replace("settle_seconds: 4", "settle_seconds: 1")
)
BROKEN = SMALL.replace("name: small", "name: broken").replace("height: 8", "hight: 8")


@dataclass(frozen=True)
class Running:
    """The stack with a client of each server."""

    stack: stack.StackState
    airflow: AirflowClient
    jobs: JobsClient

    def start(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Start a run with an id of ours."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        self.airflow.ask("POST", f"/dags/{dag_id}/dagRuns", body)

    def ended(self, dag_id: str, run_id: str, seconds: float = 90.0) -> tuple[str, dict[str, StageView]]:
        """Wait for a run's end; its state and its tasks."""
        until(lambda: self.airflow.run_state(dag_id, run_id) in {"success", "failed"}, seconds)
        return self.airflow.run_state(dag_id, run_id), self.stages(dag_id, run_id)

    def stages(self, dag_id: str, run_id: str, models: Sequence[str] = ()) -> dict[str, StageView]:
        """The tasks of a run by name; Airflow itself knows an instance's model only once it has begun."""
        return {stage.name: stage for stage in self.airflow.stages(dag_id, run_id, models)}

    def result_when_done(self, dag_id: str, run_id: str, name: str, models: Sequence[str] = ()) -> str:
        """Wait for a task's success; what it gave."""

        def done() -> StageView | None:
            stage = self.stages(dag_id, run_id, models).get(name)
            assert stage is None or stage.state != "failed", self.airflow.error_of(stage)
            return stage if stage and stage.state == "success" else None

        until(done)
        stage = done()
        assert stage is not None
        return str(self.airflow.result_of(stage))

    def page(self, link: str, *, logged_in: bool = True) -> httpx.Response:
        """What a browser gets that follows a link of a task."""
        assert self.stack.airflow is not None
        base, who = self.stack.airflow.url, self.stack.airflow
        headers = {}
        if logged_in:
            login = {"username": who.user, "password": who.password}
            token = httpx.post(f"{base}/auth/token", json=login, trust_env=False).json()["access_token"]
            headers["Cookie"] = f"_token={token}"
        return httpx.get(f"{base}{link}", headers=headers, trust_env=False)

    def tell(self, asset: str, extra: dict[str, str]) -> None:
        """Make an event of an asset, as a producer outside Airflow does."""
        found = self.airflow.ask("GET", f"/assets?name_pattern={asset}")["assets"]
        [asset_id] = [one["id"] for one in found if one["name"] == asset]
        event = {"asset_id": asset_id, "extra": extra}
        until(lambda: self._takes("/assets/events", event))

    def _takes(self, path: str, body: dict[str, Any]) -> bool:
        """Whether Airflow takes what is posted; on SQLite it may answer 500 while tasks begin, and then has not."""
        try:
            self.airflow.ask("POST", path, body)
        except StackError as error:
            assert "gave 500" in str(error)
            return False
        return True

    def events_of(self, dag_id: str) -> int:
        """How many asset events the runs of a DAG have made."""
        return int(self.airflow.ask("GET", f"/assets/events?source_dag_id={dag_id}")["total_entries"])

    def job_of(self, run_id: str) -> Job | None:
        """The newest Ray job of a run."""
        jobs = [job for job in self.jobs.list() if job.metadata.get("run_id") == run_id]
        return max(jobs, key=lambda job: job.attempt, default=None)


def until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait for a condition; fails after `seconds`, a limit against hanging only."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)


def watched_folder(recipes: Path) -> Path:
    """Where the images of the recipe `watched` lie; empty at first."""
    folder = recipes / "images"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes, one of them broken."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "small.yaml").write_text(SMALL)
    (folder / "broken.yaml").write_text(BROKEN)
    (folder / "arriving.yaml").write_text(WATCHED_PREFIX)
    (folder / "watched.yaml").write_text(WATCHED.replace("FOLDER", str(watched_folder(folder))))
    return folder


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, recipes: Path) -> Iterator[Running]:
    """The stack, which reads the project's DAGs and those of `files/`."""
    home = tmp_path_factory.mktemp("home")
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    folders = {"dags-folder": REPOSITORY / "dags", "test-files": Path(__file__).parent / "files"}
    bundles = [{"name": name, "classpath": local, "kwargs": {"path": str(path)}} for name, path in folders.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATELIER_RECIPES", str(recipes))
        patch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
        patch.setenv("AIRFLOW_HOME", str(home / "airflow"))  # for the tests that import airflow
        started = stack.up(home)
        try:
            assert started.airflow is not None and started.ray is not None
            with (
                AirflowClient(started.airflow) as airflow,
                JobsClient(started.ray.dashboard, started.ray.token) as jobs,
            ):
                for dag_id in ("shell_job", "small_models", "watched_dataset", "arriving_dataset", "orphans"):
                    until(lambda dag_id=dag_id: airflow.ask("GET", f"/dags/{dag_id}", missing_is_none=True))  # type: ignore[misc]
                yield Running(started, airflow, jobs)
        finally:
            stack.down(home)
