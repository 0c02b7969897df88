"""Verification says what is wrong with a release, a line a fault: what was changed, lost, added, signed by another."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import releases
from pipeline.artifacts import Release
from pipeline.records import load
from pipeline.release import verify as module
from pipeline.release.signing import Signer, load_signer
from pipeline.release.verify import Examined, verify
from pipeline.settings import Settings
from pipeline.store import Store
from tests.made_releases import published

TAR = "samples/samples-000000.tar"


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return load_signer(replace(Settings.from_environment(), home=tmp_path / "home"))


def faults_of(store: Store, signer: Signer) -> tuple[str, ...]:
    """What a sceptic is told who trusts this key."""
    release = load(store, "releases/tiny-vae/1", Release)
    return verify(store, release, (signer.public_key,), share=0).faults


def flip(store: Store, key: str) -> None:
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


def test_a_release_as_published_has_no_fault(store: Store, signer: Signer) -> None:
    published(store, signer=signer)
    assert faults_of(store, signer) == ()


DAMAGE: list[tuple[Callable[[Store, str], object], str]] = [
    (lambda store, ref: flip(store, f"{ref}/{TAR}"), rf"{TAR}: expected SHA-256 .*, got "),
    (lambda store, ref: store.put(f"{ref}/config.json", b"{"), r"config.json: expected 2 bytes, got 1; "),
    (lambda store, ref: store.delete(f"{ref}/model.safetensors"), r"model.safetensors: expected .* found no object"),
    (lambda store, ref: store.put(f"{ref}/run.py", b"import os"), r"run.py: expected the files of the manifest alone"),
    (lambda store, ref: store.put(f"{ref}/README.md", b"# Better"), r"README.md: expected [0-9,]+ bytes"),
    (
        lambda store, ref: store.put(
            f"{ref}/manifest.json", store.get(f"{ref}/manifest.json").replace(b'"license": "mit"', b'"license": "mpl"')
        ),
        r"manifest.json: expected what [0-9a-f]{64} signed, got other content",
    ),
    (
        lambda store, ref: store.put("runs/aaaaaaaaaaaaaaaa/run.json", b"{}"),
        r"runs/aaaaaaaaaaaaaaaa/run.json: expected SHA-256 .* of the release's parent",
    ),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGE)
def test_every_damage_is_one_line(
    store: Store, signer: Signer, damage: Callable[[Store, str], object], expected: str
) -> None:
    release = published(store, signer=signer)
    damage(store, release.ref)
    (fault,) = faults_of(store, signer)
    assert re.match(expected, fault) and "\n" not in fault


def test_a_file_and_its_manifest_changed_together_are_known_by_the_signature(
    store: Store, signer: Signer, tmp_path: Path
) -> None:
    release = published(store, signer=signer)
    other = load_signer(replace(Settings.from_environment(), home=tmp_path / "other"))
    store.put(f"{release.ref}/manifest.json", other.signed(release).to_bytes())
    (fault,) = faults_of(store, signer)
    assert fault.startswith(f"manifest.json: expected a signature by one of {signer.public_key}, got one by")
    store.put(f"{release.ref}/manifest.json", release.model_copy(update={"signature": None}).to_bytes())
    assert faults_of(store, signer) == ("manifest.json: expected a signature by a trusted key, got none",)


def test_a_retraction_is_signed_as_the_release_is(store: Store, signer: Signer) -> None:
    published(store, signer=signer)
    releases.retract(store, "tiny-vae", 1, None, who="mallory", why="spite")
    (fault,) = faults_of(store, signer)
    assert fault == "retraction.json: expected a signature by a trusted key, got none"


def test_a_parent_that_was_cleared_away_is_no_fault(store: Store, signer: Signer) -> None:
    release = published(store, signer=signer)
    store.delete(f"{release.run}/run.json")
    assert faults_of(store, signer) == ()


def examined(store: Store, monkeypatch: pytest.MonkeyPatch, level: int, by: str) -> Examined:
    """The release's black images, made again `level` levels lighter."""
    again = np.full((2, 8, 8, 1), level, np.uint8)
    monkeypatch.setattr(module, "_regenerator", lambda: lambda *_: (again, by))
    return verify(store, load(store, "releases/tiny-vae/1", Release), (), share=1)


@pytest.mark.parametrize(
    ("level", "by", "expected"),
    [
        (0, "hand", None),
        (1, "hand", "bit for bit, got 64 other values, by up to 1 levels"),
        (2, "another machine", None),
        (3, "another machine", "with 99% of its values within 2 levels, got 0.0%"),
    ],
)
def test_images_are_compared_by_what_made_them(
    store: Store, monkeypatch: pytest.MonkeyPatch, level: int, by: str, expected: str | None
) -> None:
    published(store)
    found = examined(store, monkeypatch, level, by)
    assert found.regenerated == 2
    about_pixels = [fault for fault in found.faults if "the image of seed" in fault]
    assert len(about_pixels) == (2 if expected else 0) and all(str(expected) in fault for fault in about_pixels)


def test_an_image_that_does_not_say_what_it_is_is_a_fault(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-made set carries the release and the seed, and no digital source type."""
    published(store)
    faults = examined(store, monkeypatch, 0, "hand").faults
    assert len(faults) == 2 and all("expected IPTC's digital source type" in fault for fault in faults)
