"""What watching a run shows. (The watching itself: tests/test_whole_recipe.py.)"""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import stack
from pipeline.airflow_client import StageView
from pipeline.follow import hand_over, progress_of, stage_table
from pipeline.recipe import load_recipe

LOG = """Running entrypoint for job a-1: timeout 60 atelier train '{"steps":"1/2"}'
\x1b[36m(RayTrainWorker pid=12)\x1b[0m train vae step 100/300  1.2 s left
train vae step 200/300
saving
\x1b[33m(raylet)\x1b[0m WARNING: 10/10 workers
{"uri": "s3://atelier/runs/1"}
"""


def test_progress_is_the_newest_line_that_counts_or_the_last_words_at_the_end() -> None:
    assert progress_of(LOG) == "train vae step 200/300"
    assert progress_of(LOG, ended=True) == "saving"
    assert progress_of(LOG.partition("train vae step 200")[0]) == "train vae step 100/300  1.2 s left"
    assert progress_of("2026 INFO job_manager.py:581 -- Runtime env is setting up.\n") == ""


def test_airflow_is_handed_a_recipe_only_where_it_would_read_another(tmp_path: Path) -> None:
    own = stack.recipes_folder(tmp_path) / "digits.yaml"
    changed = load_recipe("digits", ["models.vae.steps=7"])
    hand_over(changed, tmp_path, [])
    assert load_recipe(str(own)).to_json() == changed.to_json()
    hand_over(load_recipe("digits"), tmp_path, [])
    assert not own.exists()


@pytest.mark.parametrize("file_name", ["mine.yaml", "other.yaml"])
def test_a_recipe_that_is_handed_over_takes_the_place_of_its_file(tmp_path: Path, file_name: str) -> None:
    folder = tmp_path / "recipes-of-a-user"
    folder.mkdir()
    text = load_recipe("digits").to_json().replace('"name":"digits"', '"name":"mine"')
    (folder / file_name).write_text(text)
    changed = load_recipe(str(folder / file_name), ["models.vae.steps=7"])
    hand_over(changed, tmp_path, [folder])
    assert [file.name for file in stack.recipes_folder(tmp_path).iterdir()] == [file_name]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_narrow_terminal_cuts_the_progress_and_never_the_stage(columns: int) -> None:
    note = "train gan step 400/1,500  2,125 images/s  discriminator 0.679  generator 0.744  42 s left"
    views = [
        StageView("digits_models", "r", "gan.evaluate", "running", 1, 12.0, note),
        StageView("digits_models", "r", "vae.promote", "upstream_failed", 1, 0.0),
    ]
    console = Console(width=columns, file=io.StringIO(), force_terminal=False)
    console.print(stage_table(views))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= columns
    assert lines[1].startswith("gan.evaluate") and " running " in lines[1] and " 12 " in lines[1]
    assert "train gan step 400" in lines[1] and "upstream_failed" in lines[2]
