"""What the store refuses: hostile keys, bad URIs, servers that do not let one in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import AtelierError, StoreError, StoreRefused, UserError
from pipeline.store import Store, open_store
from tests.stores import keys

HOSTILE = ["", "/", "/etc/passwd", "a//b", "a/", "../x", "a/../../x", "a/./b", "..", "a\\b", "a\0b", "a\nb", "\udc80"]
HOSTILE += [".atelier-lock", "a/.atelier-x/b", "x" * 256, "/".join(["y" * 200] * 6)]


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_refused(store: Store, key: str) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.put(key, b""),
        lambda: store.create(key, b""),
        lambda: store.replace(key, b"", "x"),
        lambda: store.stat(key),
        lambda: store.delete(key),
    ]
    if key and not (key.endswith("/") and key != "/"):
        attempts.append(lambda: list(store.list(key)))
    for attempt in attempts:
        with pytest.raises(UserError, match=r"^key: expected names joined by single slashes") as caught:
            attempt()
        assert "\n" not in str(caught.value)


BAD_URIS = ["", "out", "/out", "file://out", "file:///", "file://", "s3://", "s3:///x", "gs://bucket", "s3://B!/x",
            "s3://bucket/../x", "ftp://host/bucket"]  # fmt: skip


@pytest.mark.parametrize("uri", BAD_URIS)
def test_bad_uris_are_the_users_mistake(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        open_store(uri)
    assert "\n" not in str(caught.value)


def test_uris_lose_their_last_slash() -> None:
    assert open_store("s3://bucket/a/b/").uri == "s3://bucket/a/b"
    assert open_store("s3://bucket/").uri == "s3://bucket"
    assert open_store("file:///out/").uri == "file:///out"


def test_escaped_file_uri(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    open_store(folder.as_uri()).put("x", b"1")
    assert (folder / "x").read_bytes() == b"1"
    assert open_store(f"file://{folder}").get("x") == b"1"


def refused(uri: str, expected: str) -> None:
    """Every way to use the store ends in one clear line."""
    store = open_store(uri)
    attempts: list[Callable[[], object]] = [
        lambda: store.get("x"),
        lambda: store.stat("x"),
        lambda: store.put("x", b"1"),
        lambda: store.create("x", b"1"),
        lambda: list(store.list()),
    ]
    for attempt in attempts:
        with pytest.raises(StoreRefused, match=expected) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert caught.value.exit_status == 2


def test_missing_bucket(s3_uri: str) -> None:
    refused("s3://no-such-bucket/x", "no-such-bucket does not exist; make it")


def test_wrong_keys(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(s3_uri)
    for attempt in (lambda: store.get("x"), lambda: store.put("x", b"")):
        with pytest.raises(StoreRefused, match="check AWS_SECRET_ACCESS_KEY"):
            attempt()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StoreRefused, match="check AWS_ACCESS_KEY_ID"):
        open_store(s3_uri).get("x")
    with pytest.raises(StoreRefused, match="may not do this"):  # the reply to HEAD has no body that says why
        open_store(s3_uri).stat("x")


def test_no_keys_at_all(s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    refused(s3_uri, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def test_dead_endpoint(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.ATTEMPTS", 1)  # the wait between attempts is botocore's affair
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="is the store running") as failed:
        open_store(s3_uri).get("x")
    assert not isinstance(failed.value, UserError), "an outage is tried again"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "no url")
    with pytest.raises(StoreRefused, match="must be a URL"):
        open_store(s3_uri).get("x")


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_a_key_cannot_be_a_folder_too(store: Store) -> None:
    store.put("a", b"1")
    store.put("b/c", b"2")
    for key in ("a/x", "a/x/y", "b"):
        with pytest.raises(StoreError, match="no key is the folder of another"):
            store.put(key, b"")
    assert keys(store) == ["a", "b/c"]


def test_folder_that_one_may_not_write_to() -> None:
    with pytest.raises(AtelierError) as caught:
        open_store("file:///proc/atelier").put("x", b"1")
    assert "\n" not in str(caught.value)
