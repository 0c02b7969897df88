"""A small recipe on the real digits, ingested once into a store on disk."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Dataset
from pipeline.nodecache import NodeCache
from pipeline.recipe import Recipe, load_recipe
from pipeline.settings import Settings
from pipeline.store import Store, open_store

SMALL: dict[str, Any] = {
    "name": "small",
    "source": {"kind": "digits"},
    "dataset": {"channels": 1, "height": 8, "width": 8, "shard_images": 200},
    "models": {
        "vae": {"family": "vae", "steps": 12, "batch_size": 48, "checkpoint_every_steps": 4, "log_every_steps": 2},
        "gan": {"family": "gan", "steps": 12, "batch_size": 48, "checkpoint_every_steps": 4, "log_every_steps": 2},
    },
    "cluster": {"launcher": "local", "engine": "torch", "workers": 1},
    "evaluation": {"num_samples": 100},
    "release": {"num_samples": 30},
}

Small = Callable[..., Recipe]


def small_recipe(*overrides: str) -> Recipe:
    """The small recipe with `path.to.field=value` overrides."""
    return load_recipe(json.dumps(SMALL), overrides)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded shards lie with the tests' other files; child processes are told by the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATELIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def node_cache() -> NodeCache:
    """The cache that the environment names."""
    return NodeCache.of(Settings.from_environment(), print)


@dataclass(frozen=True)
class Digits:
    """An ingested dataset in its store."""

    store: Store
    dataset: Dataset


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    from pipeline.ingest import ingest  # duckdb and more: only for the tests that ask for the digits

    folder: Path = tmp_path_factory.mktemp("digits")
    store = open_store(f"file://{folder}")
    return Digits(store, ingest(store, small_recipe()))
