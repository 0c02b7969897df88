"""Airflow on PostgreSQL, beside the cluster: each server can be killed and started again by itself."""

import os
import pwd
import re
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from pipeline.airflow_client import AirflowClient
from pipeline.processes import MARK, Server, end, process_of, spawn
from pipeline.servers import (
    AIRFLOW_SERVERS,
    NO_PROXY,
    AirflowServers,
    Ports,
    RayHead,
    airflow_command,
    airflow_environment,
    new_airflow,
)
from pipeline.settings import child_environment
from tests.cluster.cluster import Cluster, until
from tests.cluster.hosts import program, title_of

HEARTBEAT_SECONDS = 30  # after which Airflow gives a task's process, or a triggerer, up
DAG = "tried_models"
ENDED = {"success", "failed"}


@contextmanager
def postgres() -> Iterator[str]:
    """A server on a free port of loopback, as the user `postgres` or `nobody`; gives SQLAlchemy's URL of a database."""
    users = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    user = "postgres" if "postgres" in users else "nobody"
    port, password = Ports(None, None).free(), secrets.token_hex(16)
    with ExitStack() as ending:
        # Not below pytest's folders, which are closed to other users.
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="atelier-postgres-")))
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            os.chown(path, users[user], -1)
        words = [f"--pgdata={folder}/data", "--username=airflow", "--auth=scram-sha-256", f"--pwfile={folder}/password"]
        subprocess.run([_program("initdb"), *words], check=True, user=user, cwd=folder, capture_output=True)
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = ending.enter_context((folder / "log").open("wb"))
        command = [_program("postgres"), "-D", f"{folder}/data", *settings]
        server = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        ending.callback(server.wait, 60)
        ending.callback(server.send_signal, signal.SIGINT)  # 'fast': clients are cut off
        ready = [_program("pg_isready"), "--host=127.0.0.1", f"--port={port}"]
        until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, "PostgreSQL", 60)
        yield f"postgresql+psycopg2://airflow:{password}@127.0.0.1:{port}/postgres"


def _program(name: str) -> str:
    found = program(name)
    assert found, name
    return found


@dataclass
class Airflow:
    """Its servers, by name."""

    where: AirflowServers
    environment: Mapping[str, str]
    mark: str
    servers: dict[str, Server] = field(default_factory=dict)
    killed: list[Server] = field(default_factory=list)  # what they had started outlives them

    def start(self, name: str) -> None:
        """Start one server."""
        log = self.where.home / f"{name}-{time.monotonic_ns()}.log"
        self.servers[name] = spawn(name, airflow_command(name, *AIRFLOW_SERVERS[name]), self.environment, log)

    def kill(self, name: str) -> None:
        """`kill -9` a server's own process; what it started stays, as it would."""
        process = process_of(self.servers[name])
        assert process
        self.killed.append(self.servers[name])
        process.kill()
        process.wait(10)

    def pause(self, name: str) -> None:
        """Stop a server's processes in the middle of what they do."""
        for process in self._tree(name):
            process.suspend()

    def resume(self, name: str) -> None:
        """Let them go on."""
        for process in self._tree(name):
            process.resume()

    def _tree(self, name: str) -> list[psutil.Process]:
        server = psutil.Process(self.servers[name].pid)
        return [server, *server.children(recursive=True)]

    def kill_tasks(self) -> int:
        """`kill -9` the processes that run tasks, not the executor's that watch over them; gives how many."""
        tasks = [found for found in self._tree("scheduler") if re.match("airflow worker -- (?!Local)", title_of(found))]
        for process in tasks:
            process.kill()
        return len(tasks)

    def log_of(self, run_id: str, task_id: str) -> Path:
        """The log of a mapped task's first try."""
        return self.where.home / f"logs/dag_id={DAG}/run_id={run_id}/task_id={task_id}/map_index=0/attempt=1.log"

    def healthy(self, since: float = 0.0) -> bool:
        """Whether all of it says that it is well, and has said so since a time (of `time.time()`)."""
        try:
            parts = httpx.get(f"{self.where.url}/api/v2/monitor/health", timeout=5, trust_env=False).json()
        except (httpx.HTTPError, ValueError):
            return False
        names = ("scheduler", "triggerer", "dag_processor")
        return (parts.get("metadatabase") or {}).get("status") == "healthy" and all(
            (found := parts.get(name) or {}).get("status") == "healthy"
            and datetime.fromisoformat(found[f"latest_{name}_heartbeat"]).timestamp() > since
            for name in names
        )


@contextmanager
def airflow(cluster: Cluster, folder: Path, recipes: Path) -> Iterator[Airflow]:
    """All of Airflow, up; its connection `ray_default` leads to the cluster."""
    folder.mkdir()
    with postgres() as database:
        where = new_airflow(folder / "home", Ports(None, None))
        head = RayHead(dashboard=cluster.dashboard, address="", token=cluster.token, folder=folder)
        mark = secrets.token_hex(8)
        environment = {
            **{name: value for name, value in cluster.environment.items() if not name.startswith("RAY_")},
            **NO_PROXY,
            **airflow_environment(where, head),
            MARK: mark,
            "ATELIER_RECIPES": str(recipes),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_SECONDS),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": str(HEARTBEAT_SECONDS),
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": str(HEARTBEAT_SECONDS),
        }
        subprocess.run(
            airflow_command("db", "migrate"), env=child_environment(**environment), check=True, capture_output=True
        )
        found = Airflow(where, environment, mark)
        try:
            for name in AIRFLOW_SERVERS:
                found.start(name)
            until(found.healthy, "Airflow", 240)
            yield found
        finally:
            end([*found.killed, *found.servers.values()], mark)


@dataclass
class DagRun:
    """One run of the DAG of models, by its REST API."""

    client: AirflowClient
    dag_id: str
    run_id: str

    @property
    def path(self) -> str:
        return f"/dags/{self.dag_id}/dagRuns/{self.run_id}"

    def state(self) -> str:
        return self.client.run_state(self.dag_id, self.run_id)

    def task(self, task_id: str) -> Any:
        """What the API says of a mapped task's only instance."""
        return self.client.ask("GET", f"{self.path}/taskInstances/{task_id}/0", missing_is_none=True) or {}
