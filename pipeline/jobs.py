"""Ray's Jobs API over plain HTTP: submit or attach, status, log, stop, list. Needs no ray.

    JobsClient(address, token)        for commands and tasks
    AsyncJobsClient(address, token)   for a trigger, which must not block its event loop

A job's id is derived from what is being done, with the number of the attempt at its end, so a caller that died between
submitting and remembering finds its job again.

    JobsError                a StackError: Ray did not answer, or answered something else than was asked
    UserError                Ray refused the token
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from pipeline.errors import StackError, UserError

TIMEOUT_SECONDS = 30.0
MAX_ATTEMPTS = 1_000
STOP_WAIT_SECONDS = 30  # Ray's default of 3 s kills a training run before it has aborted its workers
KILL_AFTER_SECONDS = 60
DEADLINE_EXIT_CODE = 124  # of coreutils' timeout
USER_MISTAKE_EXIT_CODE = 2
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Ray's own lines in a job's log; the one with the entrypoint may come late, after the job's first words.
_RAYS_OWN = re.compile(r"^Running entrypoint for job |\b(?:job_manager|worker)\.py:\d+ -- |^\((?:raylet|autoscaler)\b")
_ERROR = re.compile(r"\b\w*(?:error|exception)\b", re.IGNORECASE)


class JobsError(StackError):
    """Ray did not answer, or answered something else than was asked."""


@dataclass(frozen=True)
class Job:
    """What Ray says of one job. `status` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    id: str
    status: str
    message: str = ""
    exit_code: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    entrypoint: str = field(default="", compare=False)

    @property
    def finished(self) -> bool:
        """Whether the status is final; STOPPED is."""
        return self.status in {"SUCCEEDED", "FAILED", "STOPPED"}

    @property
    def attempt(self) -> int:
        """The number at the end of the id."""
        return int(self.id.rpartition("-")[2])


def entrypoint_of(command: Sequence[str], deadline_seconds: int) -> str:
    """The shell line of a command that is interrupted at its deadline, and killed a minute later.

    The deadline stands on Ray's side: it holds where Airflow is gone too. `--foreground` keeps the command in the
    process group that Ray kills when the job's supervisor dies.
    """
    limit = [
        "timeout",
        "--foreground",
        "--signal=INT",
        f"--kill-after={KILL_AFTER_SECONDS}",
        str(deadline_seconds),
    ]
    return shlex.join([*limit, *command])


def last_json(log: str) -> dict[str, Any] | None:
    """The last line of a log that is a JSON object."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None


def own_lines(log: str) -> list[str]:
    """The lines that a job's command wrote: without Ray's own, without colours, without blank ones."""
    cleaned = (_ANSI.sub("", line).strip() for line in log.splitlines())
    return [line for line in cleaned if line and not _RAYS_OWN.search(line)]


def last_error(log: str) -> str:
    """The line of a log that says what went wrong: atelier's own `error:`, else the last that names one or is there."""
    lines = own_lines(log)[-50:]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    named = [line for line in lines if _ERROR.search(line)]
    return (own or named or lines or ["its log is empty"])[-1][:500]


def failure_of(job: Job, log: str) -> str:
    """One line on a job that did not succeed."""
    if job.status == "STOPPED":
        return f"Ray job {job.id} was stopped"
    if job.exit_code == DEADLINE_EXIT_CODE:
        return f"Ray job {job.id} ran past its deadline (cluster.timeout_minutes of the recipe); {last_error(log)}"
    if job.exit_code is None:  # it never started: Ray's own words are in the message
        return f"Ray job {job.id} did not run: {last_error(job.message)}"
    return f"Ray job {job.id} failed with exit status {job.exit_code}: {last_error(log)}"


