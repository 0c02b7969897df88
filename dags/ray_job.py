"""The operator and the trigger that run one verb of the command line as a Ray job. Needs no ray.

    execute   submits the job, or attaches to the one that an earlier try left, and defers
    trigger   waits in the triggerer for the job's end, and follows its log into the task's log
    resume    takes the URI of the record from the job's last line, or raises

What travels is a command line one way and the URI of a record the other. The Airflow connection (`ray_default`) says
where Ray's dashboard is: host, port, schema http or https, and the cluster's token as password.

A job's id is a digest of (this Airflow, dag, run, task, map index, command) and the number of the attempt: a try whose
worker died between submitting and remembering finds its job again. An attempt whose end a try has seen is spent, so
that clearing a task runs it anew. A training that is cleared after it succeeded is meant to train again: its command
then carries a word of its own (`nonce_of`), which its retries share. Publishing needs none: the same is the same.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import Asset, BaseHook, BaseOperator, BaseOperatorLink
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from dags.links import RayJobLink, RecordLink
from pipeline.errors import UserError
from pipeline.jobs import (
    USER_MISTAKE_EXIT_CODE,
    AsyncJobsClient,
    Job,
    JobsClient,
    JobsError,
    entrypoint_of,
    failure_of,
    last_json,
)

if TYPE_CHECKING:
    from airflow.sdk import Connection, Context

CONNECTION = "ray_default"
POLL_SECONDS = 1.0  # at first, and as long as the job is young
MAX_POLL_SECONDS = 15.0
POLL_SHARE = 0.02  # of the time waited so far: an hour's job is asked for every 15 s
PATIENCE_SECONDS = 300.0  # a head that restarts comes back within it
LOG_BYTES_PER_SECOND = 1_000_000  # the API gives the whole log each time: a long one is read less often
SPENT = "last_seen_attempt"
DONE = "times_succeeded"


def airflow_name() -> str:
    """What tells this Airflow's jobs from another's on the same Ray cluster: its base URL."""
    return str(conf.get("api", "base_url", fallback="airflow"))


def address_of(connection: "Connection") -> str:
    """The URL of Ray's dashboard. Raises UserError where the connection names no host."""
    if not connection.host:
        raise UserError(f"connection {connection.conn_id}: expected the host and port of Ray's dashboard, got no host")
    return f"{connection.schema or 'http'}://{connection.host}:{connection.port or 8265}"


def jobs_client(connection_id: str = CONNECTION) -> JobsClient:
    """A client for the Ray cluster of an Airflow connection."""
    connection = BaseHook.get_connection(connection_id)
    return JobsClient(address_of(connection), connection.password)


def job_page(address: str, job_id: str) -> str:
    """The URL of a job's page in Ray's dashboard."""
    return f"{address}/#/jobs/{job_id}"


def nonce_of(context: "Context", *, force: bool) -> str | None:
    """A word for one more run of the same inputs: where the task was cleared after a success, or told to. The same for
    all tries of one such wish."""
    times = cast(int, context["task_state_store"].get(DONE, 0))
    if not times and not force:
        return None
    return hashlib.sha256(json.dumps([*owner_of(context["ti"]).values(), times]).encode()).hexdigest()[:16]


