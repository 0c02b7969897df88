"""The GAN's losses and penalties against formulas, finite differences and a one-dimensional game."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from trainers import families
from trainers.families import Batch, DataShape, Model, Noise, gan

SHAPE = DataShape(1, 8, 8, 3)


def batch_of(size: int) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images_BCHW = torch.rand(size, 1, 8, 8, generator=generator)
    return Batch(images_BCHW, torch.arange(size) % 3, torch.arange(size), size)


def make(**options: object) -> Model:
    return families.build("gan", gan.Config.model_validate(options), SHAPE, 0)


def phase_loss(
    model: Model, phase: int, networks: Mapping[str, nn.Module] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    batch = batch_of(6)
    noise = Noise(0, 1, phase, batch.rows_B, 6)
    return model.phases[phase].loss(networks or model.networks, batch, noise, 1)


class LinearDiscriminator(nn.Module):
    """D(x) = w . x: the gradient with respect to x is w for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(1)))

    def forward(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        return images_BCHW.flatten(1) @ self.weight


def test_adversarial_losses_match_their_formulas() -> None:
    real, fake = [0.3, -1.2, 4.0], [-0.7, 0.1, 2.5]
    tensors = torch.tensor(real), torch.tensor(fake)

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    pairs = list(zip(real, fake, strict=True))
    expected = {
        ("relativistic", "d"): [-log_sigmoid(r - f) for r, f in pairs],
        ("relativistic", "g"): [-log_sigmoid(f - r) for r, f in pairs],
        ("non_saturating", "d"): [-log_sigmoid(r) - log_sigmoid(-f) for r, f in pairs],
        ("non_saturating", "g"): [-log_sigmoid(f) for _, f in pairs],
    }
    for (kind, player), values in expected.items():
        loss = gan.discriminator_loss if player == "d" else gan.generator_loss
        assert loss(kind, *tensors).item() == pytest.approx(sum(values) / 3, rel=1e-5)


def test_penalty_of_a_linear_discriminator_is_the_square_of_its_weight() -> None:
    discriminator = LinearDiscriminator()
    networks = {"generator": make().networks["generator"], "discriminator": discriminator}
    squared = discriminator.weight.square().sum()
    without, _ = phase_loss(make(r1_gamma=0, r2_gamma=0), 0, networks)
    loss, metrics = phase_loss(make(r1_gamma=2.0, r2_gamma=0.5), 0, networks)
    torch.testing.assert_close(metrics["r1"], squared.detach())
    torch.testing.assert_close(metrics["r2"], squared.detach())
    torch.testing.assert_close(loss - without, 0.5 * (2.0 + 0.5) * squared)

    (gradient,) = torch.autograd.grad(loss - without, discriminator.weight)
    torch.testing.assert_close(gradient, (2.0 + 0.5) * discriminator.weight.detach())


def test_penalty_and_its_gradient_match_finite_differences() -> None:
    discriminator = make().networks["discriminator"].double()
    images = (2 * batch_of(2).images_BCHW - 1).double()
    labels = torch.tensor([0, 2])

    def penalty() -> Tensor:
        leaf = images.clone().requires_grad_()
        return gan.gradient_penalty(discriminator(leaf, labels), leaf)

    step = 1e-6
    squares = 0.0
    with torch.no_grad():
        for image in range(2):
            for pixel in range(64):
                moved = torch.zeros_like(images)
                moved[image].view(-1)[pixel] = step
                up, down = (discriminator(images + sign * moved, labels)[image] for sign in (1, -1))
                squares += ((up - down) / (2 * step)).item() ** 2
    assert penalty().item() == pytest.approx(squares / 2, rel=1e-5)

    weight = dict(discriminator.named_parameters())["dense.0.weight"]
    (gradient,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    original = weight.detach().clone()
    values = []
    for sign in (1, -1):
        weight.data.copy_(original + sign * step * direction)
        values.append(penalty().item())
    assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_discriminator_phase_leaves_the_generator_alone_and_the_other_way_round() -> None:
    model = make()
    generator, discriminator = model.networks["generator"], model.networks["discriminator"]
    phase_loss(model, 0)[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())
    discriminator.zero_grad()
    discriminator.requires_grad_(False)
    phase_loss(model, 1)[0].backward()  # type: ignore[no-untyped-call]  # as above
    assert all(p.grad is not None for p in generator.parameters())
    assert all(p.grad is None for p in discriminator.parameters())


def test_no_penalty_is_computed_where_gamma_is_zero() -> None:
    _, metrics = phase_loss(make(r1_gamma=0, r2_gamma=1, loss="non_saturating"), 0)
    assert "r1" not in metrics and metrics["r2"] > 0


def test_accuracies_count_logits_on_their_side() -> None:
    real_B, fake_B = torch.tensor([1.0, 2.0, -1.0, 0.5]), torch.tensor([-3.0, 2.5, -2.0, 0.1])
    assert gan.accuracies("relativistic", real_B, fake_B) == {"pair_accuracy": 0.75}
    assert gan.accuracies("non_saturating", real_B, fake_B) == {"real_accuracy": 0.75, "fake_accuracy": 0.5}


def test_discriminator_logit_is_the_projection_on_the_class() -> None:
    network = make().networks["discriminator"]
    assert isinstance(network, gan.Discriminator) and network.classes is not None
    images = 2 * batch_of(4).images_BCHW - 1
    features = network.dense(network.down(images).flatten(1))
    labels = torch.tensor([2, 0, 1, 1])
    inner = (features * network.classes.weight[labels]).sum(1)
    torch.testing.assert_close(network(images, labels), network.logit(features).squeeze(1) + inner)
