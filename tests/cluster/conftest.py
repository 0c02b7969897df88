"""The cluster for each test, as it was at the beginning; at the end a table of how long each fault took to mend."""

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline import weed
from pipeline.store import open_store
from tests.cluster import hosts
from tests.cluster.cluster import DOOR_PORT, RECIPE, RECOVERIES, Cluster, Line, make_hosts
from tests.cluster.hosts import BRIDGE_ADDRESS


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, up."""
    if why := hosts.forbidden():
        pytest.skip(f"no cluster on this machine: {why}")
    folder = tmp_path_factory.mktemp("cluster")
    home = folder / "store-home"
    with ExitStack() as ending, pytest.MonkeyPatch.context() as patch:
        server = weed.start(home)
        ending.callback(_stop_store, home)
        hosts.make_bridge()
        ending.callback(hosts.remove_bridge)
        line = Line(server.endpoint)
        ending.callback(line.end)
        token = secrets.token_hex(32)
        (folder / "token").write_text(token)
        stored = server.environment() | {"AWS_ENDPOINT_URL_S3": f"http://{BRIDGE_ADDRESS}:{DOOR_PORT}"}
        environment = {
            **stored,
            "ATELIER_STORE": weed.STORE_URI,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        for name, value in stored.items():
            patch.setenv(name, value)
        head, workers = make_hosts(folder, environment)
        cluster = Cluster(line, head, workers, environment, token, open_store(weed.STORE_URI), home, server)
        for host in (head, *workers):
            ending.callback(host.remove)
            host.make()
            host.boot()
        cluster.whole()
        cluster.dataset = cluster.result(cluster.submit("ingest", "ingest", json.dumps(RECIPE)).id)
        yield cluster


def _stop_store(home: Path) -> None:
    if left := weed.find(home):  # a test may have started it anew
        weed.stop(left)


@pytest.fixture(scope="session")
def undisturbed(started: Cluster) -> str:
    """The digest of the weights that every run must end with."""
    return started.train("undisturbed").weights()


@pytest.fixture
def cluster(started: Cluster) -> Iterator[Cluster]:
    """The cluster, as it was at the beginning."""
    yield started
    started.restore()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Called by pytest at the end."""
    if RECOVERIES:
        terminalreporter.section("seconds from a fault until the run was farther than before")
    for fault, seconds in RECOVERIES:
        terminalreporter.write_line(f"{seconds:6.1f}  {fault}")
