"""The operator and the trigger under a real scheduler, on a real Ray head."""

import json
from pathlib import Path

import httpx
import pytest
import yaml

from pipeline.errors import UserError
from pipeline.jobs import entrypoint_of
from pipeline.pools import make_pools
from pipeline.recipe import Recipe, load_recipe
from tests.dags.conftest import SMALL, Running, until

pytestmark = pytest.mark.stack
URI_LINE = """echo '{"uri": "memory://made"}'"""


def test_a_job_that_succeeds_gives_its_uri_and_an_asset_event(running: Running) -> None:
    running.start("shell_job", "good", {"command": f"echo working 1/1; {URI_LINE}"})
    state, stages = running.ended("shell_job", "good")
    assert (state, stages["job"].try_number) == ("success", 1)
    assert running.airflow.result_of(stages["job"]) == "memory://made"
    [event] = running.airflow.ask("GET", "/assets/events?source_dag_id=shell_job&source_run_id=good")["asset_events"]
    assert event["extra"] == {"uri": "memory://made"}


def test_the_log_of_the_job_is_in_the_log_of_the_task_once(running: Running) -> None:
    lines = "for i in 1 2 3; do echo line $i; sleep 1; done"
    running.start("shell_job", "lines", {"command": f"{lines}; {URI_LINE}"})
    state, stages = running.ended("shell_job", "lines")
    assert (state, stages["job"].try_number) == ("success", 1)
    log = running.airflow.ask("GET", "/dags/shell_job/dagRuns/lines/taskInstances/job/logs/1")["content"]
    events = [line["event"] for line in log]
    assert [events.count(f"line {i}") for i in (1, 2, 3)] == [1, 1, 1]


def test_a_job_that_fails_is_tried_again_and_then_fails_with_its_last_error(running: Running) -> None:
    running.start("shell_job", "bad", {"command": "echo 'error: the disk is on fire'; echo goodbye; exit 1"})
    state, stages = running.ended("shell_job", "bad")
    assert (state, stages["job"].try_number) == ("failed", 2)
    error = running.airflow.error_of(stages["job"])
    assert "exit status 1: the disk is on fire; its log: http" in str(error)
    assert not isinstance(error, UserError)


def test_a_mistake_of_the_user_is_not_tried_again(running: Running) -> None:
    running.start("shell_job", "mistake", {"command": "echo 'error: no such folder'; exit 2"})
    state, stages = running.ended("shell_job", "mistake")
    assert (state, stages["job"].try_number) == ("failed", 1)
    assert isinstance(running.airflow.error_of(stages["job"]), UserError)


def test_marking_a_task_failed_stops_its_job(running: Running) -> None:
    running.start("shell_job", "killed", {"command": "echo started; sleep 100"})
    # Until the triggerer runs the trigger there is nobody to stop the job: the DAG `orphans` would, within minutes.
    task = "/dags/shell_job/dagRuns/killed/taskInstances/job"
    until(lambda: (job := running.job_of("killed")) and job.status == "RUNNING")
    until(lambda: running.airflow.ask("GET", task)["state"] == "deferred")
    until(lambda: "started" in [line["event"] for line in running.airflow.ask("GET", f"{task}/logs/1")["content"]])
    running.airflow.ask("PATCH", task, {"new_state": "failed"})
    until(lambda: (job := running.job_of("killed")) and job.status == "STOPPED")


def test_ending_a_task_before_it_is_deferred_stops_its_job(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from dags.ray_job import RayJobOperator

    assert running.stack.ray is not None
    where = httpx.URL(running.stack.ray.dashboard)
    connection = {"conn_type": "http", "schema": where.scheme, "host": where.host, "port": where.port}
    token = {"password": running.stack.ray.token}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps(connection | token))
    sleep = entrypoint_of(["sleep", "100"], 120)
    job = running.jobs.submit_or_attach("undeferred", sleep, environment={}, metadata={})
    operator = RayJobOperator(task_id="job", verb="train", recipe_json="{}", options={}, deadline_seconds=120)
    operator._base_id = "undeferred"
    operator.on_kill()
    until(lambda: (found := running.jobs.find(job.id)) and found.status == "STOPPED")


def test_a_try_attaches_to_the_job_that_an_earlier_one_left(running: Running, tmp_path: Path) -> None:
    from dags.ray_job import base_id_of

    witness = tmp_path / "ran"
    command = f"echo ran >> {witness}; sleep 3; {URI_LINE}"
    assert running.stack.airflow is not None
    owner = {"airflow": running.stack.airflow.url, "dag_id": "shell_job", "run_id": "attached", "task_id": "job"}
    owner["map_index"] = "-1"
    entrypoint = entrypoint_of(["bash", "-c", command], 120)
    base_id = base_id_of(owner, entrypoint)
    left = running.jobs.submit_or_attach(base_id, entrypoint, environment={}, metadata=owner)
    running.start("shell_job", "attached", {"command": command})
    assert running.ended("shell_job", "attached")[0] == "success"
    assert running.job_of("attached") == running.jobs.find(left.id)
    assert witness.read_text() == "ran\n"


