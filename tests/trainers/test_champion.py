"""A champion that was measured on other images is measured again on the challenger's, so that the gate can compare."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from pipeline import ids, releases
from pipeline.artifacts import Evaluation, Release
from pipeline.ingest import find_dataset
from pipeline.pictures import encode_png
from pipeline.plan import plan
from pipeline.recipe import Recipe, load_recipe
from pipeline.records import every, find, load
from pipeline.release.records import Verdict
from pipeline.run import run_recipe
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from tests.trainers.conftest import SMALL
from trainers import evaluate

VAE = SMALL["models"]["vae"]


class House:
    """A store, and a folder of digits that grows; each run of the recipe is told to `said`."""

    def __init__(self, path: Path) -> None:
        self.store: Store = open_store(f"file://{path}/store")
        self.folder = path / "images"
        self.said: list[str] = []

    def add(self, start: int, stop: int) -> None:
        """Put the digits from `start` to `stop` into the folder, by class."""
        digits = load_digits()
        for number in range(start, stop):
            place = self.folder / str(digits.target[number]) / f"{number:04d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)
            place.write_bytes(encode_png(pixels[..., None]))

    def recipe(self, *overrides: str) -> Recipe:
        fields: dict[str, Any] = SMALL | {
            "models": {"vae": VAE},
            "source": {"kind": "folder", "path": str(self.folder)},
        }
        return load_recipe(json.dumps(fields), ("gate.metric=frechet_distance", *overrides))

    def run(self, *overrides: str) -> Verdict:
        """Run every stage; gives the gate's verdict of the newest release."""
        self.said.clear()
        recipe = self.recipe(*overrides)
        run_recipe(self.store, recipe, Settings.from_environment(), Console(file=io.StringIO()), self.said.append)
        assert all(stage.done for stage in plan(self.store, recipe))
        moves = [
            move
            for alias in ("champion", "candidate")
            if (found := releases.alias_of(self.store, "small-vae", alias))
            for move in found.history
            if move.number == len(self.releases) and move.verdict
        ]
        assert moves[-1].verdict
        return moves[-1].verdict

    @property
    def releases(self) -> list[Release]:
        return list(releases.releases_of(self.store, "small-vae"))

    def again(self, *overrides: str) -> Evaluation | None:
        """The first release's run, measured on what is in the folder now."""
        recipe = self.recipe(*overrides)
        dataset = find_dataset(self.store, recipe)
        assert dataset
        wanted = ids.evaluation_id(recipe, self.releases[0].run, dataset.ref)
        return find(self.store, f"evaluations/{wanted}", Evaluation)

    @property
    def champion(self) -> int | None:
        alias = releases.alias_of(self.store, "small-vae", "champion")
        return alias.number if alias else None


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first run on 500 digits, whose release is the champion."""
    path = tmp_path_factory.mktemp("first")
    made = House(path)
    made.add(0, 500)
    assert made.run().reason == "the first to stand there"
    return path


@pytest.fixture
def house(first: Path, tmp_path: Path) -> House:
    """A copy of that, to go on from."""
    shutil.copytree(first, tmp_path / "house")
    return House(tmp_path / "house")


def compared(verdict: Verdict) -> tuple[str, str]:
    """The challenger's and the champion's value of the metric, as the verdict says them."""
    mine, _, rest = verdict.reason.removeprefix("frechet_distance ").partition(" against ")
    return mine, rest.partition(" ")[0]


def test_new_data_and_a_better_model_is_promoted_by_figures_of_the_same_images(house: House) -> None:
    house.add(500, 700)
    verdict = house.run("models.vae.steps=150")
    first, second = house.releases
    again = house.again("models.vae.steps=150")
    assert again and again.run == first.run and again.dataset == second.dataset != first.dataset
    assert again.protocol == second.protocol != first.protocol
    assert "evaluate vae: small-vae@1 again, to compare" in house.said
    values = (second.figures["frechet_distance"].value, again.figures["frechet_distance"].value)
    assert compared(verdict) == tuple(f"{value:.4g}" for value in values)
    assert again.figures["frechet_distance"].value != first.figures["frechet_distance"].value
    assert verdict.promoted and verdict.against == 1 and house.champion == 2
    assert load(house.store, first.ref, Release) == first  # what was published stays as it is


def test_new_data_and_a_model_no_better_keeps_the_champion(house: House) -> None:
    house.add(500, 700)
    verdict = house.run()
    assert not verdict.promoted and "it must be more than 0" in verdict.reason
    again = house.again()
    assert again and compared(verdict)[1] == f"{again.figures['frechet_distance'].value:.4g}"
    assert verdict.gain is not None and house.champion == 1


def test_a_champion_of_other_classes_is_not_compared_and_the_record_says_why(house: House) -> None:
    for label in "56789":
        shutil.rmtree(house.folder / label)
    verdict = house.run("models.vae.steps=150")
    told = "small-vae@1 makes other images or classes, and cannot be measured on these"
    assert f"evaluate vae: {told}" in house.said and house.again("models.vae.steps=150") is None
    assert not verdict.promoted and verdict.gain is None and house.champion == 1
    assert verdict.reason.startswith(
        "small-vae@2 and small-vae@1 cannot be compared, their protocols differ in dataset: "
    )
    assert verdict.reason.endswith("or promote by hand")


def test_figures_asked_for_otherwise_measure_the_champion_again_and_the_same_do_not(house: House) -> None:
    house.run("models.vae.steps=13")
    assert not any("to compare" in line for line in house.said) and len(list(every(house.store, Evaluation))) == 2
    asked = ("evaluation.num_samples=120", "evaluation.importance_samples=5")
    house.run("models.vae.steps=14", *asked)
    assert "evaluate vae: small-vae@1 again, to compare" in house.said
    again = house.again(*asked)
    assert again and again.protocol.num_samples == 120 and again.dataset == house.releases[0].dataset
    assert house.releases[2].protocol == again.protocol and again.protocol.importance_samples == 5


def test_a_kill_while_the_champion_is_measured_leaves_the_stage_to_be_done(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):  # noqa: N818 - reads as an event
        pass

    house.add(500, 700)
    champion, measure = house.releases[0].run, evaluate.measure

    def dying(store: Store, recipe: Recipe, run: Any, *rest: Any) -> Evaluation:
        if run.ref == champion:
            raise Killed
        return measure(store, recipe, run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "measure", dying)
        with pytest.raises(Killed):
            house.run()
    done = {stage.verb: stage.done for stage in plan(house.store, house.recipe())}
    assert done["train"] and not done["evaluate"]
    assert house.run().gain is not None and house.again()


def test_a_champion_that_was_taken_back_is_not_measured(house: House) -> None:
    alias = house.store.get("aliases/small-vae/champion.json")
    releases.retract(house.store, "small-vae", 1, None, who="ann", why="a face")
    house.store.put("aliases/small-vae/champion.json", alias)  # as a kill before the alias moved leaves it
    house.add(500, 700)
    assert house.run().reason == "the first to stand there"
    assert house.again() is None and house.champion == 2
