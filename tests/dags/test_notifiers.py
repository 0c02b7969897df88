"""What is posted to a webhook, and what is said where nobody takes it."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StackError

SECRET = "services/T0/secret"  # noqa: S105 - a path, as Slack's webhooks have it
CONTEXT: Any = {"dag_run": {"dag_id": "small_models", "dag_run_id": "one"}}


class Server(HTTPServer):
    """A webhook that answers with `status` and keeps the paths that were asked for."""

    status = 200
    paths: list[str]


class Hook(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Hook) as server:
        server.paths = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> pytest.MonkeyPatch:
    """The connection `alerts` leads to the server; its path has no slash at its beginning."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    connect(monkeypatch, server.server_port)
    return monkeypatch


def connect(patch: pytest.MonkeyPatch, server_port: int, **more: Any) -> None:
    where = {"conn_type": "http", "schema": "http", "host": "127.0.0.1", "port": server_port, "extra": {"path": SECRET}}
    patch.setenv("AIRFLOW_CONN_ALERTS", json.dumps(where | more))


def notify(*, in_triggerer: bool) -> None:
    from dags.notifiers import Webhook

    webhook = Webhook("alerts", "failed")
    if in_triggerer:
        asyncio.run(webhook.async_notify(CONTEXT))
    else:
        webhook.notify(CONTEXT)


@pytest.mark.parametrize("in_triggerer", [False, True])
def test_a_path_without_a_slash_is_a_path(connected: pytest.MonkeyPatch, server: Server, in_triggerer: bool) -> None:
    notify(in_triggerer=in_triggerer)
    connect(connected, server.server_port, extra={"path": f"/{SECRET}"})
    notify(in_triggerer=in_triggerer)
    assert server.paths == [f"/{SECRET}"] * 2


@pytest.mark.parametrize("in_triggerer", [False, True])
def test_a_webhook_that_refuses_is_one_line_without_its_url(
    connected: pytest.MonkeyPatch, server: Server, in_triggerer: bool
) -> None:
    server.status = 403
    connect(connected, server.server_port, extra={"path": f"/{SECRET}"})
    with pytest.raises(StackError) as caught:
        notify(in_triggerer=in_triggerer)
    words = "connection alerts: expected its server to take a message, got status 403; is its `path` right?"
    assert str(caught.value) == words


@pytest.mark.parametrize("in_triggerer", [False, True])
@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"port": 9}, "ConnectError"),
        ({"schema": SECRET}, "UnsupportedProtocol"),
        ({"host": "nobody:secret"}, "InvalidURL"),
        ({"password": "secret\nword"}, "LocalProtocolError"),
    ],
)
def test_a_webhook_that_does_not_answer_is_one_line_without_its_url_or_token(
    connected: pytest.MonkeyPatch, server: Server, in_triggerer: bool, more: dict[str, Any], kind: str
) -> None:
    connect(connected, server.server_port, **more)
    with pytest.raises(StackError) as caught:
        notify(in_triggerer=in_triggerer)
    said = str(caught.value)
    assert f"got {kind}; is it up" in said
    assert "secret" not in said and "\n" not in said
