"""Faults of Ray's head, of Airflow's own processes, and of people: one job, one release, the weights of a calm run."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline.airflow_client import AirflowClient
from pipeline.artifacts import Release
from pipeline.artifacts import Run as Record
from pipeline.jobs import Job
from pipeline.records import load
from pipeline.releases import releases_of
from tests.cluster import airflow as airflows
from tests.cluster.airflow import DAG, Airflow, DagRun
from tests.cluster.cluster import RECIPE, Cluster, Run, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
TRAIN = "model.train"
STOP_SECONDS = 30.0
DASHBOARD = "dashboard/dashboard.py"


@dataclass
class Site:
    """Airflow beside the cluster, with a client of its API."""

    cluster: Cluster
    airflow: Airflow
    client: AirflowClient

    def start(self, name: str) -> DagRun:
        """Start a run that trains anew."""
        conf = {"dataset": self.cluster.dataset, "force": True}
        body = {"dag_run_id": name, "logical_date": None, "conf": conf}
        self.client.ask("POST", f"/dags/{DAG}/dagRuns", body)
        return DagRun(self.client, DAG, name)

    def jobs(self, run: DagRun, task_id: str = TRAIN) -> list[Job]:
        """The Ray jobs of a run's task, as far as the head knows."""
        with self.cluster.client() as client:
            found = [job for job in client.list() if job.metadata.get("run_id") == run.run_id]
        return [job for job in found if job.metadata["task_id"] == task_id]

    def training(self, run: DagRun) -> Run:
        """The job of a run's training, once there is one."""
        until(lambda: self.cluster.answers() and self.jobs(run), f"a job of {run.run_id}")
        return Run(self.cluster, self.jobs(run)[-1].id, "")

    def releases(self) -> list[Release]:
        return list(releases_of(self.cluster.store, "tried-vae"))

    def ends_with_one_release(self, run: DagRun, before: int, undisturbed: str) -> None:
        """The run succeeds, and what it publishes once is what an undisturbed one would have."""
        until(lambda: run.state() in airflows.ENDED, f"the end of {run.run_id}", 400)
        assert run.state() == "success"
        releases = self.releases()
        assert len(releases) == before + 1
        trained = load(self.cluster.store, releases[-1].run, Record)
        assert [file.sha256 for file in trained.files if file.name == "model.safetensors"] == [undisturbed]


