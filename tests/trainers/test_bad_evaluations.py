"""Evaluations that cannot be: one clear line, and no record, no picture, nothing published."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from pipeline.artifacts import Run, file_entry
from pipeline.errors import AtelierError, IntegrityError, UserError
from pipeline.ingest import ingest
from pipeline.pictures import encode_png
from pipeline.recipe import load_recipe
from pipeline.records import commit, read_file
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from tests.trainers.conftest import SMALL, Digits, small_recipe
from trainers import launch
from trainers.evaluate import evaluate
from trainers.export import WEIGHTS


def settings() -> Settings:
    return Settings.from_environment()


def evaluations(store: Store) -> list[str]:
    return [entry.key for entry in store.list("evaluations/")]


def one_line(caught: pytest.ExceptionInfo[AtelierError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("model", ["gan", "vae"])
def test_a_network_that_makes_no_finite_images_gets_no_figures(model: str, digits: Digits) -> None:
    run = launch.train(digits.store, small_recipe(), model, digits.dataset, settings(), print)
    entry = next(entry for entry in run.files if entry.name == WEIGHTS)
    weights = load_safetensors(read_file(digits.store, run, entry))
    data = save_safetensors({name: torch.full_like(one, float("nan")) for name, one in weights.items()})
    files = (*(one for one in run.files if one != entry), file_entry(WEIGHTS, data))
    broken = run.model_copy(update={"id": f"nan-{model}", "files": files})
    for one in run.files:
        digits.store.put(f"{broken.ref}/{one.name}", digits.store.get(run.key_of(one)))
    digits.store.put(f"{broken.ref}/{WEIGHTS}", data)
    commit(digits.store, broken)
    before = evaluations(digits.store)
    with pytest.raises(IntegrityError, match=f"runs/nan-{model}: expected images of finite values, got NaN") as caught:
        evaluate(digits.store, small_recipe(), broken, settings(), print)
    one_line(caught)
    assert evaluations(digits.store) == before


def tiny(store: Store, folder: Path, num_images: int, held_out: float) -> tuple[str, Run]:
    """A run on a few random images of two classes; gives its recipe, too."""
    for number in range(num_images):
        place = folder / f"class{number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8)
        place.write_bytes(encode_png(pixels))
    model = SMALL["models"]["gan"] | {"batch_size": 4, "steps": 2}
    asked = json.dumps(
        SMALL
        | {
            "source": {"kind": "folder", "path": str(folder)},
            "dataset": SMALL["dataset"] | {"held_out": held_out},
            "models": {"gan": model},
        }
    )
    recipe = load_recipe(asked)
    return asked, launch.train(store, recipe, "gan", ingest(store, recipe), settings(), print)


@pytest.mark.parametrize(("num_images", "held_out"), [(12, 0.6), (24, 0.3)])
def test_fewer_images_than_a_figure_needs_are_told(num_images: int, held_out: float, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    asked, run = tiny(store, tmp_path / "images", num_images, held_out)
    with pytest.raises(UserError, match=r"expected .* got \d+; .*evaluate on more images") as caught:
        evaluate(store, load_recipe(asked), run, settings(), print)
    one_line(caught)
    assert evaluations(store) == []


def test_fewer_samples_than_figures_need_are_refused_with_the_recipe() -> None:
    with pytest.raises(UserError, match=r"evaluation\.num_samples: .*greater than or equal to 50") as caught:
        small_recipe("evaluation.num_samples=10")
    one_line(caught)