def test_clearing_a_task_runs_its_job_anew(running: Running, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    running.start("shell_job", "cleared", {"command": f"echo ran >> {witness}; {URI_LINE}"})
    assert running.ended("shell_job", "cleared")[0] == "success"
    body = {"dry_run": False, "dag_run_id": "cleared", "only_failed": False, "reset_dag_runs": True}
    running.airflow.ask("POST", "/dags/shell_job/clearTaskInstances", body)
    until(lambda: witness.read_text() == "ran\nran\n")
    assert running.ended("shell_job", "cleared")[0] == "success"


def test_the_dag_orphans_stops_this_airflows_orphans_only(running: Running) -> None:
    assert running.stack.airflow is not None
    gone = {"dag_id": "shell_job", "run_id": "gone", "task_id": "job", "map_index": "-1"}
    sleep = entrypoint_of(["sleep", "100"], 120)
    jobs = [
        running.jobs.submit_or_attach(name, sleep, environment={}, metadata={**gone, "airflow": airflow})
        for name, airflow in (("orphan", running.stack.airflow.url), ("foreign", "http://elsewhere"))
    ]
    running.start("shell_job", "alive", {"command": f"sleep 8; {URI_LINE}"})
    until(lambda: running.stages("shell_job", "alive")["job"].state == "running")
    running.start("orphans", "sweep", {})
    assert running.ended("orphans", "sweep")[0] == "success"
    until(lambda: (job := running.jobs.find(jobs[0].id)) and job.status == "STOPPED")
    foreign = running.jobs.find(jobs[1].id)
    assert foreign is not None and not foreign.finished
    running.jobs.stop(jobs[1].id)
    assert running.ended("shell_job", "alive")[0] == "success"


def test_a_pool_keeps_deferred_jobs_from_running_side_by_side(running: Running) -> None:
    pool = {"name": "one_gpu", "slots": 1, "include_deferred": True, "description": "one"}
    running.airflow.ask("POST", "/pools", pool)
    for run_id in ("first", "second"):
        running.start("pooled_job", run_id, {"command": f"sleep 4; {URI_LINE}"})
    for run_id in ("first", "second"):
        assert running.ended("pooled_job", run_id)[0] == "success"
    tasks = running.airflow.ask("GET", "/dags/pooled_job/dagRuns/~/taskInstances")["task_instances"]
    earlier, later = sorted((task["start_date"], task["end_date"]) for task in tasks)
    assert earlier[1] <= later[0]


def test_a_dag_is_busy_while_a_run_of_it_is_queued_or_running(running: Running) -> None:
    runs = [f"busy{number}" for number in range(5)]  # one more than it may have at a time
    for run_id in runs:
        running.start("shell_job", run_id, {"command": f"sleep 4; {URI_LINE}"})
    until(
        lambda: sorted(running.airflow.run_state("shell_job", run_id) for run_id in runs)[:2] == ["queued", "running"]
    )
    assert running.airflow._is_busy("shell_job")
    for run_id in runs:
        assert running.ended("shell_job", run_id)[0] == "success"
    until(lambda: not running.airflow._is_busy("shell_job"))


def test_the_pool_of_a_recipe_is_made_where_it_is_missing_and_told_of_where_it_is_too_small(running: Running) -> None:
    def recipe(workers: int) -> Recipe:
        text = SMALL.replace("owner: vision", "pool: made").replace("launcher: local", f"workers: {workers}")
        return load_recipe(Recipe.model_validate(yaml.safe_load(text)).to_json())

    [line] = make_pools(running.airflow, [recipe(1), recipe(2)])
    made = running.airflow.ask("GET", "/pools/made")
    assert made["slots"] >= 2 and made["include_deferred"] is True
    assert line == f"made Airflow's pool made with {made['slots']} slots"
    assert make_pools(running.airflow, [recipe(2)]) == []
    [line] = make_pools(running.airflow, [recipe(1), recipe(500)])
    assert f"expected a pool made of 500 slots or more, one for each worker, got {made['slots']}" in line
    assert running.airflow.ask("GET", "/pools/made") == made


def test_asking_is_rarer_for_a_long_job_and_after_failures() -> None:
    from dags.ray_job import MAX_POLL_SECONDS, POLL_SECONDS, poll_seconds

    assert poll_seconds(5, 0) == POLL_SECONDS
    assert poll_seconds(5, 0) < poll_seconds(5, 2) < poll_seconds(500, 2)
    assert poll_seconds(86_400, 9) == MAX_POLL_SECONDS
