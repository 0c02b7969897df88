"""What the client makes of Airflow's answers (a real Airflow: tests/dags)."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline import airflow_client
from pipeline.airflow_client import AirflowClient
from pipeline.errors import StackError
from pipeline.servers import AirflowServers
from tests.answers import JsonAnswers


class Airflow(HTTPServer):
    """The run `next` of small_models is queued behind others for so many looks, and then runs, or never was there."""

    looks_until_it_runs = 0
    failures = 0  # so many requests are answered with status 500 first
    comes = True

    def is_queued(self) -> bool:
        return self.looks_until_it_runs > 0


class Api(JsonAnswers, BaseHTTPRequestHandler):
    server: Airflow

    def do_POST(self) -> None:
        self.answer(201, {"access_token": "t"})

    def do_GET(self) -> None:
        airflow = self.server
        if airflow.failures > 0:
            airflow.failures -= 1
            self.answer(500, {})
        elif self.path.startswith("/api/v2/assets/events?"):
            airflow.looks_until_it_runs -= 1
            started = [{"dag_id": "small_models", "run_id": "next"}] if airflow.comes else []
            status = 500 if airflow.is_queued() else 200
            self.answer(status, {"asset_events": [{"created_dagruns": started}]})
        else:
            assert self.path == "/api/v2/dags/small_models/dagRuns?state=queued&state=running&limit=1"
            self.answer(200, {"dag_runs": [{}] if airflow.is_queued() else []})


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    monkeypatch.setattr(airflow_client, "APPEAR_SECONDS", 0.0)
    with Airflow(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(airflow: Airflow) -> Iterator[AirflowClient]:
    url = f"http://127.0.0.1:{airflow.server_port}"
    servers = AirflowServers(url=url, user="u", password="p", home=Path())  # noqa: S106 - the stand-in asks for none
    with AirflowClient(servers) as opened:
        yield opened


def started(client: AirflowClient) -> str:
    return client.run_started_by("small_dataset", "one", "small_models")


def test_a_run_that_is_queued_behind_others_is_waited_for_however_long(airflow: Airflow, client: AirflowClient) -> None:
    airflow.looks_until_it_runs = 4
    assert started(client) == "next"


def test_a_run_that_never_comes_is_one_line(airflow: Airflow, client: AirflowClient) -> None:
    airflow.looks_until_it_runs, airflow.comes = 2, False
    with pytest.raises(StackError, match=r"expected a run of small_models after small_dataset, none came; see http"):
        started(client)
    assert airflow.looks_until_it_runs < 0  # it has looked once more after the last of the others


def test_a_request_that_airflow_locks_out_is_made_again(airflow: Airflow, client: AirflowClient) -> None:
    query = "/dags/small_models/dagRuns?state=queued&state=running&limit=1"
    airflow.failures = 3
    assert client.ask("GET", query) == {"dag_runs": []}
    airflow.failures = 4
    with pytest.raises(StackError, match="gave 500"):
        client.ask("GET", query)
