"""`up` and `down`, with a real store and a real Ray head (Airflow: tests/dags)."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from pipeline import servers, stack, weed
from pipeline.errors import StackError, UserError
from pipeline.jobs import JobsClient, entrypoint_of
from pipeline.processes import Server, members, process_of
from pipeline.store import open_store

pytestmark = pytest.mark.stack


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home, and afterwards none of its processes."""
    yield tmp_path / "home"
    stack.down(tmp_path / "home")


def everyone() -> set[psutil.Process]:
    """The machine's processes that look like a stack's."""
    words = ("ray", "weed", "airflow")
    return {
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word in " ".join(process.info["cmdline"] or []).lower() for word in words)
    }


def of_home(home: Path, stack_state: stack.StackState) -> list[str]:
    """What still runs of a stack: by its home, its Ray folder, or its mark."""
    assert stack_state.ray is not None
    marks = (str(home), str(stack_state.ray.folder))
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join([*process.cmdline(), process.cwd(), *process.environ().values()])
        except psutil.Error:
            continue
        if process.pid != os.getpid() and (any(mark in words for mark in marks) or stack_state.mark in words):
            found.append(f"{process.pid} {words[:200]}")
    return found


def test_up_and_down_leave_nothing_behind_not_even_jobs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    before = everyone()
    with weed.running(home) as earlier:
        up = stack.up(home, airflow=False, say=lines.append)
        assert up.environment()["AWS_ENDPOINT_URL_S3"] == earlier.endpoint  # the store that runs is used, and kept
    assert lines == ["starting the store", "waiting for Ray"]
    assert stat.S_IMODE(up.file.stat().st_mode) == stat.S_IMODE(up.token_file.stat().st_mode) == 0o600
    assert stack.up(home, airflow=False, say=lines.append) == up
    assert lines[2:] == ["the stack is up already"]
    for name, value in up.environment().items():
        monkeypatch.setenv(name, value)
    open_store(weed.STORE_URI).put("kept", b"bytes")

    start_a_stubborn_job(up)
    assert of_home(home, up)
    assert stack.down(home)
    assert of_home(home, up) == []
    assert not {process for process in everyone() - before if process.is_running() and process.ppid() == 1}
    assert up.ray is not None and not up.ray.folder.exists() and not up.file.exists()
    assert not stack.down(home)

    with weed.running(home) as later:  # data outlive the stack
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", later.endpoint)
        assert open_store(weed.STORE_URI).get("kept") == b"bytes"


def start_a_stubborn_job(up: stack.StackState) -> None:
    """Start a Ray job that ignores polite signals, with a child of its own."""
    assert up.ray is not None
    script = "trap '' INT TERM; sleep 300 & sleep 300"
    with JobsClient(up.ray.dashboard, up.ray.token) as client:
        entrypoint = entrypoint_of(["bash", "-c", script], 600)
        job = client.submit_or_attach("stubborn", entrypoint, environment={}, metadata={})
        while not (found := client.find(job.id)) or found.status != "RUNNING":
            time.sleep(0.1)


