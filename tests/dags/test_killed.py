"""A task that is ended while its job is being submitted leaves no job behind."""

import contextvars
import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.answers import JsonAnswers

TERM_SECONDS = 20.0  # against hanging only


class Ray(ThreadingHTTPServer):
    """The Jobs API as far as submitting and stopping go; Airflow's signal comes while a job is submitted."""

    daemon_threads = True
    registers_first: bool  # whether the job is there by the time of the signal

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Api)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.handled = threading.Event()
        self.submitted = False

    def submit(self, body: dict[str, Any]) -> None:
        job = {"submission_id": body["submission_id"], "status": "RUNNING", "metadata": body["metadata"]}
        if self.registers_first:
            self.jobs[job["submission_id"]] = job
        self.submitted = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        assert self.handled.wait(TERM_SECONDS)
        self.jobs[job["submission_id"]] = job


class Api(JsonAnswers, BaseHTTPRequestHandler):
    server: Ray

    def do_GET(self) -> None:
        job_id = self.path.rpartition("/")[2]
        found: Any = self.server.jobs.get(job_id) if job_id else list(self.server.jobs.values())
        self.answer(200 if found is not None else 404, found)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.endswith("/stop"):
            self.server.jobs[self.path.split("/")[-2]]["status"] = "STOPPED"
        else:
            self.server.submit(json.loads(body))
        self.answer(200, {})


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    with Ray() as server:
        where = {"conn_type": "http", "schema": "http", "host": "127.0.0.1", "port": server.server_port}
        monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps(where))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def instance() -> SimpleNamespace:
    return SimpleNamespace(
        dag_id="small_models", run_id="one", task_id="train", map_index=-1, xcom_push=lambda **_: None
    )


@pytest.mark.parametrize("registers_first", [True, False])
def test_ending_a_task_while_its_job_is_submitted_stops_the_job(
    ray: Ray, instance: SimpleNamespace, registers_first: bool
) -> None:
    from airflow.sdk.bases.operator import ExecutorSafeguard
    from airflow.sdk.exceptions import AirflowException, TaskDeferred

    from dags.ray_job import RayJobOperator

    ray.registers_first = registers_first
    other = {"submission_id": "small_models-train-0-1", "status": "RUNNING", "metadata": {}}
    ray.jobs["small_models-train-0-1"] = other
    operator = RayJobOperator(task_id="train", verb="train", recipe_json="{}", options={}, deadline_seconds=60)

    stopped_at_once: list[bool] = []

    def on_term(*_: Any) -> None:  # as Airflow's task runner has it
        operator.on_kill()
        stopped_at_once.extend(job["status"] == "STOPPED" for job in ray.jobs.values())
        ray.handled.set()

    before = signal.signal(signal.SIGTERM, on_term)
    context: Any = {"ti": instance, "task_state_store": {}}
    runner = contextvars.copy_context()
    runner.run(ExecutorSafeguard.tracker.set, operator)
    try:
        with pytest.raises((AirflowException, TaskDeferred)):
            runner.run(operator.execute, context)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ray.submitted
    assert any(stopped_at_once) is registers_first  # Airflow kills the process 5 s later
    assert [job["status"] for job in ray.jobs.values()] == ["RUNNING", "STOPPED"]
    assert other["status"] == "RUNNING"
