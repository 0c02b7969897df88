"""Ray's Jobs API over HTTP, on a real Ray head with token authentication."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import stack
from pipeline.errors import UserError
from pipeline.jobs import (
    Job,
    JobsClient,
    JobsError,
    entrypoint_of,
    failure_of,
    last_error,
    last_json,
)

on_ray = pytest.mark.stack


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobsClient]:
    home = tmp_path_factory.mktemp("home")
    started = stack.up(home, airflow=False)
    try:
        assert started.ray is not None
        with JobsClient(started.ray.dashboard, started.ray.token) as client:
            yield client
    finally:
        stack.down(home)


def submit(client: JobsClient, base_id: str, script: str, deadline_seconds: int = 60, first_attempt: int = 1) -> Job:
    entrypoint = entrypoint_of(["bash", "-c", script], deadline_seconds)
    metadata = {"task_id": base_id}
    return client.submit_or_attach(
        base_id, entrypoint, environment={"COLOUR": "green"}, metadata=metadata, first_attempt=first_attempt
    )


def ended(client: JobsClient, job: Job) -> Job:
    return reached(client, job, {"SUCCEEDED", "FAILED", "STOPPED"})


def reached(client: JobsClient, job: Job, statuses: set[str]) -> Job:
    deadline = time.monotonic() + 60
    while True:
        found = client.find(job.id)
        assert found is not None
        if found.status in statuses:
            return found
        assert time.monotonic() < deadline, f"{found} is not {statuses}"
        time.sleep(0.1)


@on_ray
def test_a_job_runs_with_its_environment_and_the_stores(client: JobsClient) -> None:
    job = submit(client, "hello", 'echo "$COLOUR $ATELIER_STORE ${AWS_ENDPOINT_URL_S3%:*}"')
    found = ended(client, job)
    assert (found.id, found.status, found.exit_code) == ("hello-1", "SUCCEEDED", 0)
    assert found.metadata == {"task_id": "hello"}
    log = client.log(job.id)
    assert "\ngreen s3://atelier http://127.0.0.1\n" in log
    assert client.log(job.id, offset=len(log) - 3) == log[-3:]


@on_ray
def test_the_same_work_is_submitted_once(client: JobsClient, tmp_path: Path) -> None:
    script = f"echo ran >> {tmp_path}/ran; sleep 2"
    first, second = (submit(client, "once", script) for _ in range(2))
    assert first.id == second.id
    assert ended(client, first).status == "SUCCEEDED"
    assert submit(client, "once", script).status == "SUCCEEDED"
    assert (tmp_path / "ran").read_text() == "ran\n"


@on_ray
def test_work_that_failed_is_started_as_the_next_attempt(client: JobsClient) -> None:
    assert ended(client, submit(client, "again", "exit 1")).status == "FAILED"
    assert submit(client, "again", "true").id == "again-2"


@on_ray
def test_attempts_that_are_spent_are_passed_over(client: JobsClient) -> None:
    ended(client, submit(client, "spent", "true"))
    assert submit(client, "spent", "true", first_attempt=2).id == "spent-2"


@on_ray
def test_stopping_interrupts_a_job_and_lets_it_finish_its_words(client: JobsClient) -> None:
    # The interrupt comes from Ray and again from `timeout`, at once or one after the other: the script counts them.
    script = (
        f'{sys.executable} -c "import signal, time\nseen = []\n'
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        'print(1, flush=True)\nwhile not seen: time.sleep(0.1)\ntime.sleep(4)\nprint(2)"'
    )
    job = submit(client, "stopped", f"exec {script}")
    reached(client, job, {"RUNNING"})
    while "\n1\n" not in client.log(job.id):
        time.sleep(0.1)
    client.stop(job.id)
    assert ended(client, job).status == "STOPPED"
    assert client.log(job.id).endswith("\n2\n")
    client.stop(job.id)  # a second time changes nothing


@on_ray
def test_a_job_is_interrupted_at_its_deadline(client: JobsClient) -> None:
    job = ended(client, submit(client, "late", "exec sleep 60", deadline_seconds=1))
    assert (job.status, job.exit_code) == ("FAILED", 124)
    assert "ran past its deadline" in failure_of(job, client.log(job.id))


@on_ray
def test_an_exit_status_and_the_last_error_are_told(client: JobsClient) -> None:
    job = ended(client, submit(client, "mistake", "echo 'error: no such folder'; exit 2"))
    assert job.exit_code == 2
    assert failure_of(job, client.log(job.id)) == "Ray job mistake-1 failed with exit status 2: no such folder"


@on_ray
def test_unknown_jobs_are_none_and_known_ones_are_listed(client: JobsClient) -> None:
    ended(client, submit(client, "listed", "true"))
    assert client.find("nobody-1") is None
    assert client.log("nobody-1") == ""
    client.stop("nobody-1")
    assert "listed-1" in {job.id for job in client.list()}


@on_ray
@pytest.mark.parametrize(("token", "came"), [("0" * 64, "got another"), (None, "got none")])
def test_a_wrong_token_is_the_users_mistake(client: JobsClient, token: str | None, came: str) -> None:
    with JobsClient(client.address, token) as stranger, pytest.raises(UserError, match=came):
        stranger.list()


def test_no_answer_is_one_line() -> None:
    with JobsClient("http://127.0.0.1:9", None) as nobody, pytest.raises(JobsError) as error:
        nobody.list()
    assert str(error.value).startswith("Ray at http://127.0.0.1:9: expected an answer")
    assert "\n" not in str(error.value)


def test_the_result_is_the_last_json_object() -> None:
    assert last_json('{"uri": "a"}\nnoise\n{"uri": "b"}\n{broken\n[1]\nbye\n') == {"uri": "b"}
    assert last_json("nothing") is None


def test_the_last_error_is_ateliers_own_before_others() -> None:
    assert last_error("error: full disk\n\x1b[31mValueError: x\x1b[0m\nbye\n") == "full disk"
    assert last_error("start\n\x1b[31mValueError: x\x1b[0m\nbye\n") == "ValueError: x"
    assert last_error("start\nbye\n") == "bye"
    assert last_error("full\nRunning entrypoint for job a-1: grep error\n") == "full"
    assert last_error("full\n\x1b[33m(raylet)\x1b[0m WARNING: no error\n") == "full"
    assert last_error("\n") == "its log is empty"