class JobsClient:
    """Ray's Jobs API at `address` (`http://host:port`), with the cluster's token where it asks for one."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        transport = httpx.HTTPTransport(retries=2)
        self._http = httpx.Client(
            base_url=address,
            headers=_headers(token),
            timeout=TIMEOUT_SECONDS,
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit_or_attach(
        self,
        base_id: str,
        entrypoint: str,
        *,
        environment: Mapping[str, str],
        metadata: Mapping[str, str],
        first_attempt: int = 1,
    ) -> Job:
        """Start `entrypoint` as `base_id-N`, or find the job that is at it already.

        N counts up from `first_attempt` past the attempts that FAILED or were STOPPED; one that is PENDING, RUNNING or
        SUCCEEDED is attached to. Raises JobsError where Ray refuses the job.
        """
        for attempt in range(first_attempt, first_attempt + MAX_ATTEMPTS):
            job_id = f"{base_id}-{attempt}"
            job = self.find(job_id) or self._submit(job_id, entrypoint, environment, metadata)
            if job.status not in {"FAILED", "STOPPED"}:
                return job
        raise JobsError(f"Ray at {self.address}: {MAX_ATTEMPTS} attempts at {base_id} failed; delete those jobs")

    def find(self, job_id: str) -> Job | None:
        """The job with this id; None where Ray knows none."""
        response = self._request("GET", f"/api/jobs/{job_id}")
        return None if response.status_code == httpx.codes.NOT_FOUND else _job(_checked(self.address, response))

    def log(self, job_id: str, offset: int = 0) -> str:
        """The job's log from the character `offset` on."""
        return _log(self.address, self._request("GET", f"/api/jobs/{job_id}/logs"))[offset:]

    def stop(self, job_id: str) -> None:
        """Ask Ray to stop a job; one that has ended, or that is unknown, is left as it is."""
        response = self._request("POST", f"/api/jobs/{job_id}/stop")
        if response.status_code != httpx.codes.NOT_FOUND:
            _checked(self.address, response)

    def stop_attempts(self, base_id: str) -> None:
        """Ask Ray to stop each unfinished attempt of what `submit_or_attach` started as `base_id`."""
        for job in self.list():
            if job.id.rpartition("-")[0] == base_id and not job.finished:
                self.stop(job.id)

    def list(self) -> "list[Job]":
        """All submitted jobs that Ray knows."""
        found = _checked(self.address, self._request("GET", "/api/jobs/"))
        return [_job(entry) for entry in found if entry.get("submission_id")]

    def _submit(self, job_id: str, entrypoint: str, environment: Mapping[str, str], metadata: Mapping[str, str]) -> Job:
        """Submit a job; where somebody else was first, theirs is given."""
        stopping = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)}
        body = {
            "entrypoint": entrypoint,
            "submission_id": job_id,
            "runtime_env": {"env_vars": {**stopping, **environment}},
            "metadata": dict(metadata),
        }
        response = self._request("POST", "/api/jobs/", body)
        if response.is_error and (rival := self.find(job_id)):  # 'already exists' comes as a status 500
            return rival
        _checked(self.address, response)
        return Job(id=job_id, status="PENDING", metadata=dict(metadata))

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise _no_answer(self.address, error) from None


class AsyncJobsClient:
    """The part of JobsClient that a trigger needs, for an event loop."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self._http = httpx.AsyncClient(
            base_url=address, headers=_headers(token), timeout=TIMEOUT_SECONDS, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def find(self, job_id: str) -> Job | None:
        """As JobsClient.find."""
        response = await self._request("GET", f"/api/jobs/{job_id}")
        return None if response.status_code == httpx.codes.NOT_FOUND else _job(_checked(self.address, response))

    async def log(self, job_id: str, offset: int = 0) -> str:
        """As JobsClient.log."""
        return _log(self.address, await self._request("GET", f"/api/jobs/{job_id}/logs"))[offset:]

    async def stop(self, job_id: str) -> None:
        """As JobsClient.stop."""
        response = await self._request("POST", f"/api/jobs/{job_id}/stop")
        if response.status_code != httpx.codes.NOT_FOUND:
            _checked(self.address, response)

    async def _request(self, method: str, path: str) -> httpx.Response:
        try:
            return await self._http.request(method, path)
        except httpx.HTTPError as error:
            raise _no_answer(self.address, error) from None


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _no_answer(address: str, error: httpx.HTTPError) -> JobsError:
    return JobsError(
        f"Ray at {address}: expected an answer of its Jobs API, got {error or type(error).__name__}; is it up?"
    )


def _checked(address: str, response: httpx.Response) -> Any:
    """The JSON of an answer. Raises UserError where the token was refused, JobsError for any other error."""
    if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        came = "another" if "authorization" in response.request.headers else "none"
        raise UserError(
            f"Ray at {address}: expected the cluster's token, got {came}; it is in `ray_default`'s password"
        )
    if response.is_error:
        raise JobsError(
            f"Ray at {address}: {response.request.url.path} gave {response.status_code}: {last_error(response.text)}"
        )
    try:
        return response.json()
    except ValueError:
        raise JobsError(f"Ray at {address}: expected JSON of its Jobs API, got {response.text[:80]!r}") from None


def _job(found: Mapping[str, Any]) -> Job:
    return Job(
        id=found["submission_id"],
        status=found["status"],
        message=found.get("message") or "",
        exit_code=found.get("driver_exit_code"),
        metadata=found.get("metadata") or {},
        entrypoint=found.get("entrypoint") or "",
    )


def _log(address: str, response: httpx.Response) -> str:
    """The whole log; empty where the job has none yet."""
    if response.status_code == httpx.codes.NOT_FOUND:
        return ""
    return str(_checked(address, response)["logs"] or "")