class RayJobOperator(BaseOperator):
    """Runs `atelier VERB RECIPE --OPTION VALUE ... --json` as a Ray job and returns the URI of the record it made.

    The recipe travels inline, so no file needs to be on the cluster; it is no template, so text in it is never
    evaluated. Assets among the outlets get an event whose extra holds the URI. A job that ends with exit status 2 (the
    user's mistake) fails the task without a retry.
    """

    template_fields = ("options", "shown_as")
    operator_extra_links: tuple[BaseOperatorLink, ...] = (RayJobLink(), RecordLink())

    def __init__(
        self,
        *,
        verb: str,
        recipe_json: str,
        options: Mapping[str, Any],
        deadline_seconds: int,
        shown_as: str = "",
        connection_id: str = CONNECTION,
        **airflow_options: Any,
    ) -> None:
        super().__init__(**airflow_options)
        self.verb = verb
        self.recipe_json = recipe_json
        self.options = options
        self.deadline_seconds = deadline_seconds
        self.shown_as = shown_as  # of an instance in a mapped group
        self.connection_id = connection_id
        self._base_id: str | None = None  # of the job that is being submitted, or was
        self._killed = False

    def command(self, context: "Context") -> list[str]:
        """The command line to run on the cluster; an option whose value is a list is given for each of it."""
        words: list[str] = []
        for name, value in {**self.options, **self.more_options(context)}.items():
            for each in value if isinstance(value, list | tuple) else [value]:
                words += [f"--{name}", str(each)]
        return ["atelier", self.verb, self.recipe_json, *words, "--json"]

    def more_options(self, context: "Context") -> Mapping[str, Any]:
        """Options that are known only when the task runs."""
        return {}

    def execute(self, context: "Context") -> None:
        """Submit or attach, then wait in the triggerer."""
        owner = owner_of(context["ti"])
        entrypoint = entrypoint_of(self.command(context), self.deadline_seconds)
        spent = cast(int, context["task_state_store"].get(SPENT, 0))
        self._base_id = base_id_of(owner, entrypoint)  # before the job is there: a kill may come while it is submitted
        try:
            with jobs_client(self.connection_id) as client:
                job = client.submit_or_attach(
                    self._base_id, entrypoint, environment={}, metadata=owner, first_attempt=spent + 1
                )
                if self._killed:  # Airflow's handler of the signal comes back here, and on_kill was too early for it
                    client.stop(job.id)
                    raise AirflowException(f"the task was ended while Ray job {job.id} was submitted; it is stopped")
        except UserError as error:
            raise AirflowFailException(str(error)) from None
        self.log.info("Ray job %s is %s", job.id, job.status)
        link, page = RayJobLink(), job_page(address_of(BaseHook.get_connection(self.connection_id)), job.id)
        context["ti"].xcom_push(key=link.xcom_key, value=page)  # now: it is wanted while the job runs
        trigger = RayJobTrigger(job_id=job.id, connection_id=self.connection_id)
        self.defer(trigger=trigger, method_name="resume")

    def resume(self, context: "Context", event: dict[str, Any]) -> str:
        """The job has ended: give the URI, or raise what its log says."""
        with jobs_client(self.connection_id) as client:
            job = client.find(event["job_id"])
            if job is None:
                raise AirflowException(f"Ray no longer knows job {event['job_id']}: its head was started anew")
            log = client.log(job.id)
        _emit(self.log, log[event["logged"] :])
        context["task_state_store"].set(SPENT, job.attempt)
        uri = _uri_of(job, log)
        done = cast(int, context["task_state_store"].get(DONE, 0))
        context["task_state_store"].set(DONE, done + 1)
        self.outlets = [asset for asset in self.outlets if self.is_news(context, asset, uri)]  # of this try: Airflow
        for asset in self.outlets:  # makes an event for each of a successful task's outlets
            context["outlet_events"][asset].extra = {"uri": uri}
        return uri

    def is_news(self, context: "Context", asset: Asset, uri: str) -> bool:
        """Whether those who wait for an asset are to be told of what the job made."""
        return True

    def on_kill(self) -> None:
        """Someone ended the task before it was deferred: stop the job. (Later it is the trigger's on_kill.)"""
        self._killed = True
        if self._base_id is not None:
            with jobs_client(self.connection_id) as client:
                client.stop_attempts(self._base_id)


def owner_of(instance: Any) -> dict[str, str]:
    """Whose job it is; the DAG `orphans` reads it back from the job's metadata."""
    return {
        "airflow": airflow_name(),
        "dag_id": instance.dag_id,
        "run_id": instance.run_id,
        "task_id": instance.task_id,
        "map_index": str(instance.map_index),
    }


