"""Killed at random moments, or two at once: a rerun ends with the dataset of an undisturbed run."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.artifacts import Dataset
from pipeline.ingest import find_dataset, ingest
from pipeline.pictures import encode_png
from pipeline.recipe import Recipe
from pipeline.store import Store, open_store
from tests.pipeline.test_ingest import contents, of

KILLS = 20
CHILD = """
import sys
from pipeline.datasets import parts
from pipeline.ingest import ingest
from pipeline.recipe import load_recipe
from pipeline.store import open_store
parts.PART_IMAGES = 60
print("started", flush=True)
print(ingest(open_store(sys.argv[1]), load_recipe(sys.argv[2])).id, flush=True)
"""


def many(path: Path, num_images: int) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (num_images, 12, 12, 3), dtype=np.uint8)
    for number, pixels in enumerate(images):
        file = path / f"class{number % 5}" / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(pixels))
    return path


def local(recipe: Recipe) -> Recipe:
    cluster = recipe.cluster.model_copy(update={"launcher": "local", "engine": "torch", "workers": 1})
    return recipe.model_copy(update={"cluster": cluster})


def child(store: Store, recipe: Recipe) -> subprocess.Popen[str]:
    """An ingest of its own, which has started."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, store.uri, recipe.to_json()], stdout=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def ended(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.strip()


def test_killed_at_random_moments_a_rerun_ends_with_the_same_dataset(store: Store, tmp_path: Path) -> None:
    recipe = local(of(many(tmp_path / "raw", 2500), channels=3, shard_images=50))
    other = open_store(f"file://{tmp_path}/undisturbed")
    begin = time.monotonic()
    undisturbed = ended(child(other, recipe))
    seconds = time.monotonic() - begin
    chance = random.Random(0)
    killed = 0
    while killed < KILLS:
        process = child(store, recipe)
        time.sleep(chance.uniform(0, seconds))
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        assert find_dataset(store, recipe) is None or find_dataset(store, recipe) == record(other, recipe)
        if process.returncode:
            killed += 1
        else:  # it was done before: the next ones shall have something to do
            assert contents(store) == contents(other)
            for entry in list(store.list()):
                store.delete(entry.key)
    assert ended(child(store, recipe)) == undisturbed
    assert contents(store) == contents(other)


def record(store: Store, recipe: Recipe) -> Dataset:
    found = find_dataset(store, recipe)
    assert found is not None
    return found


def test_two_processes_at_once_end_with_one_dataset(store: Store, tmp_path: Path) -> None:
    recipe = local(of(many(tmp_path / "raw", 1500), channels=3, shard_images=50))
    both = [child(store, recipe) for _ in range(2)]
    one, other = (ended(process) for process in both)
    assert one == other == record(store, recipe).id
    assert len([key for key in contents(store) if key.endswith("/dataset.json")]) == 1
    assert ingest(store, recipe).id == one
