"""The VAE's losses against torch.distributions and against training it for a moment."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal, kl_divergence

from trainers import families
from trainers.families import Adam, Batch, DataShape, Noise, vae

SHAPE = DataShape(1, 8, 8, 3)


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    result: Tensor = distribution.log_prob(value)
    return result


def test_kl_matches_torch_distributions() -> None:
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(vae.kl_to_standard_normal(mean, log_variance), expected)


def test_bernoulli_distortion_is_the_mean_over_random_binarisations() -> None:
    logits, images = torch.randn(2, 1, 1, 2), torch.rand(2, 1, 1, 2)
    expected = torch.zeros(2)
    for left in (0.0, 1.0):
        for right in (0.0, 1.0):
            binary = torch.tensor([left, right]).expand_as(images)
            chance = torch.where(binary == 1, images, 1 - images).prod(-1).flatten()
            expected -= chance * log_prob(Bernoulli(logits=logits), binary).sum((1, 2, 3))
    torch.testing.assert_close(vae.bernoulli_distortion(logits, images), expected)


def test_gaussian_distortion_matches_torch_distributions() -> None:
    mean, images = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    expected = -log_prob(Normal(mean, 0.3), images).sum((1, 2, 3))
    torch.testing.assert_close(vae.gaussian_distortion(mean, images, torch.tensor(0.3).log()), expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_loss_is_distortion_plus_the_weighted_rate(likelihood: str) -> None:
    options = {"likelihood": likelihood, "beta": 3.0, "kl_warmup_steps": 10}
    config = vae.Config.model_validate(options)
    model = families.build("vae", config, SHAPE, 0)
    batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.arange(4), 4)
    noise = (Noise(0, 1, 0, batch.rows_B, 4) for _ in range(3))
    early, metrics = model.phases[0].loss(model.networks, batch, next(noise), 4)
    late, _ = model.phases[0].loss(model.networks, batch, next(noise), 10)
    torch.testing.assert_close(early.detach(), metrics["distortion"] + 3.0 * 0.5 * metrics["rate"])
    torch.testing.assert_close(late.detach(), metrics["distortion"] + 3.0 * metrics["rate"])

    figures = model.image_figures(model.networks["vae"], batch.images_BCHW, batch.labels_B, next(noise))
    assert all(value.shape == (4,) for value in figures.values())
    torch.testing.assert_close(figures["negative_elbo"], figures["rate"] + figures["distortion"])
    torch.testing.assert_close(figures["distortion"].mean().detach(), metrics["distortion"])


def test_latent_is_drawn_from_the_posterior() -> None:
    """z = mean + deviation * noise, where the KL's deviation and the sample's are the same."""
    network = families.build("vae", vae.Config(), SHAPE, 0).networks["vae"]
    assert isinstance(network, vae.Vae)
    images, labels, noise = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]), 5 * torch.randn(3, 32)
    mean, log_variance = network.encode(images, labels)
    posterior = Normal(mean, log_variance.exp().sqrt())
    expected = vae.bernoulli_distortion(network.decode(mean + posterior.stddev * noise, labels), images)
    distortion_B, rate_B = network(images, labels, noise)
    torch.testing.assert_close(distortion_B, expected)
    torch.testing.assert_close(rate_B, kl_divergence(posterior, Normal(0.0, 1.0)).sum(1))


def test_scale_is_a_parameter_only_where_it_is_learned() -> None:
    def has_scale(**options: object) -> bool:
        config = vae.Config.model_validate(options)
        network = families.build("vae", config, SHAPE, 0).networks["vae"]
        return "log_scale" in dict(network.named_parameters())

    assert has_scale(likelihood="gaussian")
    assert not has_scale(likelihood="gaussian", learn_scale=False)
    assert not has_scale(likelihood="bernoulli")


def test_learned_scale_is_drawn_to_the_error_of_the_reconstruction() -> None:
    """The gradient is pixels - squared error / scale^2: zero where the scale is the root mean square error."""
    config = vae.Config(likelihood="gaussian", scale=0.3)
    network = families.build("vae", config, SHAPE, 0).networks["vae"]
    assert isinstance(network, vae.Vae)
    images, labels, noise = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.zeros(4, 32)
    distortion_B, _ = network(images, labels, noise)
    (gradient,) = torch.autograd.grad(distortion_B.mean(), dict(network.named_parameters())["log_scale"])
    with torch.no_grad():
        error = (network.decode(network.encode(images, labels)[0], labels) - images).square().sum() / 4
    torch.testing.assert_close(gradient, (64 - error / 0.3**2).reshape(1))


def test_decoded_image_is_the_mean_of_the_likelihood() -> None:
    model = families.build("vae", vae.Config(), SHAPE, 0)
    network = model.networks["vae"]
    assert isinstance(network, vae.Vae)
    z_BZ, labels_B = families.latents([1, 2], model.latent_size), torch.tensor([0, 2])
    expected = Bernoulli(logits=network.decode(z_BZ, labels_B)).mean
    torch.testing.assert_close(model.decode(network, z_BZ, labels_B), expected)


def test_optimizer_follows_the_config() -> None:
    model = families.build("vae", vae.Config(lr=0.5, lr_warmup_steps=3, lr_decay="none"), SHAPE, 0)
    assert model.optimizers["vae"] == Adam(lr=0.5, warmup_steps=3, decay="none")
