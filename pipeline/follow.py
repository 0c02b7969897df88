"""Run a recipe in Airflow and watch it: trigger `<name>_dataset`, follow it, then the `<name>_models` run it starts.

Airflow is asked over its REST API for runs, tasks and XComs, Ray over its Jobs API for the progress of running jobs. On
a terminal a table is redrawn in place; elsewhere there is a line for each change of state, and progress now and then.
Leaving (Ctrl-C) ends the watching; the runs go on in Airflow.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.errors import AtelierError, StackError, UserError
from pipeline.jobs import JobsClient, JobsError
from pipeline.recipe import Recipe
from pipeline.stack import AirflowServers, StackState

POLL_SECONDS = 1.0
PROGRESS_SECONDS = 10.0  # between two progress lines of a task, without a terminal
APPEAR_SECONDS = 180.0
ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}
BUSY = {"running", "deferred"}  # a deferred task waits for its Ray job: to a person it runs
STYLES = {
    "success": "green",
    "failed": "red",
    "upstream_failed": "red",
    "running": "cyan",
    "up_for_retry": "yellow",
}
_COUNT = re.compile(r"\b\d[\d,]*/\d[\d,]*\b")
_WORKER = re.compile(r"^\([^)]*pid=[^)]*\)\s*")


@dataclass(frozen=True)
class StageView:
    """One task of a run. `seconds` counts from its start; `note` is the newest line of progress in its job's log."""

    dag_id: str
    run_id: str
    task_id: str
    state: str
    try_number: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class FollowResult:
    """What the runs made: URIs by task (`ingest`, `vae.train` ...), and how long each task took."""

    uris: Mapping[str, str]
    seconds: Mapping[str, float]
    notes: Mapping[str, str]
    runs: tuple[str, ...]  # URLs of the two runs in Airflow


def follow(stack: StackState, recipe: Recipe, console: Console) -> FollowResult:
    """Run the recipe's DAGs to their end. Raises AtelierError with the failed task's last error (UserError for a mistake)."""
    assert stack.airflow is not None and stack.ray is not None
    with AirflowClient(stack.airflow) as airflow, JobsClient(stack.ray.dashboard, stack.ray.token) as jobs:
        dags = [f"{recipe.name}_dataset", f"{recipe.name}_models"]
        since = max(server.created for server in stack.servers)
        with console.status("waiting for Airflow to read the recipe"):
            for dag_id in dags:
                airflow.wait_for_dag(dag_id, since)
        runs = [airflow.trigger(dags[0])]
        watch = _Watch(airflow, jobs, console, recipe)
        with watch.shown():
            watch.to_the_end(dags[0], runs[0])
            runs.append(airflow.run_started_by(dags[0], runs[0], dags[1]))
            watch.to_the_end(dags[1], runs[1])
        return watch.result(
            tuple(airflow.page(dag_id, run_id) for dag_id, run_id in zip(dags, runs, strict=True))
        )


