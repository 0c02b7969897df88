"""What a model family is: the words that the training loop, evaluation and sampling share with every family.

A family is one file in this folder, found by its name (`family: vae` is `vae.py`). It has

    class Config(FamilyConfig)                            its fields of the recipe's model section
    def build(config: Config, shape: DataShape) -> Model  the networks and the phases of one training step

and nothing else in the project names it. A training step runs the model's phases in order; each phase trains one
network and holds the others fixed.

Shape legend: B images of the local batch, C channels, H height, W width, Z latent size.
"""

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from pipeline.errors import RecipeError
from pipeline.latents import latents as latents_of_seeds
from pipeline.sections import ClusterSpec
from trainers.alarms import Alarm
from trainers.augment import Augment

Networks = Mapping[str, nn.Module]


@dataclass(frozen=True)
class DataShape:
    """What a dataset's images are. `num_classes` 0: they carry no labels, and the model is unconditional."""

    channels: int
    height: int
    width: int
    num_classes: int

    @property
    def pixels(self) -> int:
        """Values in one image."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class Observes:
    """What a likelihood says of an image, so that nats become bits a dimension."""

    what: str  # in words: `256 levels`, `Gaussian density`
    bits: float = 0.0  # to add to the bits of each value: log2(255) for a density of values in [0, 1]


@dataclass(frozen=True)
class Batch:
    """This worker's part of a global batch."""

    images_BCHW: Tensor  # float32 in [0, 1]
    labels_B: Tensor  # int64; zeros where the dataset carries no labels
    rows_B: Tensor  # int64: which rows of the global batch these are
    global_size: int