def base_id_of(owner: Mapping[str, str], entrypoint: str) -> str:
    """The id of what a task is about to do, the same for all its tries."""
    digest = hashlib.sha256(json.dumps([*owner.values(), entrypoint]).encode()).hexdigest()[:16]
    return f"{owner['dag_id']}-{owner['task_id']}-{digest}"


def _uri_of(job: Job, log: str) -> str:
    """The URI that a job's last JSON line names. Raises AirflowFailException for a user's mistake, AirflowException."""
    if job.status != "SUCCEEDED":
        refused = job.exit_code == USER_MISTAKE_EXIT_CODE
        raise (AirflowFailException if refused else AirflowException)(failure_of(job, log))
    uri = (last_json(log) or {}).get("uri")
    if not isinstance(uri, str):
        raise AirflowException(
            f"Ray job {job.id} succeeded; expected a JSON object with `uri` as last line of its log, got none"
        )
    return uri


def poll_seconds(waited_seconds: float, failures: int) -> float:
    """How long to wait before asking again: longer for a job that runs long, twice as long after each failure."""
    calm = max(POLL_SECONDS, waited_seconds * POLL_SHARE)
    return float(min(calm * 2 ** min(failures, 10), MAX_POLL_SECONDS))


class RayJobTrigger(BaseTrigger):
    """Waits for a job's end and follows its log. Fires `{"job_id", "logged"}`: characters of the log shown so far."""

    def __init__(self, job_id: str, connection_id: str = CONNECTION) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.job_id = job_id
        self.connection_id = connection_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the triggerer makes this trigger from."""
        return f"{__name__}.RayJobTrigger", {"job_id": self.job_id, "connection_id": self.connection_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the job has ended; the status is the truth, not the end of the log."""
        logged, next_log_at, answered_at = 0, 0.0, time.monotonic()
        failures, started_at = 0, time.monotonic()
        may_fire_at = time.monotonic() + conf.getint("workers", "min_heartbeat_interval") + 1
        async with await self._client() as client:
            while True:
                try:
                    job = await client.find(self.job_id)
                    ended = job is None or job.finished
                    if ended or time.monotonic() >= next_log_at:
                        logged += self._emit(await client.log(self.job_id, logged), whole=ended)
                        next_log_at = time.monotonic() + logged / LOG_BYTES_PER_SECOND
                    answered_at, failures = time.monotonic(), 0
                except JobsError as error:
                    if time.monotonic() - answered_at > PATIENCE_SECONDS:
                        raise
                    failures += 1
                    self.log.warning("%s (trying again)", error)
                    ended = False
                # A task that is back before its worker has told of deferring it counts as lost (Airflow 3.3.2), and the
                # worker may take one heartbeat to tell.
                if ended and time.monotonic() >= may_fire_at:
                    yield TriggerEvent({"job_id": self.job_id, "logged": logged})  # type: ignore[no-untyped-call]
                    return
                await asyncio.sleep(poll_seconds(time.monotonic() - started_at, failures))

    async def on_kill(self) -> None:
        """Someone marked or cleared the task: stop the job. (A restart of the triggerer does not come here.)"""
        async with await self._client() as client:
            await client.stop(self.job_id)

    async def _client(self) -> AsyncJobsClient:
        connection = await BaseHook.aget_connection(self.connection_id)
        return AsyncJobsClient(address_of(connection), connection.password)

    def _emit(self, text: str, *, whole: bool) -> int:
        """Log the lines of `text`, without an unfinished last one unless it is the whole; gives the characters used."""
        if not whole:
            text = text[: text.rfind("\n") + 1]
        _emit(self.log, text)
        return len(text)


def _emit(log: Any, text: str) -> None:
    """A job's lines as a task's; what the job calls an error is one, so that it stands out and can be filtered for."""
    for line in text.splitlines():
        log.log(logging.ERROR if line.startswith("error: ") else logging.INFO, "%s", line)
