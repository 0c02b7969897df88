"""What tests of every room share: a real SeaweedFS server, and a fresh store of either scheme."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import weed
from pipeline.store import Store, open_store


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
