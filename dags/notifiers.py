"""Tell people of a run that failed or is late: one JSON POST to the URL of an Airflow connection.

`airflow.notify` of a recipe names the connection. Its host is the URL's host, its schema http or https, and the
password, if there is one, is sent as bearer token; `path` of its extra is the path. The body has the key `text`, which
the incoming webhooks of Slack, Mattermost, Rocket.Chat and Teams take, and the parts of it for programs. The path of
such a webhook is its credential: no message of an error holds the URL.
"""

from typing import TYPE_CHECKING, Any

import httpx
from airflow.sdk import BaseHook, BaseNotifier

from pipeline.errors import StackError

if TYPE_CHECKING:
    from airflow.sdk import Connection, Context

TIMEOUT_SECONDS = 30.0


class Webhook(BaseNotifier):
    """`on_failure_callback` of the DAGs, and what a missed deadline calls."""

    def __init__(self, connection_id: str, what: str, context: "Context | None" = None) -> None:
        super().__init__(context)
        self.connection_id = connection_id
        self.what = what

    def notify(self, context: "Context") -> None:
        """Tell it now. Raises StackError where nobody took it."""
        url, headers = _target(BaseHook.get_connection(self.connection_id))
        try:
            httpx.post(url, json=_body(self.what, context), headers=headers, timeout=TIMEOUT_SECONDS).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _untold(self.connection_id, error) from None

    async def async_notify(self, context: "Context") -> None:
        """The same in the triggerer."""
        url, headers = _target(await BaseHook.aget_connection(self.connection_id))
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
                (await http.post(url, json=_body(self.what, context), headers=headers)).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _untold(self.connection_id, error) from None


def _target(connection: "Connection") -> tuple[str, dict[str, str]]:
    port = f":{connection.port}" if connection.port else ""
    path = "/" + str(connection.extra_dejson.get("path") or "").lstrip("/")  # without its slash it would be more host
    headers = {"Authorization": f"Bearer {connection.password}"} if connection.password else {}
    return f"{connection.schema or 'https'}://{connection.host}{port}{path}", headers


def _untold(connection_id: str, error: Exception) -> StackError:
    """One line without httpx's own words, which hold the URL or a header."""
    if isinstance(error, httpx.HTTPStatusError):
        came = f"status {error.response.status_code}; is its `path` right?"
    else:
        came = f"{type(error).__name__}; is it up, and are its host, port and schema right?"
    return StackError(f"connection {connection_id}: expected its server to take a message, got {came}")


def _body(what: str, context: Any) -> dict[str, str]:
    """A deadline's context has the run as JSON, a callback's as an object."""
    run = context.get("dag_run") or {}
    dag_id, run_id = (_part(run, name) for name in ("dag_id", "run_id"))
    return {"text": f"{dag_id} {what}: run {run_id}", "event": what, "dag_id": dag_id, "run_id": run_id}


def _part(run: Any, name: str) -> str:
    found = run.get(name) or run.get(f"dag_{name}") if isinstance(run, dict) else getattr(run, name, None)
    return str(found or "?")
