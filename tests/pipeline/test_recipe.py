"""A recipe is validated in full before anything runs; a wrong field is named with its line and the choices."""

import json
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import check_models, load_recipe, recipe_files

GOOD = """\
name: tiny
source:
  kind: digits
dataset:
  channels: 1
  height: 8
  width: 8
models:
  vae:
    family: vae
    steps: 10
"""


def write(folder: Path, text: str) -> str:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
def test_shipped_recipes_are_valid_and_named_as_their_files(file: Path) -> None:
    recipe = load_recipe(file.stem)
    check_models(recipe)
    assert recipe.name == file.stem


def test_a_recipe_survives_the_trip_as_json(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["models.vae.beta=0.5"])
    assert load_recipe(recipe.to_json()).to_json() == recipe.to_json()
    assert recipe.models["vae"].options == {"beta": 0.5}
    assert "\n" not in recipe.to_json()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps: 10", "steps: many", r"tiny.yaml:11: models.vae.steps: expected a valid integer.*, got 'many'"),
        ("steps: 10", "steps: 0", r"tiny.yaml:11: models.vae.steps: expected greater than or equal to 1, got 0"),
        ("    steps: 10\n", "", r"tiny.yaml:9: models.vae.steps: expected this field, which is required"),
        ("height: 8", "hieght: 8", r"tiny.yaml:6: dataset.hieght: unknown field; did you mean height.* \(and 1 more\)"),
        ("width: 8", "width: 8\n  colour: red", r"tiny.yaml:8: dataset.colour: unknown field; .*channels, height"),
        ("channels: 1", "channels: 2", r"tiny.yaml:5: dataset.channels: expected 1 or 3, got 2"),
        ("kind: digits", "kind: dogits", r"tiny.yaml:3: source.kind: .*digits.*folder.*idx.*got 'dogits'"),
        ("kind: digits", "kind: digits\n  path: x", r"tiny.yaml:4: source.path: "),
        ("name: tiny", "name: Tiny Digits", r"tiny.yaml:1: name: "),
        ("  kind: digits", "  kind: digits\n  kind: idx", r"tiny.yaml:4: source.kind stands twice \(first in line 3\)"),
        ("name: tiny", "name: [", r"tiny.yaml:\d+: expected YAML, got"),
        ("name: tiny", "name: 2026-13-45", r"tiny.yaml: expected YAML, got month must be in 1..12"),
        ("name: tiny", "name: &a tiny\nx: *a", r"expected a recipe without YAML aliases"),
        (GOOD, "- a\n- b\n", r"expected a mapping with name, source, dataset and models, got list"),
        (
            "name: tiny",
            "name: tiny\nairflow:\n  tags: [" + "x" * 101 + "]",
            r"tiny.yaml:3: airflow.tags.0: expected .*at most 100 characters",
        ),
        (
            "name: tiny",
            "name: tiny\nairflow: {retry_seconds: .inf}",
            r"tiny.yaml:2: airflow.retry_seconds: expected .*3600",
        ),
        ("name: tiny", "name: tiny\nairflow: {retry_seconds: .nan}", r"tiny.yaml:2: airflow.retry_seconds: expected "),
        (
            "name: tiny",
            "name: tiny\nairflow: {notify: x, late_after_minutes: 99999999999}",
            r"tiny.yaml:2: airflow.late_after_minutes: expected .*525600",
        ),
        (
            "name: tiny",
            "name: tiny\nairflow:\n  late_after_minutes: 5",
            r"tiny.yaml:2: airflow: expected notify with late_after_minutes: 5, got none, .*; name an",
        ),
        ("name: tiny", "name: tiny\ncluster: {timeout_minutes: 99999999}", r"tiny.yaml:2: cluster.timeout_minutes: "),
        ("name: tiny", "name: tiny\nschedule: {watch: source, poll_seconds: 99999999}", r"tiny.yaml:2: schedule"),
        ("name: tiny", "name: tiny\nschedule: {watch: source, settle_seconds: 99999999}", r"tiny.yaml:2: schedule"),
        ("models:", "model:", r"tiny.yaml:8: model: unknown field; did you mean models\?"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=expected) as caught:
        load_recipe(write(tmp_path, GOOD.replace(old, new, 1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "family: vae",
            "family: diffusion",
            r"tiny.yaml:10: models.vae.family: expected one of gan, vae, vaegan, got 'diffusion'",
        ),
        ("steps: 10", "steps: 10\n    bta: 2", r"tiny.yaml:12: models.vae.bta: .*the fields of vae are .*beta"),
        ("steps: 10", "steps: 10\n    beta: much", r"tiny.yaml:12: models.vae.beta: .*'much'"),
        (
            "steps: 10",
            "steps: 10\n    likelihood: poisson",
            r"tiny.yaml:12: models.vae.likelihood: .*'bernoulli', 'gaussian' or 'logistic_mixture'",
        ),
    ],
)
def test_the_family_checks_its_own_fields(tmp_path: Path, old: str, new: str, expected: str) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace(old, new, 1)))
    with pytest.raises(RecipeError, match=expected):
        check_models(recipe)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("models.vae.steps", r"--set: expected path.to.field=value, got 'models.vae.steps'"),
        ("name.x=1", r"--set name.x: name is no section"),
        ("models.vae.steps=[", r"--set models.vae.steps: expected a YAML value"),
        ("cluster.zero=7", r"cluster.zero: expected 0, 1, 2 or 3, got 7"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe(write(tmp_path, GOOD), [override])


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"\(digits, ffhq256, mnist.*\) or the path of a YAML file, got 'nonesuch'"):
        load_recipe("nonesuch")


def test_a_recipe_folder_adds_recipes_by_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert load_recipe("tiny", folders=[tmp_path]).name == "tiny"


def test_a_huge_or_binary_file_is_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (1 << 21))
    with pytest.raises(RecipeError, match="at most 1048576 bytes"):
        load_recipe(str(huge))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(str(binary))


def test_json_is_read_as_it_is() -> None:
    with pytest.raises(RecipeError, match="recipe: name: expected this field"):
        load_recipe(json.dumps({"source": {"kind": "digits"}}))


def test_a_run_cannot_be_content_with_more_workers_than_it_asks_for() -> None:
    with pytest.raises(RecipeError, match="min_workers of at most workers, got min_workers: 3 and workers: 2"):
        load_recipe("digits", ["cluster.workers=2", "cluster.min_workers=3"])
    assert load_recipe("digits", ["cluster.workers=2", "cluster.min_workers=1"]).cluster.elastic
    assert not load_recipe("digits", ["cluster.workers=2", "cluster.min_workers=2"]).cluster.elastic