def test_two_stacks_stand_side_by_side_and_one_that_lost_a_server_starts_anew(home: Path, tmp_path: Path) -> None:
    port = servers.Ports(None, None).free()
    one, other_home = stack.up(home, airflow=False, ray_port=port), tmp_path / "other"
    try:
        other = stack.up(other_home, airflow=False)
        for up in (one, other):
            assert up.ray is not None
            header = {"Authorization": f"Bearer {up.ray.token}"}
            assert httpx.get(f"{up.ray.dashboard}/api/jobs/", headers=header).json() == []
            listening = {
                connection.laddr.ip
                for process in members(up.servers, up.mark)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
            assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert one.ray is not None and one.ray.dashboard.endswith(f":{port}")

        os.kill(other.servers[0].pid, signal.SIGKILL)
        while process_of(other.servers[0]):
            time.sleep(0.05)
        assert stack.is_up(one) and not stack.is_up(other)
        again = stack.up(other_home, airflow=False)
        assert stack.is_up(again) and stack.is_up(one)
        assert other.ray is not None and not other.ray.folder.exists()
        assert [line for line in of_home(other_home, other) if other.mark in line] == []
    finally:
        stack.down(other_home)


def test_a_state_from_before_a_reboot_is_no_state_and_kills_nobody(home: Path) -> None:
    home.mkdir()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        server = Server(name="ray", pid=bystander.pid, created=psutil.boot_time() - 1000, log=home / "log")
        old = stack.StackState(home=home, mark="m", boot_time=psutil.boot_time() - 1000, ready=True, servers=(server,))
        for state in (old, old.model_copy(update={"boot_time": psutil.boot_time()})):  # the pid alone is reused, too
            servers.write_private(home / "stack.json", state.model_dump_json())
            stack.down(home)
            assert bystander.poll() is None
            assert not (home / "stack.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_server_that_ends_at_its_start_is_one_line_and_nothing_stays(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "OBJECT_STORE_BYTES", 1)  # Ray refuses so little
    with pytest.raises(StackError, match=r"^ray ended at its start: .*ValueError.*; its log is .*ray\.log$"):
        stack.up(home, airflow=False)
    assert stack.state(home) is None
    assert weed.find(home) is None


def test_a_ray_head_that_ends_at_its_start_is_followed_by_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, said = servers.ray_command, list[str]()
    dying = [[sys.executable, "-c", "raise SystemExit('too busy')"]]
    monkeypatch.setattr(servers, "ray_command", lambda *arguments: dying.pop() if dying else real(*arguments))
    try:
        state = stack.up(home, airflow=False, say=said.append)
        assert "Ray ended at its start, starting another" in said
        assert stack.is_up(state) and len(state.servers) == 1
    finally:
        stack.down(home)


def test_a_port_in_use_is_the_users_mistake(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}: expected a free port, it is in use"):
            stack.up(home, airflow=False, ray_port=port)
    assert weed.find(home) is None


def test_a_home_that_is_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(UserError, match="expected a folder that you may write to"):
        stack.up(tmp_path / "home")


def test_a_state_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"version": 9}')
    with pytest.raises(StackError, match="expected the state of a stack"):
        stack.state(tmp_path)


def test_folders_that_the_running_airflow_does_not_read_are_told_of(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    url, mine, yours = "http://127.0.0.1:1", tmp_path / "mine", tmp_path / "yours"
    airflow = servers.AirflowServers(url=url, user="u", password="p", home=home)  # noqa: S106
    state = stack.StackState(home=home, mark="m", boot_time=psutil.boot_time(), ready=True, airflow=airflow)
    started = state.model_copy(update={"recipe_folders": (mine,)})
    servers.write_private(started.file, started.model_dump_json())
    monkeypatch.setattr(stack, "is_up", lambda _: True)
    said: list[str] = []
    for asked in ("", str(mine), f"{mine}{os.pathsep}{yours}"):
        monkeypatch.setenv("ATELIER_RECIPES", asked)
        assert stack.up(home, say=said.append).recipe_folders == (mine,)
    assert said[:3] == ["the stack is up already"] * 3
    [line] = said[3:]
    assert f"was started with ({mine}), got {yours}, which it does not read; `atelier down` first" in line


def test_the_folders_that_airflow_is_started_with_are_remembered(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    monkeypatch.setenv("ATELIER_RECIPES", str(tmp_path))
    state = stack.StackState(home=home, mark="m", boot_time=psutil.boot_time())
    starting = stack._Starting(state, servers.Ports(None, None), lambda _: None)
    monkeypatch.setattr(starting, "_migrate", lambda *_: None)
    monkeypatch.setattr(starting, "_airflow_environment", dict)
    starting._prepare_airflow()
    found = stack.state(home)
    assert found is not None and found.recipe_folders == (tmp_path,)
