"""The whole path at a small size: one command, through a real scheduler, from images to releases."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name: small
source: {kind: digits}
dataset: {channels: 1, height: 8, width: 8}
models:
  vae: {family: vae, steps: 30}
  gan: {family: gan, steps: 30}
cluster: {workers: 2}
evaluation: {num_samples: 64}
release: {num_samples: 16}
"""


def atelier(tmp_path: Path, *words: str) -> tuple[Any, str]:
    """Run the command line; its JSON, and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATELIER_", "AWS_"))}
    environment |= {"ATELIER_HOME": str(tmp_path / "home"), "ATELIER_RECIPES": str(tmp_path / "recipes")}
    command = [sys.executable, "-m", "pipeline.cli", *words, "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


@pytest.mark.stack
@pytest.mark.timeout(900)
def test_a_recipe_goes_from_images_to_releases_on_airflow_and_is_skipped_the_next_time(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small.yaml").write_text(RECIPE)
    first, said = atelier(tmp_path, "run", "small", "--airflow")
    for task in ("ingest", "vae.train", "gan.train", "vae.promote", "gan.promote"):
        assert f"{task}: success" in said
    second, said = atelier(tmp_path, "run", "small", "--airflow")
    assert "everything is done, skipped: ingest" in said
    assert second["releases"] == first["releases"]
    assert not (tmp_path / "home" / "stack.json").exists()
