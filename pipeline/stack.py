"""`atelier up`: the embedded store, a Ray head and Airflow on this machine, on loopback and free ports.

    home/stack.json    what was started, with its addresses, login and token; readable by its owner alone
    home/logs/         a log of each server
    home/airflow/      Airflow's home; its login and keys stay the same from one `up` to the next
    home/recipes/      recipes that this Airflow reads beside the others

Every server leads a session of its own and outlives the command that started it. `down` ends the processes that `up`
started, and those that they started.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
from filelock import FileLock
from pydantic import ValidationError

from pipeline import servers as servers_
from pipeline import weed
from pipeline.artifacts import Strict
from pipeline.errors import StackError, UserError
from pipeline.jobs import JobsClient, JobsError, last_error
from pipeline.processes import MARK, Server, end, process_of, spawn
from pipeline.servers import AirflowServers, Ports, RayHead, write_private
from pipeline.settings import RAY_ON_LOOPBACK, Settings, child_environment

Say = Callable[[str], None]

START_SECONDS = 240.0
POLL_SECONDS = 0.1
RAY_ATTEMPTS = 3
RAYS_LAST_WORD = "Ray runtime started"  # of `ray start`, once its node has joined
CLOCK_SECONDS = 60.0  # by which the time of the last boot may seem to move when the clock is set


class StackState(Strict):
    """What `up` started. `ready` is false while it is still starting."""

    home: Path
    mark: str
    boot_time: float
    ready: bool = False
    store_environment: Mapping[str, str] = {}
    recipe_folders: tuple[Path, ...] = ()  # of ATELIER_RECIPES, which Airflow was started with
    ray: RayHead | None = None
    airflow: AirflowServers | None = None
    servers: tuple[Server, ...] = ()

    @property
    def file(self) -> Path:
        """Where this is kept."""
        return self.home / "stack.json"

    @property
    def token_file(self) -> Path:
        """Ray's token, for RAY_AUTH_TOKEN_PATH."""
        return self.home / "ray-token"

    def environment(self) -> dict[str, str]:
        """The variables with which a command uses this stack's store."""
        return {"ATELIER_STORE": weed.STORE_URI, **self.store_environment}


def state(home: Path) -> StackState | None:
    """What `up` started in this home; None where nothing is recorded, or where the machine was started anew since."""
    file = home.absolute() / "stack.json"
    try:
        found = StackState.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise StackError(
            f"{file}: expected the state of a stack, got something else (another version's?); end its processes and "
            "delete the file"
        ) from None
    return found if abs(found.boot_time - psutil.boot_time()) < CLOCK_SECONDS else None


def is_up(stack: StackState) -> bool:
    """Whether it was ready once and every server of it is alive."""
    return stack.ready and weed.find(stack.home) is not None and all(map(process_of, stack.servers))


def up(
    home: Path,
    *,
    airflow: bool = True,
    ray_port: int | None = None,
    airflow_port: int | None = None,
    say: Say = lambda _line: None,
) -> StackState:
    """Start what is not up yet and wait until it answers; `say` is told what is being waited for.

    Raises StackError where a server ends at its start or does not answer, with the last words of its log: nothing of
    the stack stays then. Raises UserError where an asked port is in use, or where `home` cannot be written to.
    """
    home = home.absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"expected a folder that you may write to, got {home}: {error.strerror}; set ATELIER_HOME to another one"
        ) from None
    with FileLock(home / "stack.lock"):
        stack = state(home)
        if stack and not is_up(stack):
            say("ending what is left of an earlier stack")
            _end(stack)
            stack = None
        if stack and (stack.airflow or not airflow):
            say("the stack is up already")
            if stack.airflow and (line := unread_folders(stack)):
                say(line)
            return stack
        ports = Ports(ray_port, airflow_port)
        new = StackState(home=home, mark=secrets.token_hex(8), boot_time=psutil.boot_time())
        starting = _Starting(stack or new, ports, say)
        try:
            starting.run(airflow=airflow)
        except BaseException:  # an interrupt too: nothing may stay behind
            _end(starting.stack)
            raise
        return starting.stack