class Noise:
    """Random numbers of one phase of one step, the same for any number of workers.

    Every worker draws the numbers of the whole global batch and keeps its own rows, so that a sample meets the same
    noise wherever it is computed, and a resumed run needs no generator state: the seed and the step say it all.
    """

    def __init__(self, seed: int, step: int, phase: int, rows_B: Tensor, global_size: int) -> None:
        self.rows_B = rows_B
        self.global_size = global_size
        self.generator = torch.Generator(device=rows_B.device)
        # One 63-bit seed out of three numbers: multiplications by odd constants (splitmix64's) keep them apart.
        mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + phase * 0x94D049BB133111EB) % 2**63
        self.generator.manual_seed(mixed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (B, *shape)."""
        whole = torch.randn(self.global_size, *shape, generator=self.generator, device=self.rows_B.device)
        return whole[self.rows_B]

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), (B, *shape)."""
        whole = torch.rand(self.global_size, *shape, generator=self.generator, device=self.rows_B.device)
        return whole[self.rows_B]

    def integers(self, high: int) -> Tensor:
        """Integers in [0, high), (B,)."""
        whole = torch.randint(high, (self.global_size,), generator=self.generator, device=self.rows_B.device)
        return whole[self.rows_B]


@dataclass(frozen=True)
class Adam:
    """Adam's settings for one network (Kingma & Ba 2015; decoupled weight decay as Loshchilov & Hutter 2019)."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["none", "cosine"] = "none"
    clip_norm: float = 0.0  # gradients of a larger joint norm are scaled to it (Pascanu et al. 2013); 0: none

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step: linear warm-up, then constant or a half cosine to zero at the last step."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps)) if self.decay == "cosine" else 1.0
        return self.lr * warm * cosine


# (networks, batch, noise, step) -> scalar loss (a mean over the local batch), detached scalar metrics.
# Networks are the bare modules of the engines: forward through them, never through an engine (FIELD-NOTES).
Loss = Callable[[Networks, Batch, Noise, int], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Phase:
    """One part of a training step: `loss` trains the network called `network`; the others are held fixed."""

    name: str
    network: str
    loss: Loss


class Model(ABC):
    """The networks of one run and what can be done with them."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, Adam]  # by network
    phases: Sequence[Phase]
    sampler: str  # the network that makes images; its exponential moving average is what is released
    latent_size: int

    @abstractmethod
    def decode(self, network: nn.Module, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] for standard normal latents and class indices."""

    def image_figures(
        self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor, noise: Noise
    ) -> dict[str, Tensor]:
        """Per-image figures in nats on held-out images that only this family has, (B,) each: a VAE's ELBO, say."""
        return {}

    def alarms(self) -> Sequence[Alarm]:
        """The ways in which training this family goes wrong that its metrics tell (`trainers.alarms`)."""
        return ()

    def log_likelihood(
        self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor, noise: Noise, num_draws: int
    ) -> Tensor | None:
        """log p(x|y) in nats, (B,), estimated with `num_draws` draws; None: the family has no likelihood."""
        return None

    def posterior_means(self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> Tensor | None:
        """The mean of each latent given an image, (B, Z), in units of its prior; None: the family infers none."""
        return None

    @property
    def observes(self) -> "Observes | None":
        """What a likelihood is of; None: the family has none."""
        return None


class FamilyConfig(BaseModel):
    """What every family's section of a recipe may say beside its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    augment: Augment | None = None  # of the real images that are trained on
    clip_norm: Annotated[float, Field(ge=0.0, le=1e9)] = 0.0  # of each network's gradient, in every engine; 0: none

    @property
    def differentiates_twice(self) -> bool:
        """Whether a loss holds a gradient, as exact gradient penalties do."""
        return False

    @property
    def adapts_to_batches(self) -> bool:
        """Whether a phase changes something by the batch as a whole, so that it cannot be computed in parts."""
        return False


def names() -> list[str]:
    """The families there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def parse_config(family: str, options: Mapping[str, Any], where: str) -> FamilyConfig:
    """Check a model section's own fields against its family. Raises RecipeError naming the field and the choices."""
    if family not in names():
        raise RecipeError(f"{where}.family: expected one of {', '.join(names())}, got {family!r}")
    config_class: type[FamilyConfig] = importlib.import_module(f"{__name__}.{family}").Config
    try:
        return config_class(**options)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([where, *(str(part) for part in first["loc"])])
        nested = first["loc"][:-1] == ("augment",)
        known = ", ".join((Augment if nested else config_class).model_fields)
        which = "augment" if nested else family
        choices = f"; the fields of {which} are {known}" if first["type"] == "extra_forbidden" else ""
        raise RecipeError(f"{path}: {first['msg']}, got {first['input']!r}{choices}") from None


def build(family: str, config: FamilyConfig, shape: DataShape, seed: int) -> Model:
    """Make a family's model with initial weights that depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Model = importlib.import_module(f"{__name__}.{family}").build(config, shape)
    return model


def check_model(family: str, options: Mapping[str, Any], where: str, cluster: ClusterSpec | None = None) -> None:
    """The recipe check of the entry points `atelier.recipe_checks`: raises RecipeError where a section is wrong, or
    where the cluster's settings would not compute what it says."""
    config = parse_config(family, options, where)
    cluster = cluster or ClusterSpec()
    if cluster.compile and config.differentiates_twice:
        other = "penalty: perturbed or " if "penalty" in type(config).model_fields else ""
        raise RecipeError(
            f"cluster.compile: expected false with {where}, got true; its exact gradient penalties differentiate "
            f"twice, which torch.compile cannot; choose {other}compile: false"
        )
    if cluster.accumulate > 1 and config.adapts_to_batches:
        raise RecipeError(
            f"cluster.accumulate: expected 1 with {where}.ada_target, which looks at whole batches, got "
            f"{cluster.accumulate}; choose accumulate: 1 or ada_target: 0"
        )


def latents(seeds: Sequence[int], latent_size: int) -> Tensor:
    """Standard normal latents (B, Z), each row from its own seed: a sample can be made again from its seed alone."""
    return torch.from_numpy(latents_of_seeds(seeds, latent_size))


def nats_to_bits_per_dimension(nats: float, shape: DataShape) -> float:
    """Nats an image as bits a pixel value; `Observes.bits` are to be added."""
    return nats / (shape.pixels * math.log(2))
