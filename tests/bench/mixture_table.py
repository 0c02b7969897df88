"""The GAN on two-dimensional mixtures, all seeds of a table trained together in one stack of networks.

What trains is the family's own model: its networks, its phases, and the engine of the training loop. `Stacked` runs
the S networks of S seeds as one (torch.func: stack_module_state, vmap), so a phase sees one batch of S * B points whose
rows belong to the seeds in turn; its loss, a mean over the rows, is 1/S of the sum of the seeds' losses. Adam works
number by number, so nothing passes between seeds: a seed's figures do not depend on which others are trained with it
(but for rounding).

Shape legend: S seeds, B points of one seed's batch, N training points, Z latent size, D = 2 coordinates.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from tests.bench.table import Bar, Figures, Means, Table
from trainers import families, mixtures
from trainers.engine import TorchEngine
from trainers.families import Adam, Batch, DataShape, Model, Noise
from trainers.mixtures import NUM_POINTS, Mixture

SHAPE = DataShape(channels=2, height=1, width=1, num_classes=0)
NUM_TRAINING_POINTS = 100_000
BATCH_POINTS = 100
EMA_RAMP = 0.05  # the half-life is at most this share of the steps so far, as in the training loop


@dataclass(frozen=True)
class Settings:
    """What is trained, and how long."""

    gan: dict[str, Any]  # options of the family
    scale: float  # the networks see points times this
    steps: int
    decay_from: float  # share of the steps after which the learning rate falls to 0 by a half cosine
    ema_half_life_steps: int

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def lr_factor(self, step: int) -> float:
        """What the learning rate of the family is multiplied by."""
        start = int(self.decay_from * self.steps)
        if step < start:
            return 1.0
        return Adam(lr=1.0, decay="cosine").lr_at(step - start, self.steps - start)


class Stacked(nn.Module):
    """S networks of one make as one: rows of a batch belong to the networks in turn, each with the same number."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        parameters, self._buffers_of_all = stack_module_state(list(networks))
        self._names = list(parameters)
        self._stacks = nn.ParameterList([nn.Parameter(stack.detach().clone()) for stack in parameters.values()])
        self._one = (copy.deepcopy(networks[0]).requires_grad_(False),)  # in a tuple: no part of this module
        self.count = len(networks)

    def forward(self, x_R: Tensor, y_R: Tensor) -> Tensor:
        """What each network makes of its rows, (S * B, ...)."""

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x_B: Tensor, y_B: Tensor) -> Tensor:
            made: Tensor = functional_call(self._one[0], (parameters, buffers), (x_B, y_B))
            return made

        parameters = dict(zip(self._names, self._stacks, strict=True))
        x_SB, y_SB = (rows.reshape(self.count, -1, *rows.shape[1:]) for rows in (x_R, y_R))
        made_SB: Tensor = vmap(call)(parameters, self._buffers_of_all, x_SB, y_SB)
        return made_SB.flatten(0, 1)