def down(home: Path, *, say: Say = lambda _line: None) -> bool:
    """End what `up` started in this home, with everything it started. False where nothing was up."""
    home = home.absolute()
    if not (home / "stack.json").exists():
        return False
    with FileLock(home / "stack.lock"):
        stack = state(home)
        if stack is None:
            (home / "stack.json").unlink(missing_ok=True)
            return False
        say("stopping the stack")
        _end(stack)
    return True


def unread_folders(stack: StackState) -> str:
    """One line about the folders of ATELIER_RECIPES that a running stack's Airflow does not read; "" where it does."""
    asked = Settings.from_environment().recipe_folders
    unread = [folder for folder in asked if folder not in stack.recipe_folders]
    if not unread:
        return ""
    words = os.pathsep.join(map(str, unread))
    reads = os.pathsep.join(map(str, stack.recipe_folders)) or "none"
    return (
        f"ATELIER_RECIPES: expected folders that the running Airflow was started with ({reads}), got {words}, which it "
        "does not read; `atelier down` first, then `atelier up`"
    )


def recipes_folder(home: Path) -> Path:
    """The last of the folders that this stack's Airflow reads recipes from."""
    return home / "recipes"


def public(stack: StackState) -> dict[str, Any]:
    """Addresses and logins, for `--json`."""
    assert stack.ray is not None
    airflow = stack.airflow
    return {
        "store": stack.environment(),
        "ray": {"dashboard": stack.ray.dashboard, "token": stack.ray.token},
        "airflow": {"url": airflow.url, "user": airflow.user, "password": airflow.password} if airflow else None,
        "logs": str(stack.home / "logs"),
    }


def describe(stack: StackState) -> str:
    """Addresses and logins, for a person."""
    assert stack.ray is not None
    store = stack.environment()
    where, key = store["AWS_ENDPOINT_URL_S3"], store["AWS_ACCESS_KEY_ID"]
    lines = [
        f"store    {weed.STORE_URI} at {where}  key {key}, secret in {stack.file}",
        f"Ray      {stack.ray.dashboard}  token in {stack.token_file}",
    ]
    if stack.airflow:
        login = f"user {stack.airflow.user}  password {stack.airflow.password}"
        lines.append(f"Airflow  {stack.airflow.url}  {login}")
    return "\n".join([*lines, f"logs     {stack.home / 'logs'}"])


