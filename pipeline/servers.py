"""What the servers of a stack are started with: ports, commands, settings and keys of a Ray head and of Airflow."""

import base64
import hashlib
import importlib.util
import json
import os
import random
import secrets
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import httpx

from pipeline.artifacts import Strict
from pipeline.errors import StackError, UserError

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below Linux's ephemeral ports: no outgoing connection takes one meanwhile
OBJECT_STORE_BYTES = 256 << 20
MIN_RAY_CPUS = 4  # two models of two workers side by side
MAX_TEMPORARY_ROOT = 24  # characters: Ray's sockets below it need a path of less than 108
USER = "admin"
AIRFLOW_SERVERS: Mapping[str, list[str]] = {  # -s: no log server, all logs are on this machine's disk
    "api-server": [],
    "scheduler": ["-s"],
    "triggerer": ["-s"],
    "dag-processor": [],
}
NO_PROXY = {"NO_PROXY": f"{LOOPBACK},localhost", "no_proxy": f"{LOOPBACK},localhost"}


class RayHead(Strict):
    """Where Ray is: the dashboard and Jobs API, and the address that `ray.init` takes."""

    dashboard: str
    address: str
    token: str
    folder: Path


class AirflowServers(Strict):
    """Where Airflow is, with the login of its one user."""

    url: str
    user: str
    password: str
    home: Path


class Ports:
    """The ports of one stack: those asked for, and free ones."""

    def __init__(self, ray: int | None, airflow: int | None) -> None:
        self.taken = {port for port in (ray, airflow) if port is not None}
        for port in self.taken:
            if not _is_free(port):
                raise UserError(f"port {port}: expected a free port, it is in use; name another one, or none")
        self.ray = ray or self.free()
        self.airflow = airflow or self.free()

    def free(self) -> int:
        """A port that nobody listens on, and that was not given before."""
        for _ in range(1_000):
            port = random.choice(PORTS)  # noqa: S311 - no secret
            if port not in self.taken and _is_free(port):
                self.taken.add(port)
                return port
        raise StackError(f"expected a free port between {PORTS.start} and {PORTS.stop}, found none in 1,000 tries")


def check_installed(airflow: bool) -> None:
    """Raises UserError where a server's package is missing."""
    for package, extra in (("ray", "train"), *((("airflow", "airflow"),) if airflow else ())):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"expected {package}, it is not installed; install atelier with its extra `{extra}`")


def new_ray_head(home: Path, ports: Ports) -> RayHead:
    """Where a Ray head will be, with a new token and a folder for its session.

    The folder cannot be in `home`: the paths of Ray's sockets must be short.
    """
    name = f"atelier-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}-"
    root = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix=name, dir=root if len(root) <= MAX_TEMPORARY_ROOT else "/tmp")  # noqa: S108
    return RayHead(
        dashboard=f"http://{LOOPBACK}:{ports.ray}",
        address=f"{LOOPBACK}:{ports.free()}",
        token=secrets.token_hex(32),
        folder=Path(folder),
    )


def ray_cpus() -> int:
    """How many CPUs the Ray head says it has."""
    return max(MIN_RAY_CPUS, os.cpu_count() or 1)


def ray_command(head: RayHead, ports: Ports) -> list[str]:
    """Start a Ray head on loopback, beside any other that may run on this machine."""
    options = {
        "node-ip-address": LOOPBACK,
        "port": head.address.rpartition(":")[2],
        "dashboard-host": LOOPBACK,
        "dashboard-port": ports.ray,
        "ray-client-server-port": ports.free(),
        "dashboard-agent-listen-port": ports.free(),
        "dashboard-agent-grpc-port": ports.free(),
        "runtime-env-agent-port": ports.free(),
        "metrics-export-port": ports.free(),
        "node-manager-port": ports.free(),
        "object-manager-port": ports.free(),
        "num-cpus": ray_cpus(),
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": head.folder,
    }
    flags = ["start", "--head", "--block", "--disable-usage-stats"]
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        *flags,
        *(f"--{name}={value}" for name, value in options.items()),
    ]


def new_airflow(home: Path, ports: Ports) -> AirflowServers:
    """Where Airflow will be; its login is the one of its home."""
    home.mkdir(exist_ok=True)
    url = f"http://{LOOPBACK}:{ports.airflow}"
    return AirflowServers(url=url, user=USER, password=_keys(home)["password"], home=home)


def airflow_command(*words: str) -> list[str]:
    """One of Airflow's commands."""
    return [sys.executable, "-m", "airflow", *words]


def airflow_environment(servers: AirflowServers, head: RayHead) -> dict[str, str]:
    """Airflow's settings as environment variables; the connection `ray_default` leads to `head`."""
    keys = _keys(servers.home)
    passwords = servers.home / "passwords.json"
    write_private(passwords, json.dumps({servers.user: servers.password}))
    url, ray = httpx.URL(servers.url), httpx.URL(head.dashboard)
    settings: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": _dags_folder(),
            "load_examples": False,
            "parallelism": 3,  # each slot is a process of 50 MiB; a deferred task holds none
            "dags_are_paused_at_creation": False,
            "execution_api_server_url": f"{servers.url}/execution/",
            "simple_auth_manager_users": f"{servers.user}:admin",
            "simple_auth_manager_passwords_file": passwords,
            "fernet_key": keys["fernet"],
        },
        "api": {
            "host": url.host,
            "port": url.port,
            "workers": 1,
            "base_url": servers.url,
            "secret_key": keys["jwt"],
        },
        "api_auth": {"jwt_secret": keys["jwt"]},
        "dag_processor": {"parsing_processes": 1, "refresh_interval": 20, "min_file_process_interval": 20},
        "usage_data_collection": {"enabled": False},
        # A worker looks after its task's process by this interval: often it notes the end of a task so much later.
        "workers": {"min_heartbeat_interval": 1},
    }
    variables = {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section, names in settings.items()
        for name, value in names.items()
    }
    where = {"schema": ray.scheme, "host": ray.host, "port": ray.port}
    connection = {"conn_type": "http", **where, "password": head.token}
    return {
        **variables,
        "AIRFLOW_HOME": str(servers.home),
        "AIRFLOW_CONN_RAY_DEFAULT": json.dumps(connection),
    }


def write_private(file: Path, text: str) -> None:
    """Write a file whole, readable by its owner alone."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    part.replace(file)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: connections that linger are fine
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _keys(home: Path) -> dict[str, str]:
    """The password and the keys of an Airflow home, made on first use."""
    file = home / "keys.json"
    if not file.exists():
        fernet = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        made = {"password": secrets.token_urlsafe(12), "jwt": secrets.token_hex(40), "fernet": fernet}
        write_private(file, json.dumps(made))
    found: dict[str, str] = json.loads(file.read_bytes())
    return found


def _dags_folder() -> Path:
    spec = importlib.util.find_spec("dags")
    if spec is None or not spec.submodule_search_locations:
        raise StackError("expected the package `dags` beside `pipeline`, found none; install atelier again")
    return Path(spec.submodule_search_locations[0])
