"""What is trained in every comparison: the family's own networks, without classes, on random images of 28x28.

Ours, the bare loops and the peers (in a Python of their own) all build their networks here, so that they are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainers import families
from trainers.families import DataShape, Model

SIDE = 28
SHAPE = DataShape(channels=1, height=SIDE, width=SIDE, num_classes=0)
PLAIN: Mapping[str, Any] = {"loss": "non_saturating", "r1_gamma": 0.0, "r2_gamma": 0.0}  # as DCGAN
LR = 1e-4  # small: random images teach nothing, and nothing may diverge


@dataclass(frozen=True)
class Case:
    """One model to train. `name` is how the table calls it."""

    name: str
    family: str
    batch_size: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_options(self) -> dict[str, Any]:
        """The family's options, as a recipe would give them."""
        return {"lr": LR, **self.options}

    def build(self) -> Model:
        """The model, from the seed 0."""
        return families.build(
            self.family, families.parse_config(self.family, self.all_options, self.name), SHAPE, seed=0
        )


def random_images(count: int, seed: int = 0, side: int = SIDE, channels: int = 1) -> Tensor:
    """uint8 (count, channels, side, side): what they show makes no arithmetic slower or faster."""
    return torch.randint(
        256, (count, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
