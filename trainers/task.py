"""What the parts of training share: the task, and which of its workers this one is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.artifacts import Dataset
from pipeline.nodecache import NodeCache
from pipeline.recipe import Recipe
from pipeline.sections import ModelSpec
from pipeline.store import Store

Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Which worker this is, of how many, and on which device it computes."""

    rank: int
    world: int
    device: torch.device


@dataclass(frozen=True)
class Task:
    """What to train."""

    store: Store
    recipe: Recipe
    model: str
    dataset: Dataset
    run_id: str
    cache: NodeCache  # of this worker's node

    @property
    def spec(self) -> ModelSpec:
        """The model's section of the recipe."""
        return self.recipe.models[self.model]

    @property
    def run_ref(self) -> str:
        """The folder of the run in the store."""
        return f"runs/{self.run_id}"
