"""The VAE/GAN: its terms against formulas, and which network hears of which."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from trainers import families
from trainers.families import Batch, DataShape, Noise, vaegan
from trainers.families.vaegan import Autoencoder, VaeGanModel
from trainers.networks.players import Discriminator

SHAPE = DataShape(1, 8, 8, 3)
BATCH = Batch(
    torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(6) % 3, torch.arange(6), 6
)


def make(**options: object) -> VaeGanModel:
    model = families.build("vaegan", vaegan.Config.model_validate(options), SHAPE, 0)
    assert isinstance(model, VaeGanModel)
    return model


def parts(model: VaeGanModel) -> tuple[Autoencoder, Discriminator]:
    autoencoder, discriminator = model.networks["autoencoder"], model.networks["discriminator"]
    assert isinstance(autoencoder, Autoencoder) and isinstance(discriminator, Discriminator)
    return autoencoder, discriminator


def loss_of(model: VaeGanModel, phase: int, step: int = 1000) -> tuple[Tensor, dict[str, Tensor]]:
    return model.phases[phase].loss(model.networks, BATCH, Noise(0, 1, phase, BATCH.rows_B, 6), step)


def test_squared_distance_is_a_gaussian_likelihood_but_for_its_constant() -> None:
    a, b = (torch.randn(4, 3, 2, 2, dtype=torch.float64) for _ in range(2))
    constant = 0.5 * 12 * math.log(2 * math.pi)
    expected = -norm(b.numpy(), 1).logpdf(a.numpy()).sum((1, 2, 3)) - constant
    np.testing.assert_allclose(vaegan.squared_distance(a, b).numpy(), expected, rtol=1e-5)


def test_autoencoder_loss_is_the_weighted_sum_of_its_terms() -> None:
    model = make(loss="non_saturating", beta=0.5, feature_weight=3.0, pixel_weight=0.25, adversarial_weight=2.0)
    autoencoder, discriminator = parts(model)
    noise = Noise(0, 1, 1, BATCH.rows_B, 6)
    real, labels = 2 * BATCH.images_BCHW - 1, BATCH.labels_B
    with torch.no_grad():
        mean, log_variance = autoencoder.encode(real, labels)
        posterior = Normal(mean, (0.5 * log_variance).exp())
        z = mean + posterior.stddev * noise.normal(64)
        remade, new = autoencoder(z, labels), autoencoder(noise.normal(64), labels)
        rate = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
        maps = [discriminator.trunk.maps(images).flatten(1) for images in (real, remade)]
        features = 0.5 * (maps[0] - maps[1]).square().sum(1).mean()
        pixels = 0.5 * (real - remade).square().sum((1, 2, 3)).mean()
        games = [functional.softplus(-discriminator(images, labels[:, None])).mean() for images in (remade, new)]
        expected = 0.5 * rate + 3 * features + 0.25 * pixels + 2 * (games[0] + games[1]) / 2
    loss, metrics = loss_of(model, 1)
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(metrics["rate"], rate)
    torch.testing.assert_close(metrics["features"], features)


def test_discriminator_meets_reconstructions_and_new_images() -> None:
    model = make(loss="hinge", r1_gamma=0, r2_gamma=0)
    autoencoder, discriminator = parts(model)
    noise = Noise(0, 1, 0, BATCH.rows_B, 6)
    real, labels = 2 * BATCH.images_BCHW - 1, BATCH.labels_B
    with torch.no_grad():
        mean, log_variance = autoencoder.encode(real, labels)
        remade = autoencoder(mean + (0.5 * log_variance).exp() * noise.normal(64), labels)
        new = autoencoder(noise.normal(64), labels)
        on_real, on_remade, on_new = (discriminator(x, labels[:, None]) for x in (real, remade, new))
        expected = (1 - on_real).relu().mean() + 0.5 * ((1 + on_remade).relu().mean() + (1 + on_new).relu().mean())
    torch.testing.assert_close(loss_of(model, 0)[0].detach(), expected)


def test_the_encoder_does_not_hear_of_the_game_and_the_decoder_does() -> None:
    model = make(beta=0, feature_weight=0, pixel_weight=0)
    autoencoder, discriminator = parts(model)
    discriminator.requires_grad_(False)
    loss_of(model, 1)[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for name, parameter in autoencoder.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.any())
        assert moved == name.startswith("decoder."), name


def test_rate_warms_up() -> None:
    model = make(beta=2.0, kl_warmup_steps=10)
    assert [model.kl_weight(step) for step in (0, 4, 9, 50)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    with torch.no_grad():
        rate = loss_of(model, 1)[1]["rate"]
        torch.testing.assert_close(loss_of(model, 1, 9)[0] - loss_of(model, 1, 0)[0], 1.8 * rate, rtol=1e-4, atol=1e-4)


def test_figures_of_images_are_their_rates() -> None:
    model = make()
    autoencoder, _ = parts(model)
    with torch.no_grad():
        figures = model.image_figures(autoencoder, BATCH.images_BCHW, BATCH.labels_B, Noise(0, 0, 0, BATCH.rows_B, 6))
        mean, log_variance = autoencoder.encode(2 * BATCH.images_BCHW - 1, BATCH.labels_B)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(figures["rate"], expected)


@pytest.mark.parametrize("options", [{"preset": "base"}, {"network": "mlp"}, {"output": "linear"}], ids=str)
def test_variants_train(options: dict[str, object]) -> None:
    model = make(**options)
    for phase in (0, 1):
        loss, _ = loss_of(model, phase)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert loss.isfinite()


def test_training_makes_reconstructions_better() -> None:
    model = make(lr=3e-3)
    optimizers = {
        name: torch.optim.Adam(network.parameters(), lr=3e-3, betas=(0.0, 0.99))
        for name, network in model.networks.items()
    }
    pixels = []
    for step in range(60):
        for index, phase in enumerate(model.phases):
            for name, network in model.networks.items():
                network.requires_grad_(name == phase.network)
            loss, metrics = phase.loss(model.networks, BATCH, Noise(0, step, index, BATCH.rows_B, 6), step)
            optimizers[phase.network].zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizers[phase.network].step()
        pixels.append(metrics["pixels"].item())
    assert sum(pixels[-5:]) < 0.7 * sum(pixels[:5])
