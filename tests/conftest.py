"""What tests of every room share: a real SeaweedFS server, and a fresh store of either scheme.

`make test` runs them on two workers of pytest-xdist, a file at a time, so that what a file makes once is made once.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from pipeline import weed
from pipeline.store import Store, open_store

ONE_STACK = "tests/dags/"  # its files share a Ray head and Airflow, which take half a minute to start
LONGEST = ("tests/trainers/test_launch.py", ONE_STACK, "tests/trainers/test_engine.py", "tests/test_whole_recipe.py")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """All tests of a file on one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return ONE_STACK if nodeid.startswith(ONE_STACK) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Called by xdist."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, so that no worker is left alone with it."""

    def place(item: pytest.Item) -> int:
        return next((rank for rank, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def weed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[weed.WeedState]:
    """One S3 server for the whole session."""
    state = weed.start(tmp_path_factory.mktemp("weed"))
    yield state
    weed.stop(state)


@pytest.fixture
def s3_uri(weed_server: weed.WeedState, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh prefix on the server, with the environment (of child processes too) that leads there."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in weed_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"{weed.STORE_URI}/test-{uuid.uuid4().hex}"


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A fresh, empty store of each scheme."""
    if request.param == "file":
        return open_store(f"file://{tmp_path}/store")
    uri: str = request.getfixturevalue("s3_uri")
    return open_store(uri)
