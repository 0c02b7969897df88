"""The embedded store: found by other commands, stopped for good, and its data still there afterwards."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline import weed
from pipeline.errors import StackError, UserError
from pipeline.store import Store, open_store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def connect(state: weed.WeedState, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in state.environment().items():
        monkeypatch.setenv(name, value)
    return open_store(weed.STORE_URI)


def test_data_outlive_a_stop_and_a_kill(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weed.find(home) is None
    state = weed.start(home)
    try:
        assert weed.find(home) == state == weed.start(home)
        connect(state, monkeypatch).put("first", b"1" * 100_000)
        weed.stop(state)
        assert not weed.is_alive(state)
        assert not psutil.pid_exists(state.pid)
        assert weed.find(home) is None
        weed.stop(state)  # idempotent

        state = weed.start(home)
        connect(state, monkeypatch).put("second", b"2" * 100_000)
        os.kill(state.pid, signal.SIGKILL)
        while weed.is_alive(state):
            time.sleep(0.01)
        killed, state = state, weed.start(home)
        assert (killed.access_key, killed.secret_key) == (state.access_key, state.secret_key)
        store = connect(state, monkeypatch)
        assert [(entry.key, entry.bytes) for entry in store.list()] == [("first", 100_000), ("second", 100_000)]
        assert store.get("second") == b"2" * 100_000
        store.put("third", b"3")
        assert store.get("first") == b"1" * 100_000
    finally:
        weed.stop(state)


def test_everything_listens_on_loopback_at_our_ports(weed_server: weed.WeedState) -> None:
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process(weed_server.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {(weed.HOST, port) for port in (weed_server.s3_port, *weed_server.other_ports)}


def test_secrets_are_private(weed_server: weed.WeedState) -> None:
    for name in ("credentials.json", "server.json"):
        assert stat.S_IMODE((weed_server.folder / name).stat().st_mode) == 0o600
    assert weed_server.secret_key not in repr(weed_server)
    assert weed_server.secret_key not in " ".join(psutil.Process(weed_server.pid).cmdline())
    assert weed.WeedState.model_validate_json(weed_server.model_dump_json()) == weed_server


def test_one_command_starts_and_stops_it(home: Path) -> None:
    with weed.running(home) as state:
        assert weed.is_alive(state)
    assert not weed.is_alive(state)


USE_UNTIL_TOLD = """
import sys
from pathlib import Path
from pipeline import weed
with weed.running(Path(sys.argv[1])) as state:
    print(state.pid, flush=True)
    sys.stdin.readline()
"""


def test_the_last_of_several_commands_stops_it(home: Path) -> None:
    command = [sys.executable, "-c", USE_UNTIL_TOLD, str(home)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    pid = int(other.stdout.readline())
    with weed.running(home) as state:
        assert state.pid == pid
        other.communicate("\n", timeout=60)  # the one that started it ends first
        assert weed.is_alive(state)
    assert not weed.is_alive(state)


def test_a_killed_command_leaves_a_server_that_the_next_one_stops(home: Path) -> None:
    command = [sys.executable, "-c", USE_UNTIL_TOLD, str(home)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    pid = int(other.stdout.readline())
    other.kill()
    other.communicate()
    with weed.running(home) as state:
        assert state.pid == pid
    assert not weed.is_alive(state)


def test_start_keeps_what_a_command_started(home: Path) -> None:
    with weed.running(home) as passing:
        kept = weed.start(home)
        assert kept.pid == passing.pid
    assert weed.is_alive(kept)
    weed.stop(kept)
    assert not weed.is_alive(kept)


def test_another_process_with_its_pid_is_not_it(weed_server: weed.WeedState) -> None:
    reused = weed_server.model_copy(update={"created": weed_server.created - 100})
    assert not weed.is_alive(reused)
    weed.stop(reused.model_copy(update={"folder": Path("/nonexistent"), "other_ports": (), "s3_port": 0}))
    assert weed.is_alive(weed_server)


def test_port_in_use(home: Path) -> None:
    with socket.create_server((weed.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 to be free, got 'Address already in use'"):
            weed.start(home, port)
    assert weed.find(home) is None


def test_running_at_another_port(weed_server: weed.WeedState) -> None:
    with pytest.raises(UserError, match=f"it runs at port {weed_server.s3_port}"):
        weed.start(weed_server.folder.parent, 1)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", Path("/proc/atelier")):
        with pytest.raises(UserError, match="expected a folder that you may write to"):
            weed.start(home)


def test_a_server_that_dies_leaves_its_last_words(home: Path) -> None:
    (home / "store").mkdir(parents=True)
    (home / "store" / "data").mkdir()
    (home / "store" / "data" / "filerldb2").write_text("no database")
    with pytest.raises(StackError, match=r"it ended: .*filerldb2.*its log is") as caught:
        weed.start(home)
    assert "\n" not in str(caught.value)
    assert weed.find(home) is None
