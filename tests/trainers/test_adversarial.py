"""The games' losses and penalties against formulas, numpy and automatic differentiation by other ways."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers import adversarial
from trainers.adversarial import LossName

REAL, FAKE = [0.3, -1.2, 4.0, 0.9], [-0.7, 0.1, 2.5, -3.0]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# What each player minimises for one pair of logits, written out.
FORMULAS: dict[LossName, tuple[Callable[[float, float], float], Callable[[float, float], float]]] = {
    "non_saturating": (lambda r, f: softplus(-r) + softplus(f), lambda r, f: softplus(-f)),
    "relativistic": (lambda r, f: softplus(-(r - f)), lambda r, f: softplus(-(f - r))),
    "wgan": (lambda r, f: f - r, lambda r, f: -f),
    "hinge": (lambda r, f: max(0.0, 1 - r) + max(0.0, 1 + f), lambda r, f: -f),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_losses_match_their_formulas(kind: LossName) -> None:
    real_B, fake_B = torch.tensor(REAL), torch.tensor(FAKE)
    of_discriminator, of_generator = FORMULAS[kind]
    pairs = list(zip(REAL, FAKE, strict=True))
    loss = adversarial.discriminator_loss(kind, real_B, fake_B).item()
    assert loss == pytest.approx(np.mean([of_discriminator(r, f) for r, f in pairs]), rel=1e-6)
    loss = adversarial.generator_loss(kind, real_B, fake_B).item()
    assert loss == pytest.approx(np.mean([of_generator(r, f) for r, f in pairs]), rel=1e-6)


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_players_want_opposite_things(kind: LossName) -> None:
    """The discriminator's loss falls with real logits, rises with generated ones; the generator's falls with these."""
    real_B, fake_B = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    real_slope, fake_slope = torch.autograd.grad(adversarial.discriminator_loss(kind, real_B, fake_B), (real_B, fake_B))
    (own_slope,) = torch.autograd.grad(adversarial.generator_loss(kind, real_B, fake_B), fake_B)
    assert (real_slope < 0).all() and (fake_slope > 0).all() and (own_slope < 0).all()


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_constant_changes_nothing_for_losses_of_differences_only(kind: LossName) -> None:
    real_B, fake_B = torch.tensor(REAL), torch.tensor(FAKE)
    loss = adversarial.discriminator_loss(kind, real_B, fake_B)
    moved = adversarial.discriminator_loss(kind, real_B + 0.5, fake_B + 0.5)
    assert torch.allclose(loss, moved, atol=1e-6) == (kind in adversarial.ONLY_DIFFERENCES)


def test_accuracies_count_logits_on_their_side() -> None:
    real_B, fake_B = torch.tensor([1.0, 2.0, -1.0, 0.5]), torch.tensor([-3.0, 2.5, -2.0, 0.1])
    assert adversarial.accuracies("relativistic", real_B, fake_B) == {"pair_accuracy": 0.75}
    assert adversarial.accuracies("hinge", real_B, fake_B) == {"real_accuracy": 0.75, "fake_accuracy": 0.5}


class Quadratic(nn.Module):
    """D(x) = w . x + x' A x / 2, whose gradient is w + A x and whose perturbation has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        half = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
        self.curve = nn.Parameter(half + half.T)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BF = x_BCHW.flatten(1)
        return x_BF @ self.weight + 0.5 * (x_BF @ self.curve * x_BF).sum(1)


def points(count: int) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_exact_penalty_of_a_quadratic_and_its_gradient() -> None:
    critic, x_BCHW = Quadratic(), points(6).requires_grad_()
    penalty = adversarial.gradient_penalty(critic(x_BCHW), x_BCHW)
    slopes = critic.weight + x_BCHW.detach().flatten(1) @ critic.curve
    torch.testing.assert_close(penalty, slopes.square().sum(1).mean())
    (got,) = torch.autograd.grad(penalty, critic.weight)
    torch.testing.assert_close(got, 2 * slopes.mean(0).detach())


def test_perturbed_penalty_is_the_difference_quotient_squared() -> None:
    critic, x_BCHW, sigma = Quadratic(), points(6), 0.3
    direction = torch.randn(x_BCHW.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    got = adversarial.perturbed_penalty(critic, critic(x_BCHW), x_BCHW, direction, sigma)
    x, u = x_BCHW.flatten(1).numpy(), direction.flatten(1).numpy()
    weight, curve = critic.weight.detach().numpy(), critic.curve.detach().numpy()
    # D(x + sigma u) - D(x) = sigma u . (w + A x) + sigma^2 u' A u / 2
    quotient = (u * (weight + x @ curve)).sum(1) + 0.5 * sigma * (u @ curve * u).sum(1)
    assert got.item() == pytest.approx((quotient**2).mean(), rel=1e-9)


@pytest.mark.parametrize("what", ["value", "gradient"])
def test_perturbed_penalty_converges_to_the_exact_one(what: str) -> None:
    """In the mean over directions, with an error that falls as sigma^2: that of the curvature, E[(u' A u)^2] / 4."""
    critic, x_BCHW, draws = Quadratic(), points(3), 50_000
    leaf = x_BCHW.clone().requires_grad_()
    exact = adversarial.gradient_penalty(critic(leaf), leaf)
    half = torch.randn(draws, *x_BCHW.shape[1:], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    u = torch.cat([half, -half]).repeat(3, 1, 1, 1)  # both directions: what is odd in u cancels exactly
    many = x_BCHW.repeat_interleave(2 * draws, 0)

    def perturbed(sigma: float) -> Tensor:
        return adversarial.perturbed_penalty(critic, critic(many), many, u, sigma)

    def measured(penalty: Tensor) -> Tensor:
        return penalty if what == "value" else torch.autograd.grad(penalty, critic.weight)[0].norm()

    torch.testing.assert_close(measured(perturbed(1e-3)), measured(exact), rtol=0.02, atol=0)
    if what == "value":
        curve = critic.curve.detach()
        curvature = 0.25 * (curve.trace() ** 2 + 2 * curve.square().sum())  # E[(u' A u)^2] for symmetric A
        for sigma in (0.1, 0.2):
            excess = (perturbed(sigma) - perturbed(1e-3)).detach()
            torch.testing.assert_close(excess, sigma**2 * curvature, rtol=0.05, atol=0)