@pytest.fixture(scope="module")
def whole_site(started: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("site")
    recipes = folder / "recipes"
    recipes.mkdir()
    recipe = RECIPE | {"airflow": {"retries": 3, "retry_seconds": 5}}
    (recipes / "tried.yaml").write_text(yaml.safe_dump(recipe))
    with airflows.airflow(started, folder / "airflow", recipes) as running, AirflowClient(running.where) as client:
        until(lambda: client.ask("GET", f"/dags/{DAG}", missing_is_none=True), "the DAG")
        yield Site(started, running, client)


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    """Airflow, with no run under way afterwards, whatever a test has left."""
    yield whole_site
    for run in whole_site.client.ask("GET", f"/dags/{DAG}/dagRuns?state=running&state=queued")["dag_runs"]:
        mark(whole_site, DagRun(whole_site.client, DAG, run["dag_run_id"]), "failed")


def test_the_head_is_killed(cluster: Cluster, site: Site, undisturbed: str) -> None:
    before = len(site.releases())
    run = site.start("head-killed")
    site.training(run).reach(400)
    cluster.head.power_off()
    start = time.monotonic()
    cluster.head.boot()
    until(lambda: cluster.answers() and site.jobs(run), "it is submitted again", 300)
    training = site.training(run)
    until(lambda: training.step() > 400, "farther than before", 300)
    cluster.recovered("Ray's head killed and started again; the task tries again", time.monotonic() - start)
    assert training.resumed()
    assert len(site.jobs(run)) == 1
    site.ends_with_one_release(run, before, undisturbed)
    assert run.task(TRAIN)["try_number"] == 2


@pytest.mark.parametrize("server", ["scheduler", "triggerer"])
def test_a_server_of_airflow_is_killed(cluster: Cluster, site: Site, undisturbed: str, server: str) -> None:
    before = len(site.releases())
    run = site.start(f"{server}-killed")
    site.training(run).reach(300)
    site.airflow.kill(server)
    start, since = time.monotonic(), time.time()
    site.airflow.start(server)
    until(lambda: site.airflow.healthy(since), "Airflow", 240)
    cluster.recovered(f"Airflow's {server} killed -9 and started again: until it is well", time.monotonic() - start)
    site.ends_with_one_release(run, before, undisturbed)
    assert len(site.jobs(run)) == 1
    assert not Run(cluster, site.jobs(run)[0].id, "").resumed()


def test_a_tasks_process_is_killed_between_submitting_and_waiting(
    cluster: Cluster, site: Site, undisturbed: str
) -> None:
    """The moment is short: Ray's dashboard and Airflow's api-server are held up, one after the other, to stretch it."""
    before = len(site.releases())
    assert cluster.head.signal(DASHBOARD, signal.SIGSTOP)
    run = site.start("task-killed")
    log = site.airflow.log_of(run.run_id, TRAIN)
    until(lambda: log.exists() and b"endgroup" in log.read_bytes(), "the task has begun")
    time.sleep(2)  # it asks Ray now, and gets no answer
    site.airflow.pause("api-server")
    cluster.head.signal(DASHBOARD, signal.SIGCONT)
    until(lambda: b"Ray job " in log.read_bytes(), "it has submitted its job, and cannot tell Airflow")
    assert site.airflow.kill_tasks() == 1
    start = time.monotonic()
    site.airflow.resume("api-server")
    until(lambda: run.task(TRAIN).get("try_number") == 2 and run.task(TRAIN)["state"] == "deferred", "it attaches")
    cluster.recovered("task's process killed -9 after submitting: until it is attached", time.monotonic() - start)
    site.ends_with_one_release(run, before, undisturbed)
    [job] = site.jobs(run)
    assert job.attempt == 1 and not Run(cluster, job.id, "").resumed()


def test_a_person_marks_the_run_failed(cluster: Cluster, site: Site) -> None:
    before = len(site.releases())
    run = site.start("marked")
    training = site.training(run)
    training.reach(200)
    until(lambda: run.task(TRAIN).get("state") == "deferred", "it waits")
    start = time.monotonic()
    mark(site, run, "failed")
    until(lambda: cluster.job(training.job_id).status == "STOPPED", "the job stops", STOP_SECONDS)
    until(lambda: cluster.free_cpus() == len(cluster.workers), "its CPUs are free", STOP_SECONDS)
    cluster.recovered("DAG run marked failed: until its job is stopped and its CPUs are free", time.monotonic() - start)
    assert time.monotonic() - start < STOP_SECONDS
    assert len(site.releases()) == before


def test_a_person_clears_the_task(cluster: Cluster, site: Site, undisturbed: str) -> None:
    before = len(site.releases())
    run = site.start("cleared")
    training = site.training(run)
    training.reach(400)
    until(lambda: run.task(TRAIN).get("state") == "deferred", "it waits")
    start = time.monotonic()
    body = {"dry_run": False, "dag_run_id": run.run_id, "task_ids": [TRAIN], "only_failed": False}
    site.client.ask("POST", f"/dags/{DAG}/clearTaskInstances", body | {"reset_dag_runs": True})
    until(lambda: cluster.job(training.job_id).status == "STOPPED", "the job stops", STOP_SECONDS)
    cluster.recovered("running task cleared: until its job is stopped", time.monotonic() - start)
    assert time.monotonic() - start < STOP_SECONDS
    until(lambda: len(site.jobs(run)) == 2, "it is submitted again")
    site.ends_with_one_release(run, before, undisturbed)
    again = max(site.jobs(run), key=lambda job: job.attempt)
    assert again.attempt == 2 and Run(cluster, again.id, "").resumed(), "it goes on from where it was stopped"


def mark(site: Site, run: DagRun, state: str) -> None:
    """As a person does in Airflow's pages."""
    site.client.ask("PATCH", run.path, {"state": state})
    until(lambda: run.state() == state, state)
