"""The part of Airflow's REST API that running a recipe and watching it need. Needs no airflow."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx

from pipeline.errors import AtelierError, StackError, UserError
from pipeline.servers import AirflowServers

APPEAR_SECONDS = 180.0
TRIES = (
    4  # of what may be asked twice: on SQLite Airflow 3.3.2 answers 500 where two of its requests lock each other out
)
GROUP = "model."  # the mapped group of the DAGs of recipes
BUSY = {"running", "deferred"}  # a deferred task waits for its Ray job: to a person it runs


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
    map_index: int = -1  # -1: not mapped
    model: str = ""  # of an instance of the group of models

    @property
    def name(self) -> str:
        """The task's id, but for an instance of the group of models `vae.train` in the place of `model.train`."""
        return f"{self.model}.{self.task_id.removeprefix(GROUP)}" if self.model else self.task_id


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

    def wait_for_dag(self, dag_id: str, digest: str) -> None:
        """Wait until Airflow has read the DAG of the recipe with this digest, and let it run.

        Raises UserError with Airflow's import errors where it does not appear.
        """
        deadline = time.monotonic() + APPEAR_SECONDS
        asked = False
        while True:
            found = self.ask("GET", f"/dags/{dag_id}/details", missing_is_none=True)
            if found and digest in (found["doc_md"] or ""):
                break
            if not asked:
                asked = self._read_again(found)
            if time.monotonic() > deadline:
                errors = self.ask("GET", "/importErrors")["import_errors"]
                reasons = "; ".join(error["stack_trace"].strip().splitlines()[-1] for error in errors)
                came = "another version" if found else "none"
                raise UserError(f"expected the DAG {dag_id} of the recipe in Airflow, got {came}. {reasons}".strip())
            time.sleep(0.3)
        if found["is_paused"]:
            self.ask("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def _read_again(self, known: Mapping[str, Any] | None) -> bool:
        """Ask Airflow to read the recipes now rather than at its next turn; False where it has read none yet."""
        if known is None:
            others = [
                dag
                for dag in self.ask("GET", "/dags?tags=atelier&limit=100")["dags"]
                if dag["dag_id"].endswith("_models")
            ]
            if not others:
                return False
            known = others[0]
        self.ask("PUT", f"/parseDagFile/{known['file_token']}")
        return True

    def trigger(self, dag_id: str) -> str:
        """Start a run; gives its id."""
        found = self.ask("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": {}})
        return str(found["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """queued, running, success or failed."""
        return str(self.ask("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}")["state"])

    def run_started_by(self, dag_id: str, run_id: str, consumer: str) -> str:
        """The run of `consumer` that a run's asset event started; it waits while an earlier run of it is busy."""
        deadline = time.monotonic() + APPEAR_SECONDS
        query = f"source_dag_id={dag_id}&source_run_id={quote(run_id, safe='')}"
        waits = True
        while waits:
            waits = time.monotonic() < deadline or self._is_busy(consumer)  # asked first: a run that ends is looked for
            # Airflow 3.3.2 answers this with a status 500 while the run is queued: its schema wants a start date.
            found = self._send("GET", f"/api/v2/assets/events?{query}", None)
            for event in found.json()["asset_events"] if found.is_success else []:
                for started in event["created_dagruns"]:
                    if started["dag_id"] == consumer:
                        return str(started["run_id"])
            time.sleep(0.3)
        raise StackError(
            f"expected a run of {consumer} after {dag_id}, none came; see {self.servers.url}/dags/{consumer}"
        )

    def _is_busy(self, dag_id: str) -> bool:
        """Whether a run of a DAG is queued or running."""
        found = self.ask("GET", f"/dags/{dag_id}/dagRuns?state=queued&state=running&limit=1")
        return bool(found["dag_runs"])

    def stages(self, dag_id: str, run_id: str, models: Sequence[str] = ()) -> list[StageView]:
        """The tasks of a run, those that started first first. `models`: those that the run was started for, in order.

        Until Airflow knows for how many it is, there is one task for all of them, which is not shown.
        """
        found = self.ask("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances?limit=200")["task_instances"]
        return [
            StageView(
                dag_id=dag_id,
                run_id=run_id,
                task_id=task["task_id"],
                state=_word(task["state"]),
                try_number=task["try_number"],
                seconds=_elapsed(task["start_date"], task["end_date"]),
                map_index=task["map_index"],
                model=_model(task, models),
            )
            for task in found
            if task["map_index"] >= 0 or not task["task_id"].startswith(GROUP) or task["state"] is not None
        ]

    def result_of(self, stage: StageView) -> Any:
        """What a task returned; None where it returned nothing."""
        query = f"map_index={stage.map_index}"
        found = self.ask("GET", f"{_task_path(stage)}/xcomEntries/return_value?{query}", missing_is_none=True)
        return found["value"] if found else None

    def error_of(self, stage: StageView) -> AtelierError:
        """The last error in a failed task's log, as the exception to raise."""
        log = f"{_task_path(stage)}/logs/{max(stage.try_number, 1)}?map_index={stage.map_index}"
        found = self.ask("GET", log, missing_is_none=True)
        kind, message = _last_exception(found["content"] if found else [])
        page = f"{self.page(stage.dag_id, stage.run_id)}/tasks/{quote(stage.task_id)}"
        if stage.map_index >= 0:
            page += f"/mapped/{stage.map_index}"
        mistake = kind == "AirflowFailException" or kind in _user_errors()
        return (UserError if mistake else AtelierError)(f"{stage.name}: {message}; its log: {page}")

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

    def ask(self, method: str, path: str, body: Any = None, *, missing_is_none: bool = False) -> Any:
        """The JSON of an answer; logs in anew where the session has run out. Raises StackError."""
        for _ in range(1 if method == "POST" else TRIES):
            response = self._send(method, f"/api/v2{path}", body)
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._log_in()
                response = self._send(method, f"/api/v2{path}", body)
            if response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                break
        if missing_is_none and response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.is_error:
            raise StackError(
                f"Airflow at {self.servers.url}: {path} gave {response.status_code}: {response.text[:200]}"
            )
        return response.json() if response.content else None

    def _send(self, method: str, path: str, body: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body, headers={"Accept": "application/json"})
        except httpx.HTTPError as error:
            reason = error or type(error).__name__
            raise StackError(f"Airflow at {self.servers.url} did not answer: {reason}; is the stack up?") from None


def _model(task: Mapping[str, Any], models: Sequence[str]) -> str:
    """The model that a mapped task's instance is for, as it is shown; "" for other tasks."""
    index = int(task["map_index"])
    if index < 0:
        return ""
    return models[index] if index < len(models) else task["rendered_map_index"] or f"model[{index}]"


def _user_errors() -> set[str]:
    """The names of the errors that are a user's mistake."""
    names, kinds = set(), [UserError]
    while kinds:
        kind = kinds.pop()
        names.add(kind.__name__)
        kinds += kind.__subclasses__()
    return names


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