class SeedsNoise(Noise):
    """The noise that each seed would meet alone, one after the other."""

    def __init__(self, seeds: Sequence[int], step: int, phase: int, batch: int) -> None:
        rows_B = torch.arange(batch)
        self._each = [Noise(seed, step, phase, rows_B, batch) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (S * B, *shape)."""
        return torch.cat([noise.normal(*shape) for noise in self._each])

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), (S * B, *shape)."""
        return torch.cat([noise.uniform(*shape) for noise in self._each])


@dataclass
class Points:
    """Each seed's training points as images, in epochs of its own order."""

    mixture: Mixture
    scale: float
    seeds: Sequence[int]
    batch: int = BATCH_POINTS
    images_SN: Tensor = field(init=False)
    _order_SN: Tensor = field(init=False)

    def __post_init__(self) -> None:
        draws = [
            self.mixture.draw(NUM_TRAINING_POINTS, torch.Generator().manual_seed(2 * seed + 1)) for seed in self.seeds
        ]
        self.images_SN = torch.stack([mixtures.to_images(points, self.scale) for points in draws])

    def at(self, step: int) -> Tensor:
        """The batches (S * B, 2, 1, 1) of a step; steps are asked for in turn."""
        epoch, number = divmod(step, NUM_TRAINING_POINTS // self.batch)
        if number == 0:
            orders = [
                torch.randperm(NUM_TRAINING_POINTS, generator=torch.Generator().manual_seed((seed << 20) + epoch))
                for seed in self.seeds
            ]
            self._order_SN = torch.stack(orders)
        own_SB = self._order_SN[:, number * self.batch : (number + 1) * self.batch]
        return self.images_SN[torch.arange(len(self.seeds))[:, None], own_SB].flatten(0, 1)


def build(settings: Settings, seeds: Sequence[int]) -> tuple[Model, dict[str, Stacked]]:
    """The family's model, whose phases serve all, and its networks stacked, each from its own seed."""
    config = families.parse_config("gan", settings.gan, "gan")
    models = [families.build("gan", config, SHAPE, seed) for seed in seeds]
    return models[0], {name: Stacked([model.networks[name] for model in models]) for name in models[0].networks}


def train(
    mixture: Mixture, settings: Settings, seeds: Sequence[int], say: Callable[[str], None]
) -> tuple[Model, dict[str, Stacked]]:
    """Train the seeds together; the sampler ends with the moving average of its weights."""
    model, networks = build(settings, seeds)
    engines = {name: TorchEngine(network, model.optimizers[name]) for name, network in networks.items()}
    sampler = networks[model.sampler]
    ema = [parameter.detach().clone() for parameter in sampler.parameters()]
    points, start = Points(mixture, settings.scale, seeds), time.perf_counter()
    rows = torch.arange(len(seeds) * BATCH_POINTS)
    for step in range(settings.steps):
        batch = Batch(points.at(step), torch.zeros_like(rows), rows, len(rows))
        for index, phase in enumerate(model.phases):
            for name, network in networks.items():
                network.requires_grad_(name == phase.network)
            loss, _ = phase.loss(networks, batch, SeedsNoise(seeds, step, index, BATCH_POINTS), step)
            lr = model.optimizers[phase.network].lr_at(step, settings.steps) * settings.lr_factor(step)
            engines[phase.network].step(loss * len(seeds), lr)
        half_life = min(settings.ema_half_life_steps, max(1.0, EMA_RAMP * step))
        torch._foreach_lerp_(
            ema, [parameter.detach() for parameter in sampler.parameters()], 1 - 0.5 ** (1 / half_life)
        )
        if (step + 1) % max(1, settings.steps // 10) == 0:
            say(f"{mixture.name} step {step + 1:,}/{settings.steps:,}, {time.perf_counter() - start:.0f} s")
    with torch.no_grad():
        for parameter, average in zip(sampler.parameters(), ema, strict=True):
            parameter.copy_(average)
    return model, networks


def generate(settings: Settings, model: Model, sampler: nn.Module, seeds: Sequence[int], count: int) -> list[Tensor]:
    """Points (count, D) of each seed's generator, from latents of the seed.

    Of its own output, which is linear here: the family's `decode` bounds images, and points have no bounds.
    """
    z_SZ = [families.latents([seed * count + i for i in range(count)], model.latent_size) for seed in seeds]
    with torch.no_grad():
        output = sampler(torch.cat(z_SZ), torch.zeros(len(seeds) * count, dtype=torch.int64))
    return list(mixtures.from_network(output, settings.scale).chunk(len(seeds)))


@dataclass(frozen=True)
class MixtureTable(Table):
    """The GAN on one mixture."""

    title: str
    mixture: Callable[[], Mixture]
    settings: Settings
    bars: tuple[Bar, ...]
    peers: str
    together: bool = True

    def record(self) -> dict[str, Any]:
        return self.settings.record()

    def run(self, seeds: Sequence[int], means: Means) -> list[Figures]:
        mixture = self.mixture()
        model, networks = train(mixture, self.settings, seeds, means.say)
        made = generate(self.settings, model, networks[model.sampler], seeds, NUM_POINTS)
        return [asdict(mixtures.score(mixture, points)) for points in made]

    def quick(self) -> "MixtureTable":
        gan = {**self.settings.gan, "gamma_decay_steps": 40}
        return replace(self, settings=replace(self.settings, gan=gan, steps=40))

    def effort(self) -> str:
        return f"{self.settings.steps:,} steps"


MIXTURE_GAN: dict[str, Any] = {
    "network": "mlp",
    "hidden": (64,) * 6,  # depth is what makes the generator's steps between modes steep
    "discriminator_hidden": (64,) * 3,
    "latent_size": 2,
    "output": "linear",
    "loss": "relativistic",
    "lr": 3e-3,
    "beta2": 0.9,
    "lr_warmup_steps": 100,
}


def mixture_settings(scale: float, gamma: float, gamma_decay: float, steps: int) -> Settings:
    """Settings of a mixture's table. `gamma` belongs to `scale`: twice the scale is a quarter of the penalty.

    A smaller penalty at the end makes sharper modes and lets their shares drift apart.
    """
    penalty = {"r1_gamma": gamma, "r2_gamma": gamma, "gamma_decay": gamma_decay, "gamma_decay_steps": steps}
    return Settings({**MIXTURE_GAN, **penalty}, scale, steps, decay_from=0.25, ema_half_life_steps=2000)


MIXTURES = {
    "grid25": MixtureTable(
        "25 Gaussians on a grid",
        mixtures.grid25,
        mixture_settings(scale=2.0, gamma=4.0, gamma_decay=0.01, steps=45_000),
        (
            Bar("modes", 25, at_least=True, every_seed=True),
            Bar("good", 0.96, at_least=True),
            Bar("reverse_kl", 0.03, at_least=False),
        ),
        "(modes, good, reverse KL): VEEGAN 24.6, 40%; PacGAN4 24.8, 93.6%, 0.04; perfect sampler 25, 98.9%, 0.005",
    ),
    "ring8": MixtureTable(
        "8 Gaussians on a ring",
        mixtures.ring8,
        mixture_settings(scale=5.0, gamma=1.0, gamma_decay=0.04, steps=52_000),
        (
            Bar("modes", 8, at_least=True, every_seed=True),
            Bar("good", 0.97, at_least=True),
            Bar("reverse_kl", 0.02, at_least=False),
        ),
        "(modes, good, reverse KL): VEEGAN 8, 53%; PacGAN3 7.8, 97.7%, 0.10; perfect sampler 8, 98.9%, 0.001",
    ),
}
