"""promote, rollback, retract and verify as a person meets them."""

import json
from pathlib import Path

import pytest

from pipeline.artifacts import Figure
from pipeline.store import Store, open_store
from tests.made_releases import FIGURES, RECIPE, published
from tests.pipeline.test_cli import atelier, error_of


@pytest.fixture
def place(tmp_path: Path) -> Store:
    """A store with two releases, the second no better than the first."""
    store = open_store(f"file://{tmp_path}/store")
    worse = Figure(value=6.0, unit="squared feature distance", num_samples=9, low=5.0, high=7.0)
    published(store, "a")
    published(store, "b", {**FIGURES, "frechet_distance": worse})
    return store


def test_a_release_goes_up_back_and_away(place: Store, tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        done = atelier(*arguments, "--store", place.uri, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert told("promote", "tiny-vae@1") == "tiny-vae@champion is release 1"
    gated = told("promote", "tiny-vae@2", "--gate", json.dumps(RECIPE))
    assert gated.startswith("tiny-vae@candidate is 2: frechet_distance 6 against 5 of tiny-vae@1: no better; it must")
    assert told("promote", "tiny-vae@2", "--why", "looks better") == "tiny-vae@champion is release 2"
    assert told("rollback", "tiny-vae", "--why", "it does not") == "tiny-vae@champion is release 1"
    assert told("retract", "tiny-vae@1", "--why", "a person asked") == "tiny-vae@1 is retracted: a person asked"
    assert "tiny-vae@champion" in told("list") and "no release" in told("list")
    assert "retracted" in told("verify", "tiny-vae@1", "--share", "0")
    assert "frechet_distance" in told("show", "tiny-vae@1")
    sampled = atelier("sample", "tiny-vae@1", "--store", place.uri, cwd=tmp_path)
    assert "was retracted on" in error_of(sampled, 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("rollback", "tiny-vae"), "tiny-vae@champion: expected an earlier release to go back to, found none"),
        (("rollback", "tiny-vae", "--to", "2"), "expected a release that it named before, got 2"),
        (("retract", "tiny-vae@1"), "Missing option '--why'"),
        (("retract", "tiny-vae@9", "--why", "x"), "tiny-vae@9 names none; there are: tiny-vae@1, tiny-vae@2"),
        (("promote", "tiny-vae@champion"), "tiny-vae@champion names none"),
        (("verify", "tiny-vae"), "expected a record's URI such as"),
    ],
)
def test_a_wrong_request_is_one_line(place: Store, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in error_of(atelier(*arguments, cwd=tmp_path, ATELIER_STORE=place.uri), 2)


def test_verify_lists_the_faults_and_ends_with_1(place: Store, tmp_path: Path) -> None:
    uri = f"{place.uri}/releases/tiny-vae/1"
    whole = atelier("verify", uri, "--share", "0", cwd=tmp_path)
    assert whole.returncode == 0 and "fault" not in whole.stdout
    place.put("releases/tiny-vae/1/model.safetensors", b"weights A")
    place.delete("releases/tiny-vae/1/config.json")
    done = atelier("verify", uri, cwd=tmp_path, ATELIER_TRUSTED_KEYS="a" * 64)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("fault")] == [
        "fault     manifest.json",
        "fault     config.json",
        "fault     model.safetensors",
    ]
    assert "found 3 faults" in done.stderr and "Traceback" not in done.stderr
    result = json.loads(atelier("verify", uri, "--json", cwd=tmp_path).stdout)
    assert len(result["faults"]) == 2 and result["regenerated"] == 0
