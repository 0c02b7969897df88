"""A store that is away for a while, by a real server that ends and comes back."""

import logging
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline import patience, weed
from pipeline.errors import StoreError
from pipeline.store import Store, open_store


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> weed.WeedState:
    state = weed.start(tmp_path)
    for name, value in state.environment().items():
        monkeypatch.setenv(name, value)
    return state


def back_later(state: weed.WeedState, home: Path, seconds: float) -> threading.Thread:
    """Start the server again, at its port, after so many seconds."""

    def start() -> None:
        time.sleep(seconds)
        weed.start(home, state.s3_port)

    thread = threading.Thread(target=start)
    thread.start()
    return thread


def test_a_store_that_answered_before_is_waited_for(
    server: weed.WeedState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(weed.STORE_URI)
    store.put("before", b"1")
    weed.stop(server)
    with caplog.at_level(logging.WARNING):
        thread = back_later(server, tmp_path, 15.0)  # longer than botocore's own attempts take
        etag = store.create("meanwhile", b"2")
        thread.join()
    said = [record.message.split(" (")[0] for record in caplog.records if record.name == patience.__name__]
    try:
        assert store.get_with_etag("meanwhile") == (b"2", etag) and store.get("before") == b"1"
        assert said == ["s3://atelier is away", "s3://atelier is back"]
    finally:
        weed.stop(weed.start(tmp_path))


def test_patience_ends(server: weed.WeedState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    store = open_store(weed.STORE_URI)
    store.put("before", b"1")
    weed.stop(server)
    fails_with_a_line(store)


def test_a_store_that_never_answered_is_not_waited_for(server: weed.WeedState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.ATTEMPTS", 1)
    weed.stop(server)
    fails_with_a_line(open_store(weed.STORE_URI))


class Reply(NamedTuple):
    """The one thing that is asked of a server's reply."""

    status_code: int


def test_a_request_that_fails_for_ever_ends_though_others_succeed() -> None:
    waits = patience.Patience("s3://bucket", (ConnectionError,))
    for attempt in range(1, patience.MAX_ATTEMPTS):
        assert waits((Reply(200), {})) is None
        assert waits((Reply(500), {}), attempt) is not None
    assert waits((Reply(200), {})) is None
    assert waits((Reply(500), {}), patience.MAX_ATTEMPTS) is None


def test_an_error_on_this_side_is_no_answer() -> None:
    waits = patience.Patience("s3://bucket", (ConnectionError,))
    assert waits(None, 1, ValueError("no credentials")) is None
    assert waits(None, 1, ConnectionError("refused")) is None


def fails_with_a_line(store: Store) -> None:
    with pytest.raises(StoreError, match=r"before: .*; is the store running, and AWS_ENDPOINT_URL_S3 its address\?"):
        store.get("before")