class AirflowClient:
    """The part of Airflow's REST API that watching a run needs."""

    def __init__(self, servers: AirflowServers) -> None:
        self.servers = servers
        self._http = httpx.Client(base_url=servers.url, timeout=60, trust_env=False)
        self._log_in()

    def __enter__(self) -> "AirflowClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def wait_for_dag(self, dag_id: str, since: float) -> None:
        """Wait until Airflow has read the DAG after `since` (seconds since the epoch), and let it run.

        Raises UserError with Airflow's import errors where it does not appear.
        """
        deadline = time.monotonic() + APPEAR_SECONDS
        while True:
            found = self._ask("GET", f"/dags/{dag_id}", missing_is_none=True)
            if found and _seconds(found["last_parsed_time"]) >= since:
                break
            errors = self._ask("GET", "/importErrors")["import_errors"]
            if time.monotonic() > deadline or (errors and not found and time.monotonic() > deadline - 150):
                reasons = "; ".join(error["stack_trace"].strip().splitlines()[-1] for error in errors)
                raise UserError(
                    f"expected the DAG {dag_id} in Airflow, found none: {reasons or 'is its recipe there?'}"
                )
            time.sleep(0.3)
        if found["is_paused"]:
            self._ask("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str) -> str:
        """Start a run; gives its id."""
        found = self._ask("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": {}})
        return str(found["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """queued, running, success or failed."""
        return str(self._ask("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}")["state"])

    def run_started_by(self, dag_id: str, run_id: str, consumer: str) -> str:
        """The run of `consumer` that a run's asset event started."""
        deadline = time.monotonic() + APPEAR_SECONDS
        query = f"source_dag_id={dag_id}&source_run_id={quote(run_id, safe='')}"
        while time.monotonic() < deadline:
            for event in self._ask("GET", f"/assets/events?{query}")["asset_events"]:
                for started in event["created_dagruns"]:
                    if started["dag_id"] == consumer:
                        return str(started["run_id"])
            time.sleep(0.3)
        raise StackError(
            f"expected a run of {consumer} after {dag_id}, none came; see {self.servers.url}/dags/{consumer}"
        )

    def stages(self, dag_id: str, run_id: str) -> list[StageView]:
        """The tasks of a run, those that started first first."""
        found = self._ask("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances?limit=200")[
            "task_instances"
        ]
        return [
            StageView(
                dag_id=dag_id,
                run_id=run_id,
                task_id=task["task_id"],
                state=_word(task["state"]),
                try_number=task["try_number"],
                seconds=_elapsed(task["start_date"], task["end_date"]),
            )
            for task in found
        ]

    def result_of(self, stage: StageView) -> Any:
        """What a task returned; None where it returned nothing."""
        found = self._ask("GET", f"{_task_path(stage)}/xcomEntries/return_value", missing_is_none=True)
        return found["value"] if found else None

    def error_of(self, stage: StageView) -> AtelierError:
        """The last error in a failed task's log, as the exception to raise."""
        found = self._ask("GET", f"{_task_path(stage)}/logs/{max(stage.try_number, 1)}", missing_is_none=True)
        kind, message = _last_exception(found["content"] if found else [])
        page = f"{self.page(stage.dag_id, stage.run_id)}/tasks/{quote(stage.task_id)}"
        mistake = kind == "AirflowFailException"
        return (UserError if mistake else AtelierError)(f"{stage.task_id}: {message}; its log: {page}")

    def page(self, dag_id: str, run_id: str) -> str:
        """The URL of a run's page."""
        return f"{self.servers.url}/dags/{dag_id}/runs/{quote(run_id)}"

    def _log_in(self) -> None:
        body = {"username": self.servers.user, "password": self.servers.password}
        response = self._send("POST", "/auth/token", body)
        if response.is_error:
            raise StackError(
                f"Airflow at {self.servers.url}: expected the login of the stack's user, got {response.status_code}"
            )
        self._http.headers["Authorization"] = f"Bearer {response.json()['access_token']}"

    def _ask(self, method: str, path: str, body: Any = None, *, missing_is_none: bool = False) -> Any:
        """The JSON of an answer; logs in anew where the session has run out. Raises StackError."""
        response = self._send(method, f"/api/v2{path}", body)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._log_in()
            response = self._send(method, f"/api/v2{path}", body)
        if missing_is_none and response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.is_error:
            raise StackError(
                f"Airflow at {self.servers.url}: {path} gave {response.status_code}: {response.text[:200]}"
            )
        return response.json()

    def _send(self, method: str, path: str, body: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body, headers={"Accept": "application/json"})
        except httpx.HTTPError as error:
            reason = error or type(error).__name__
            raise StackError(
                f"Airflow at {self.servers.url} did not answer: {reason}; is the stack up?"
            ) from None


@dataclass
class _Watch:
    """The stages seen so far, and how they are shown."""

    airflow: AirflowClient
    jobs: JobsClient
    console: Console
    recipe: Recipe
    views: dict[tuple[str, str], StageView] = field(default_factory=dict)
    noted_at: dict[str, float] = field(default_factory=dict)
    live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Redraw a table while the block runs, on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            console=self.console, get_renderable=lambda: _table(self.views.values()), refresh_per_second=4
        ) as live:
            self.live = live
            yield

    def to_the_end(self, dag_id: str, run_id: str) -> None:
        """Watch a run until it has ended. Raises the error of its first failed task."""
        while True:
            state = self.airflow.run_state(dag_id, run_id)
            stages = self.airflow.stages(dag_id, run_id)
            self._show(stages, self._notes(stages))
            if state in {"success", "failed"}:
                break
            time.sleep(POLL_SECONDS)
        failed = [stage for stage in stages if stage.state == "failed"]
        for stage in failed[1:]:
            self.console.print(f"error: {self.airflow.error_of(stage)}", markup=False, style="red")
        if failed:
            raise self.airflow.error_of(failed[0])
        if state == "failed":
            raise AtelierError(f"{dag_id} failed; see {self.airflow.page(dag_id, run_id)}")

    def result(self, pages: tuple[str, ...]) -> FollowResult:
        """What came of the stages."""
        stages = list(self.views.values())
        values = {stage.task_id: self.airflow.result_of(stage) for stage in stages}
        return FollowResult(
            uris={task_id: value for task_id, value in values.items() if isinstance(value, str)},
            seconds={stage.task_id: stage.seconds for stage in stages},
            notes={stage.task_id: stage.note for stage in stages},
            runs=pages,
        )

    def _notes(self, stages: Sequence[StageView]) -> dict[str, str]:
        """The newest progress line of each task that is busy, or that has ended since the last look."""
        last = {
            stage.task_id: view.state
            for stage in stages
            if (view := self.views.get((stage.dag_id, stage.task_id)))
        }
        wanted = {
            stage.task_id
            for stage in stages
            if stage.state == "running" or (stage.state in ENDED and last.get(stage.task_id) not in ENDED)
        }
        if not wanted:
            return {}
        try:
            of_run = [job for job in self.jobs.list() if job.metadata.get("run_id") == stages[0].run_id]
            newest = {job.metadata["task_id"]: job.id for job in sorted(of_run, key=lambda job: job.attempt)}
            return {task: progress_of(self.jobs.log(newest[task])) for task in sorted(wanted & newest.keys())}
        except JobsError:
            return {}  # progress is a courtesy: a Ray that does not answer is the operator's concern

    def _show(self, stages: Sequence[StageView], notes: Mapping[str, str]) -> None:
        for stage in stages:
            key = (stage.dag_id, stage.task_id)
            old = self.views.get(key)
            note = notes.get(stage.task_id) or (old.note if old else "")
            view = StageView(**{**vars(stage), "note": note})
            self.views[key] = view
            if self.live is None:
                self._print(view, old)

    def _print(self, view: StageView, old: StageView | None) -> None:
        """One line for a change of state that matters, or for progress that is due."""
        seconds = f" after {view.seconds:.0f} s" if view.state in ENDED else ""
        now = time.monotonic()
        if view.state != (old.state if old else "") and view.state not in {"", "waiting"}:
            note = f": {view.note}" if view.note and view.state in ENDED else ""
            self.console.print(f"{view.task_id}: {view.state}{seconds}{note}", markup=False)
        elif view.state == "running" and old and view.note and view.note != old.note:
            if now - self.noted_at.get(view.task_id, 0.0) < PROGRESS_SECONDS:
                self.views[view.dag_id, view.task_id] = old  # so that it is still news when it is due
                return
            self.noted_at[view.task_id] = now
            self.console.print(f"{view.task_id}: {view.note}", markup=False)


def progress_of(log: str) -> str:
    """The newest line of a job's log that counts something (`step 300/1500`), else its newest line of words."""
    lines = [_WORKER.sub("", line).strip() for line in log.splitlines()[-200:]]
    lines = [line for line in lines if line and not line.startswith(("{", "Running entrypoint"))]
    counting = [line for line in lines if _COUNT.search(line)]
    return (counting or lines or [""])[-1][:160]


def _table(views: Iterable[StageView]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    table.add_column("progress", overflow="ellipsis", no_wrap=True)
    for view in views:
        seconds = f"{view.seconds:.0f}" if view.seconds else ""
        style = STYLES.get(view.state, "dim")
        table.add_row(view.task_id, f"[{style}]{view.state}[/]", seconds, view.note.replace("[", "\\["))
    return table


def _word(state: str | None) -> str:
    """Airflow's state of a task as a person sees it."""
    if state in BUSY:
        return "running"
    return "waiting" if state in {None, "scheduled", "queued"} else str(state)


def _seconds(moment: str | None) -> float:
    """ISO 8601 as seconds since the epoch; 0 for none."""
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0


def _elapsed(start: str | None, end: str | None) -> float:
    if not start:
        return 0.0
    return (_seconds(end) if end else datetime.now(UTC).timestamp()) - _seconds(start)


def _task_path(stage: StageView) -> str:
    return f"/dags/{stage.dag_id}/dagRuns/{quote(stage.run_id)}/taskInstances/{quote(stage.task_id)}"


def _last_exception(lines: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The type and the words of the last exception in a task's log."""
    for line in reversed(lines):
        for detail in reversed(line.get("error_detail") or []):
            return str(detail["exc_type"]), str(detail["exc_value"])
    errors = [str(line.get("event")) for line in lines if line.get("level") in {"error", "critical"}]
    return "", (errors or ["it failed without a word in its log"])[-1]
