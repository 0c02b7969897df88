"""The models' DAG from end to end under a real scheduler: parameters, clearing, what is told of a failure."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from pipeline.errors import StackError
from tests.dags.conftest import Running, until

pytestmark = pytest.mark.stack
PATIENCE_SECONDS = 400.0
Messages = list[dict[str, str]]


@pytest.fixture(scope="module")
def messages(running: Running) -> Iterator[Messages]:
    """What is posted to the connection `alerts`."""
    told: Messages = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = {"conn_type": "http", "host": "127.0.0.1", "port": server.server_port, "schema": "http"}
        running.airflow.ask("POST", "/connections", {"connection_id": "alerts", **where})
        yield told
        server.shutdown()


@pytest.fixture(scope="module")
def dataset(running: Running) -> str:
    """The URI of the ingested digits. The run of the models that it starts is of no interest here."""
    running.airflow.ask("PATCH", "/dags/small_models", {"is_paused": True})
    running.start("small_dataset", "ingested", {})
    state, stages = running.ended("small_dataset", "ingested", PATIENCE_SECONDS)
    assert state == "success"
    running.airflow.ask("PATCH", "/dags/small_models", {"is_paused": False})
    return str(running.airflow.result_of(stages["ingest"]))


@pytest.fixture(scope="module")
def made(running: Running, dataset: str) -> dict[str, str]:
    """A run of one model with three steps; what each task of it gave."""
    running.start("small_models", "one", {"dataset": dataset, "models": ["vae"], "steps": 3})
    state, stages = running.ended("small_models", "one", PATIENCE_SECONDS)
    assert state == "success", [str(running.airflow.error_of(s)) for s in stages.values() if s.state == "failed"]
    return {name: running.airflow.result_of(stage) for name, stage in stages.items()}


def clear(running: Running, task_id: str, *, downstream: bool) -> dict[str, str]:
    """Clear a task of the run, as a person does, and wait; gives what each task gave then."""
    body = {
        "dry_run": False,
        "dag_run_id": "one",
        "task_ids": [task_id],
        "only_failed": False,
        "include_downstream": downstream,
        "reset_dag_runs": True,
    }
    running.airflow.ask("POST", "/dags/small_models/clearTaskInstances", body)
    state, stages = running.ended("small_models", "one", PATIENCE_SECONDS)
    assert state == "success"
    return {name: running.airflow.result_of(stage) for name, stage in stages.items()}


def test_the_parameters_say_which_models_and_how_many_steps(running: Running, made: dict[str, str]) -> None:
    assert {name.partition(".")[0] for name in made} == {"dataset", "chosen", "vae"}
    assert made["vae.publish"].endswith("/releases/small-vae/1")
    jobs = [job for job in running.jobs.list() if job.metadata["run_id"] == "one"]
    [train] = [job for job in jobs if job.metadata["task_id"] == "model.train"]
    assert "--set models.vae.steps=3" in train.entrypoint


def test_each_task_links_to_what_it_is_about(running: Running, made: dict[str, str]) -> None:
    def links(task: str) -> dict[str, str]:
        found: dict[str, str] = running.airflow.ask(
            "GET", f"/dags/small_models/dagRuns/one/taskInstances/{task}/links?map_index=0"
        )["extra_links"]
        return found

    train = links("model.train")
    job = running.job_of("one")
    assert job is not None
    assert train["Ray job"].startswith(f"{running.jobs.address}/#/jobs/small_models-model.train-")
    report = running.page(links("model.publish")["Release report"])
    assert report.status_code == 200 and "small-vae <span" in report.text
    assert report.headers["Content-Security-Policy"].startswith(
        "sandbox allow-scripts"
    )  # it comes from the store: no page of Airflow's
    assert made["vae.train"] in running.page(train["Record"]).text
    assert "TensorBoard files</h1>" in running.page(train["TensorBoard files"]).text
    assert running.page(f"{train['Record']}no-such-file").status_code == 404
    assert running.page(train["Record"].replace("model.train", "model.promote")).status_code == 404
    stranger = running.page(train["Record"], logged_in=False)
    assert stranger.is_redirect and "/auth/login" in stranger.headers["Location"]


def test_a_cleared_publish_publishes_the_same_release_again(running: Running, made: dict[str, str]) -> None:
    assert clear(running, "model.publish", downstream=True) == made


def test_a_cleared_train_trains_again(running: Running, made: dict[str, str]) -> None:
    again = clear(running, "model.train", downstream=True)
    assert again["vae.train"] != made["vae.train"]
    assert again["vae.publish"].endswith("/releases/small-vae/2")


def test_what_is_trained_is_trained_again_only_by_force(running: Running, dataset: str, made: dict[str, str]) -> None:
    again: list[str] = []
    for run_id, force in (("done", False), ("forced", True)):
        asked = {"models": ["vae"], "steps": 3, "force": force}  # by hand without a dataset: the newest
        running.start("small_models", run_id, asked)
        again.append(running.result_when_done("small_models", run_id, "vae.train", ("vae",)))
        running.airflow.ask("PATCH", f"/dags/small_models/dagRuns/{run_id}", {"state": "failed"})
    assert again[0] == made["vae.train"] and again[1] not in made.values()


def test_a_wrong_parameter_is_refused_by_its_schema(running: Running, dataset: str) -> None:
    for wrong in ({"models": ["nobody"]}, {"steps": 0}, {"workers": "many"}, {"force": "perhaps"}):
        with pytest.raises(StackError, match="gave 4"):
            running.start("small_models", f"wrong-{next(iter(wrong))}", {"dataset": dataset, **wrong})


def test_a_users_mistake_fails_at_once_and_is_told(running: Running, messages: Messages, dataset: str) -> None:
    running.start("small_models", "lost", {"dataset": f"{dataset}0"})
    state, stages = running.ended("small_models", "lost")
    assert state == "failed"
    assert stages["vae.train"].try_number == stages["other.train"].try_number == 1
    until(lambda: any(told["run_id"] == "lost" and told["event"] == "failed" for told in messages))
    [told] = [told for told in messages if told["run_id"] == "lost" and told["event"] == "failed"]
    assert told["text"] == "small_models failed: run lost"


def test_one_models_failure_spoils_no_other(running: Running, dataset: str) -> None:
    running.start("small_models", "spoiled", {"dataset": dataset, "steps": 2})
    for uri in (f"{dataset}0", dataset):  # two datasets while the models are busy
        running.tell("small", {"uri": uri})
    train = "/dags/small_models/dagRuns/spoiled/taskInstances/model.train/0"
    until(lambda: (found := running.airflow.ask("GET", train, missing_is_none=True)) and found["state"] == "deferred")
    running.airflow.ask("PATCH", train, {"new_state": "failed"})

    def state_of(name: str) -> str:
        return running.stages("small_models", "spoiled", ("vae", "other"))[name].state

    until(lambda: state_of("other.sample") == "success", PATIENCE_SECONDS)
    assert state_of("vae.evaluate") == "upstream_failed"
    assert not by_assets(running)
    running.airflow.ask("PATCH", "/dags/small_models/dagRuns/spoiled", {"state": "failed"})


def test_several_datasets_that_came_meanwhile_are_one_run_on_the_newest(running: Running, dataset: str) -> None:
    until(lambda: by_assets(running))
    [run_id] = by_assets(running)
    assert running.result_when_done("small_models", run_id, "dataset") == dataset
    running.airflow.ask("PATCH", f"/dags/small_models/dagRuns/{run_id}", {"state": "failed"})
    assert by_assets(running) == [run_id]


def by_assets(running: Running) -> list[str]:
    """The runs of the models that datasets have started."""
    found = running.airflow.ask("GET", "/dags/small_models/dagRuns?run_type=asset_triggered")["dag_runs"]
    return [run["dag_run_id"] for run in found]
