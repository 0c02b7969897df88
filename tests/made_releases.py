"""Releases made by hand: the records that publishing needs, without a training."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pipeline import __version__, pictures, releases, shards
from pipeline.artifacts import Dataset, Evaluation, Figure, Release, Run, SampleSet, file_entry
from pipeline.recipe import Recipe, load_recipe
from pipeline.records import commit
from pipeline.release.signing import Signer
from pipeline.store import Store
from tests.made import PROTOCOL, record_of

FIGURES = {
    "frechet_distance": Figure(value=5.0, unit="squared feature distance", num_samples=9, low=4.0, high=6.0),
    "recall": Figure(value=0.5, unit="share", num_samples=9),
}
RECIPE = {
    "name": "tiny",
    "source": {"kind": "digits"},
    "dataset": {"channels": 1, "height": 8, "width": 8},
    "models": {"vae": {"family": "vae", "steps": 1}},
    "release": {"license": "mit"},
}


def recipe() -> Recipe:
    return load_recipe(json.dumps(RECIPE))


def parents(
    store: Store, mark: str = "a", figures: Mapping[str, Figure] = FIGURES, dataset: Dataset | None = None
) -> tuple[str, str, str]:
    """Records of a run, its evaluation and its samples as the stages leave them; gives their refs."""
    dataset = dataset or commit(
        store,
        record_of([], (8, 8, 1), name="tiny", classes=("zero", "one")).model_copy(
            update={"splits": {"train": 8, "test": 2}}
        ),
    )
    weights, config = f"weights {mark}".encode(), b"{}"
    run = Run(
        code_version=__version__, id=mark * 16, recipe="tiny", model="vae", family="vae", config={"seed": 0},
        dataset=dataset.ref, steps=1, images_seen=1, metrics={},
        files=(file_entry("model.safetensors", weights), file_entry("config.json", config)),
    )  # fmt: skip
    store.put(f"{run.ref}/model.safetensors", weights)
    store.put(f"{run.ref}/config.json", config)
    commit(store, run)
    evaluation = Evaluation(
        code_version=__version__, id=mark * 16, run=run.ref, dataset=dataset.ref, protocol=PROTOCOL,
        extractor_note="A note.",
        figures=dict(figures),
    )  # fmt: skip
    commit(store, evaluation)
    pixels = np.zeros((8, 8, 1), np.uint8)
    files = {
        "grid.png": pictures.encode_png(pixels),
        "samples-000000.tar": shards.write_shard(
            [
                shards.Sample.of(str(i), pictures.encode_png(pixels, {"atelier:seed": str(i)}), i, {"seed": i})
                for i in (0, 1)
            ]
        ),
    }
    samples = SampleSet(
        code_version=__version__, id=mark * 16, run=run.ref, count=2, seed=0, made_with="hand",
        files=tuple(file_entry(name, data) for name, data in files.items()),
    )  # fmt: skip
    for name, data in files.items():
        store.put(f"{samples.ref}/{name}", data)
    commit(store, samples)
    return run.ref, evaluation.ref, samples.ref


def published(
    store: Store, mark: str = "a", figures: Mapping[str, Figure] = FIGURES, signer: Signer | None = None
) -> Release:
    """The release of those records."""
    return releases.publish(store, recipe(), "vae", *parents(store, mark, figures), signer)


class Killed(Exception):  # noqa: N818 - reads as an event
    """A process that was killed: nothing after this line ran."""


def kill_at_write(patch: pytest.MonkeyPatch, store: Store, writes: int) -> None:
    """Let the store die at its next write but so many, before anything of it is there."""
    left = itertools.count(writes, -1)
    for name in ("put", "create", "replace"):
        write = getattr(store, name)

        def dying(*arguments: Any, write: Any = write) -> Any:
            if next(left) == 0:
                raise Killed
            return write(*arguments)

        patch.setattr(store, name, dying)
