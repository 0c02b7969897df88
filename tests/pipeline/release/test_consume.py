"""A consumer opens a release without torch: new images, the published ones, by every kind of store; and what is broken
is one line."""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline import releases
from pipeline.artifacts import FileEntry
from pipeline.errors import AtelierError, IntegrityError, RecordError, UserError
from pipeline.latents import image_seed, latents
from pipeline.release import runtime
from pipeline.release.signing import Signer, load_signer
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from tests.made_samplers import CLASSES, CONFIG, TAR, consumable, onnx_sampler, restate, sample_shard
from tests.pipeline.test_webstore import running

URI = "releases/tiny-vae/1"


@pytest.fixture(autouse=True)
def _without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room above offers a sampler, as where torch is not installed; a home and a cache of this test's own."""
    monkeypatch.setattr(runtime, "entry_points", lambda **_: [])
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "home"))
    for name in ("ATELIER_CACHE", "ATELIER_STORE", "ATELIER_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return load_signer(replace(Settings.from_environment(), home=tmp_path / "key"))


def expected(labels: list[int], seed: int) -> Any:
    """What the sampler made by hand gives."""
    z = latents([image_seed(seed, index) for index in range(len(labels))], 64)
    unit = 1 / (1 + np.exp(-(z.astype(np.float64) + np.array(labels)[:, None])))
    return np.rint(255 * unit).astype(np.uint8).reshape(-1, 8, 8, 1)


def test_new_images_follow_from_seed_and_classes(store: Store) -> None:
    consumable(store)
    releases.promote(store, "tiny-vae", 1, "champion", who="me", why="test")
    with releases.open("tiny-vae@champion", store.uri) as r:
        assert r.classes == CLASSES and r.made_with.startswith("onnxruntime") and r.record.number == 1
        images = r.sample(300, seed=3)  # more than a batch
        assert images.dtype == np.uint8 and images.shape == (300, 8, 8, 1)
        off = np.abs(images.astype(int) - expected([index % 2 for index in range(300)], 3))
        assert off.max() <= 1 and (off > 0).mean() < 0.001  # of float32's rounding
        assert np.array_equal(r.sample(5, seed=3), images[:5])
        assert np.array_equal(r.sample(4, classes="one", seed=3)[1], images[1])
        ones = np.abs(r.sample(6, classes=["one", "one", "zero"]).astype(int) - expected([1, 1, 0] * 2, 0))
        assert ones.max() <= 1


def test_the_published_images_come_in_order_with_class_and_seed(store: Store) -> None:
    consumable(store, {TAR: sample_shard(), "samples/samples-000001.tar": sample_shard((1,))})
    with releases.open(f"{store.uri}/{URI}") as r:
        found = [(int(one.image[0, 0, 0]), one.class_name, one.seed) for one in r.samples()]
    assert found == [(0, "zero", 100), (1, "one", 101), (2, "one", 102), (0, "one", 100)]


def test_over_http_files_are_fetched_once_and_a_damaged_copy_again(folder: Store, tmp_path: Path) -> None:
    consumable(folder)
    asked: list[str] = []

    class Counting(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            asked.append(self.path.rpartition("/")[2])

    with running(lambda *a: Counting(*a, directory=str(tmp_path / "store"))) as uri:
        first = releases.open(f"{uri}/{URI}").sample(4)
        assert "model.onnx" in asked
        asked.clear()
        assert np.array_equal(releases.open("tiny-vae@1", uri).sample(4), first)
        assert set(asked) == {"manifest.json", "retraction.json"}
        for copy in (tmp_path / "home" / "cache").glob("*-file.v1"):
            copy.write_bytes(copy.read_bytes()[:-1])
        assert np.array_equal(releases.open("tiny-vae@1", uri).sample(4), first)
        assert asked.count("model.onnx") == 1
        with pytest.raises(RecordError, match=r"tiny-vae@best names none; there are: not known, as this store lists"):
            releases.open("tiny-vae@best", uri)


def test_the_store_is_that_of_the_settings(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    consumable(folder)
    monkeypatch.setenv("ATELIER_STORE", folder.uri)
    assert releases.open("tiny-vae@1").sample(1).shape == (1, 8, 8, 1)


def test_only_what_is_signed_by_a_trusted_key_is_opened(
    folder: Store, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = consumable(folder, signer=signer)
    monkeypatch.setenv("ATELIER_TRUSTED_KEYS", signer.public_key)
    assert releases.open("tiny-vae@1", folder.uri).sample(1).shape == (1, 8, 8, 1)
    other = load_signer(replace(Settings.from_environment(), home=tmp_path / "other"))
    for forged, got in (
        (other.signed(release), "one by"),
        (release.model_copy(update={"signature": None}), "got none"),
        (release.model_copy(update={"license": "mpl"}), "got other content"),
    ):
        restate(folder, forged)
        with pytest.raises(IntegrityError, match=rf"{URI}/manifest.json: expected .*{got}"):
            releases.open("tiny-vae@1", folder.uri)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": "seven"}, r"classes: expected some of zero, one; got 'seven'"),
        ({"classes": ["one", "seven"]}, r"classes: expected some of zero, one; got 'seven'"),
        ({"classes": []}, r"classes: expected some of zero, one; got \[\]"),
        ({"count": 0}, r"count: expected 1 to"),
        ({"seed": -1}, r"seed: expected 0 to"),
    ],
)
def test_what_cannot_be_asked_is_said(folder: Store, arguments: dict[str, Any], message: str) -> None:
    consumable(folder)
    with pytest.raises(UserError, match=message):
        releases.open("tiny-vae@1", folder.uri).sample(**arguments)


def outside_weights() -> bytes:
    """A sampler whose weights are said to lie in a file of the machine."""
    model = onnx_sampler()
    scale = next(one for one in model.graph.initializer if one.name == "scale")
    onnx.external_data_helper.set_external_data(scale, "/etc/hostname", 0, 256)
    scale.ClearField("raw_data")
    return bytes(model.SerializeToString())


def other_tar(tmp: Path) -> bytes:
    """A stock tar of a path that leads out of any folder."""
    with tarfile.open(tmp, "w") as tar:
        tar.add(__file__, arcname="../../evil.py")
    return tmp.read_bytes()


WHOLE = onnx_sampler().SerializeToString()
# What is in a file whose digest and size are right: its publisher made it so.
BROKEN: list[tuple[str, Callable[[Path], bytes], str]] = [
    ("model.onnx", lambda _: WHOLE[: len(WHOLE) // 2], r"model.onnx: expected a sampler as ONNX, got "),
    ("model.onnx", lambda _: b"\x00" * 100, r"model.onnx: expected a sampler as ONNX, got "),
    ("model.onnx", lambda _: outside_weights(), r"model.onnx: expected weights inside the file, got a path to others"),
    ("model.onnx", lambda _: onnx_sampler(side=4).SerializeToString(), r"of \(8, 8, 1\) as config.json says, got \(16"),
    ("model.onnx", lambda _: onnx_sampler(scale=np.nan).SerializeToString(), r"expected images of finite values"),
    ("model.onnx", lambda _: WHOLE.replace(b"latent", b"talent"), r"model.onnx: expected a sampler as ONNX, got "),
    ("config.json", lambda _: b"{", r"config.json: expected what a release's images are like, got "),
    ("config.json", lambda _: json.dumps({**CONFIG, "height": 10**9}).encode(), r"config.json: .* height: "),
    (TAR, lambda _: sample_shard()[:-700], r"000000.tar: shard: expected .* got a shard cut short"),
    (TAR, other_tar, r"000000.tar: shard: expected a member's header at byte .*, got other bytes"),
    (TAR, lambda _: sample_shard((0, 5)), r"000000.tar: sample 000000001: expected a class of 2, got 5"),
    (TAR, lambda _: sample_shard((None,)), r"000000.tar: sample 000000000: expected a class of 2, got None"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_or_hostile_file_is_one_line(
    folder: Store, tmp_path: Path, name: str, content: Callable[[Path], bytes], message: str
) -> None:
    consumable(folder, {name: content(tmp_path / "made")})
    refused(folder, message)


def refused(store: Store, message: str) -> None:
    """What the consumer is told, whichever call tells it."""
    with pytest.raises(AtelierError, match=message) as caught:
        r = releases.open("tiny-vae@1", store.uri)
        r.sample(2)
        list(r.samples())
    assert "\n" not in str(caught.value)


def changed_entry(store: Store, **changes: Any) -> None:
    """A manifest that says something else of the sampler."""
    release = consumable(store)
    files = tuple(
        FileEntry.model_construct(**{**entry.model_dump(), **changes}) if entry.name == "model.onnx" else entry
        for entry in release.files
    )
    restate(store, release.model_copy(update={"files": files}))


# What is not as the manifest says, or is no manifest.
CHANGED: list[tuple[Callable[[Store], Any], str]] = [
    (lambda s: s.put(f"{URI}/model.onnx", WHOLE[:-1] + b"x"), r"model.onnx: expected SHA-256 .*, got .*; the release"),
    (lambda s: s.put(f"{URI}/model.onnx", WHOLE[:-1]), r"model.onnx: expected [0-9,]+ bytes, got [0-9,]+; the release"),
    (lambda s: s.put(f"{URI}/model.onnx", WHOLE + b"x"), r"model.onnx: expected [0-9,]+ bytes, got more; the release"),
    (lambda s: s.delete(f"{URI}/config.json"), r"config.json: expected [0-9,]+ bytes, found no object"),
    (lambda s: changed_entry(s, sha256="../../../x"), r"expected a SHA-256 and a size .* got '../../../x'"),
    (lambda s: changed_entry(s, bytes=10**15), r"expected a SHA-256 and a size of at most"),
    (lambda s: changed_entry(s, bytes=-5), r"expected a SHA-256 and a size of at most"),
    (lambda s: s.put(f"{URI}/manifest.json", s.get(f"{URI}/manifest.json")[:500]), r"expected a Release record"),
    (lambda s: s.put(f"{URI}/manifest.json", s.get(f"{URI}/manifest.json").replace(b'"number": 1', b'"number": 2')),
     r"tiny-vae/1/manifest.json: expected that of releases/tiny-vae/1, got releases/tiny-vae/2's"),
    (lambda s: releases.retract(s, "tiny-vae", 1, None, who="bo", why="a person asked"), r"retracted .* a person"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CHANGED)
def test_what_is_not_as_it_was_published_is_one_line(
    folder: Store, change: Callable[[Store], Any], message: str
) -> None:
    consumable(folder)
    change(folder)
    refused(folder, message)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tiny-vae@champion", "tiny-vae@champion names none; there are: tiny-vae@1"),
        ("tiny-vae@7", "tiny-vae@7 names none; there are: tiny-vae@1"),
        ("tiny-vae", "expected NAME@ALIAS or NAME@NUMBER"),
        ("{uri}/releases/tiny-vae/7", "expected the URI of a finished release"),
        ("{uri}/runs/aaaaaaaaaaaaaaaa", "expected the URI of a finished release"),
        ("gopher://x/releases/a/1", "expected a record's URI"),
    ],
)
def test_a_name_of_nothing_is_said(folder: Store, target: str, message: str) -> None:
    consumable(folder)
    with pytest.raises(RecordError, match=message):
        releases.open(target.format(uri=folder.uri), folder.uri)


def test_a_full_or_read_only_disk_costs_a_fetch_and_no_more(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumable(folder)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "cache").write_text("a file where the folder should be")
    with running(lambda *a: SimpleHTTPRequestHandler(*a, directory=str(tmp_path / "store"))) as uri:
        assert releases.open("tiny-vae@1", uri).sample(2).shape == (2, 8, 8, 1)
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "small"))
    monkeypatch.setenv("ATELIER_CACHE_GB", "0")
    with running(lambda *a: SimpleHTTPRequestHandler(*a, directory=str(tmp_path / "store"))) as uri:
        assert releases.open("tiny-vae@1", uri).sample(2).shape == (2, 8, 8, 1)
    assert not list((tmp_path / "small").glob("*.v1"))


def test_samples_that_are_not_all_taken_end_quietly(folder: Store) -> None:
    consumable(folder, {TAR: sample_shard(), "samples/samples-000001.tar": sample_shard()})
    taken: Iterator[Any] = releases.open("tiny-vae@1", folder.uri).samples()
    assert next(taken).seed == 100
    del taken
