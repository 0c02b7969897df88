"""The processes of a stack: each in a session of its own, known by pid and start time, ended with all it started."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from pipeline.artifacts import Strict
from pipeline.settings import child_environment

MARK = "ATELIER_STACK"
GRACE_SECONDS = 2.0  # Airflow's triggerer takes 11 s to say goodbye to nobody; its database survives a kill


class Server(Strict):
    """A process that `up` started; `created` (seconds since the epoch) tells it from a later one with its pid."""

    name: str
    pid: int
    created: float
    log: Path


def spawn(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Server:
    """Start a server in a session of its own, its output in a log. `environment` is added to this process's own.

    The current directory stays this one: a recipe's relative paths are meant from it.
    """
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=child_environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.returncode = 0  # it outlives us on purpose: without this, Popen would warn that it still runs
    return Server(name=name, pid=process.pid, created=psutil.Process(process.pid).create_time(), log=log)


def process_of(server: Server) -> psutil.Process | None:
    """The server's process, if it is alive and still the one that was started."""
    try:
        process = psutil.Process(server.pid)
        same = abs(process.create_time() - server.created) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def end(servers: Sequence[Server], mark: str) -> None:
    """End the servers, politely, and kill what is left of them and of all that they started."""
    before = list(members(servers, mark))
    for server in servers:
        if process := process_of(server):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
    psutil.wait_procs(before, timeout=GRACE_SECONDS)
    left = {process for process in before if process.is_running()} | set(members(servers, mark))
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=GRACE_SECONDS)
    for server in servers:
        with contextlib.suppress(ChildProcessError):  # where this process is its parent: collect its exit status
            os.waitpid(server.pid, os.WNOHANG)


def members(servers: Sequence[Server], mark: str) -> Iterator[psutil.Process]:
    """All processes of a stack: below a server, in its session, or with the stack's mark in their environment."""
    leaders = {process for server in servers if (process := process_of(server))}
    below = {child for leader in leaders for child in _children(leader)}
    sessions = {server.pid: server.created for server in servers if not _is_reused(server)}
    for process in psutil.process_iter():
        if process in leaders or process in below or _belongs(process, sessions, mark):
            yield process


def _is_reused(server: Server) -> bool:
    """Whether another process has the server's pid now."""
    try:
        return abs(psutil.Process(server.pid).create_time() - server.created) >= 1
    except psutil.NoSuchProcess:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _belongs(process: psutil.Process, sessions: Mapping[int, float], mark: str) -> bool:
    """Whether a process is in one of the sessions, since its start, or carries the mark.

    The session stays when a parent dies; the mark stays when a job leads its own session. (Ray and Airflow write titles
    over their environment: the mark alone would not find them.)
    """
    try:
        since = sessions.get(os.getsid(process.pid))
        if since is not None and process.create_time() >= since:
            return True
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):  # it ended meanwhile, or it is another user's: then it is not ours
        return False