class _Starting:
    """A stack on its way up. What is started is written down at once, so that `down` finds it whatever happens."""

    def __init__(self, stack: StackState, ports: Ports, say: Say) -> None:
        self.stack = stack
        self.ports = ports
        self.say = say
        self.deadline = time.monotonic() + START_SECONDS

    def run(self, *, airflow: bool) -> None:
        """Start the store, Ray while Airflow's database is prepared, then Airflow; what runs already is left."""
        servers_.check_installed(airflow)
        self._note(ready=False)
        self.say("starting the store")
        self._note(store_environment=weed.start(self.stack.home).environment())
        if self.stack.ray is None:
            self._start_ray()
        if airflow:
            self._prepare_airflow()
        self.say("waiting for Ray")
        self._wait_for_ray()
        if airflow:
            self._start_airflow()
            self.say("waiting for Airflow")
            self._wait_until(self._airflow_answers, "Airflow")
        self._note(ready=True)

    def _note(self, **changes: Any) -> None:
        self.stack = self.stack.model_copy(update=changes)
        write_private(self.stack.file, self.stack.model_dump_json(indent=1))

    def _spawn(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        server = spawn(name, command, environment, self.stack.home / "logs" / f"{name}.log")
        self._note(servers=(*self.stack.servers, server))

    def _start_ray(self) -> None:
        head = servers_.new_ray_head(self.stack.home, self.ports)
        self._note(ray=head)
        write_private(self.stack.token_file, head.token)
        self._spawn("ray", servers_.ray_command(head, self.ports), self._environment())

    def _wait_for_ray(self) -> None:
        """Wait for the Ray head, and start another where it ends at its start.

        One of about fifteen did so on a busy machine: its own first call to its control store ran into a deadline.
        """
        for attempt in range(1, RAY_ATTEMPTS + 1):
            try:
                self._wait_until(self._ray_answers, "Ray")
            except StackError:
                if attempt == RAY_ATTEMPTS:
                    raise
                self.say("Ray ended at its start, starting another")
                end(self.stack.servers, self.stack.mark)  # Airflow is not among them yet
                assert self.stack.ray is not None
                shutil.rmtree(self.stack.ray.folder, ignore_errors=True)
                self._note(servers=())
                self._start_ray()
            else:
                return

    def _prepare_airflow(self) -> None:
        airflow = servers_.new_airflow(self.stack.home / "airflow", self.ports)
        self._note(airflow=airflow, recipe_folders=Settings.from_environment().recipe_folders)
        assert self.stack.airflow is not None
        self._migrate(self.stack.airflow.home, self._airflow_environment())

    def _start_airflow(self) -> None:
        environment = self._airflow_environment()
        for name, options in servers_.AIRFLOW_SERVERS.items():
            self._spawn(f"airflow-{name}", servers_.airflow_command(name, *options), environment)

    def _airflow_environment(self) -> dict[str, str]:
        assert self.stack.ray is not None and self.stack.airflow is not None
        return {**self._environment(), **servers_.airflow_environment(self.stack.airflow, self.stack.ray)}

    def _migrate(self, home: Path, environment: Mapping[str, str]) -> None:
        """Create or upgrade Airflow's database, once for each version of Airflow."""
        done, wanted = home / "migrated", version("apache-airflow-core")
        if done.exists() and done.read_text() == wanted and (home / "airflow.db").exists():
            return
        self.say("preparing Airflow's database")
        command = servers_.airflow_command("db", "migrate")
        result = subprocess.run(
            command, env=child_environment(**environment), capture_output=True, text=True, check=False
        )
        if result.returncode:
            words = last_error(result.stderr or result.stdout)
            raise StackError(f"Airflow's database in {home} could not be prepared: {words}")
        done.write_text(wanted)

    def _environment(self) -> dict[str, str]:
        """What every server and every job is told."""
        path = child_environment().get("PATH", os.defpath)
        folders = [*Settings.from_environment().recipe_folders, recipes_folder(self.stack.home)]
        return {
            MARK: self.stack.mark,
            **self.stack.environment(),
            **servers_.NO_PROXY,
            "ATELIER_RECIPES": os.pathsep.join(map(str, folders)),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}",  # where `atelier` is
            **RAY_ON_LOOPBACK,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.stack.token_file),
        }

    def _wait_until(self, answers: Callable[[], bool], what: str) -> None:
        """Wait, while every server is alive. Raises StackError."""
        while not answers():
            for server in self.stack.servers:
                if not process_of(server):
                    words = _last_words(server.log)
                    raise StackError(f"{server.name} ended at its start: {words}; its log is {server.log}")
            if time.monotonic() > self.deadline:
                logs = self.stack.home / "logs"
                raise StackError(f"{what} did not answer within {START_SECONDS:.0f} s; its log is in {logs}")
            time.sleep(POLL_SECONDS)

    def _ray_answers(self) -> bool:
        assert self.stack.ray is not None
        log = next(server.log for server in self.stack.servers if server.name == "ray")
        if RAYS_LAST_WORD not in log.read_text(errors="replace"):
            return False  # its dashboard may answer already, but it has no node that could run a job
        with JobsClient(self.stack.ray.dashboard, self.stack.ray.token) as client:
            try:
                client.list()
            except JobsError:
                return False
        return True

    def _airflow_answers(self) -> bool:
        assert self.stack.airflow is not None
        url = f"{self.stack.airflow.url}/api/v2/monitor/health"
        try:
            parts = httpx.get(url, timeout=5, trust_env=False).json()
        except (httpx.HTTPError, ValueError):
            return False
        names = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all((parts.get(name) or {}).get("status") == "healthy" for name in names)


def _last_words(log: Path) -> str:
    with contextlib.suppress(OSError):
        return last_error(log.read_text(errors="replace"))
    return "it left no log"


def _end(stack: StackState) -> None:
    """End all of the stack, the store last, so that jobs can still write while they stop."""
    end(stack.servers, stack.mark)
    if store := weed.find(stack.home):
        weed.stop(store)
    if stack.ray:
        shutil.rmtree(stack.ray.folder, ignore_errors=True)
    stack.file.unlink(missing_ok=True)
