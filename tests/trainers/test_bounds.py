"""Bounds of log p(x) against SciPy and against a model whose p(x) is known: probabilistic PCA."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor
from torch.distributions import MultivariateNormal

from trainers import bounds, families
from trainers.families import DataShape, Noise, vae
from trainers.families.vae import Vae, VaeModel

SHAPE = DataShape(1, 2, 3, 0)
SCALE = 0.3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(8)


def noise_of(batch: int, seed: int = 0) -> Noise:
    return Noise(seed, 0, 0, torch.arange(batch), batch)


def linear_model(**options: object) -> tuple[VaeModel, Vae]:
    """A VAE of linear maps: with a Gaussian likelihood it is probabilistic PCA (Tipping & Bishop 1999)."""
    config = {"network": "mlp", "hidden": (), "latent_size": 2, "likelihood": "gaussian", "scale": SCALE}
    model = families.build("vae", vae.Config.model_validate(config | options), SHAPE, 0)
    network = model.networks["vae"].double()
    assert isinstance(model, VaeModel) and isinstance(network, Vae)
    return model, network


def set_exact_posterior(network: Vae) -> MultivariateNormal:
    """Orthogonal loadings, so that the true posterior is one that the encoder can give. Returns p(x)."""
    basis, _ = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))
    loadings, bias = basis * torch.tensor([1.5, 0.4], dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    precision = (loadings**2).sum(0) / SCALE**2 + 1
    to_mean = loadings.T / SCALE**2 / precision[:, None]  # mean of p(z|x) = to_mean (x - bias)
    with torch.no_grad():
        network.decoder.first.weight.copy_(loadings)
        network.decoder.first.bias.copy_(bias)
        weight, offset = network.encoder.first.weight, network.encoder.first.bias
        weight.zero_()
        weight[:2] = to_mean
        offset[:2] = -to_mean @ bias
        offset[2:] = -precision.log()
    covariance = loadings @ loadings.T + SCALE**2 * torch.eye(6, dtype=torch.float64)
    return MultivariateNormal(bias, covariance)


def truth(marginal: MultivariateNormal, images: Tensor) -> Tensor:
    found: Tensor = marginal.log_prob(images.flatten(1))  # type: ignore[no-untyped-call]  # as above
    return found


def test_importance_bound_is_the_log_of_the_mean_weight() -> None:
    log_weights = torch.tensor([[-1000.0, -1001.0, -1003.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    expected = logsumexp(log_weights.numpy(), axis=1) - np.log(3)
    torch.testing.assert_close(bounds.importance_bound(log_weights), torch.from_numpy(expected))
    torch.testing.assert_close(bounds.importance_bound(log_weights[:, :1]), log_weights[:, 0])


@pytest.mark.parametrize("num_samples", [1, 7])
def test_with_the_true_posterior_every_estimate_is_the_likelihood(num_samples: int) -> None:
    _, network = linear_model()
    marginal = set_exact_posterior(network)
    images, labels = torch.rand(5, 1, 2, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    found = bounds.log_likelihood(network, images, labels, noise_of(5), num_samples)
    torch.testing.assert_close(found, truth(marginal, images), atol=1e-5, rtol=0)  # the scale is kept in float32


def test_with_another_posterior_the_estimate_comes_from_below_and_arrives() -> None:
    _, network = linear_model()
    marginal = set_exact_posterior(network)
    with torch.no_grad():
        network.encoder.first.bias[:2] += 0.3
        network.encoder.first.bias[2:] += 1.0
    images, labels = torch.rand(5, 1, 2, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    means = [
        torch.stack([bounds.log_likelihood(network, images, labels, noise_of(5, seed), k) for seed in range(200)])
        for k in (1, 10)
    ]
    elbo, better, exact = means[0].mean(0), means[1].mean(0), truth(marginal, images)
    assert (elbo + 0.1 < better).all() and (better < exact).all()
    found = bounds.log_likelihood(network, images, labels, noise_of(5), 20_000)
    torch.testing.assert_close(found, exact, atol=0.05, rtol=0)


def test_analytic_rate_and_sampled_ratio_agree_on_the_elbo() -> None:
    """The mean log weight is the negative ELBO whose rate is in closed form."""
    _, network = linear_model()
    images, labels = torch.rand(3, 1, 2, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    terms = network(images, labels, torch.randn(3, 20_000, 2, dtype=torch.float64))
    analytic = terms.distortion_BK.mean(1) + terms.rate_BKG.sum(2).mean(1)
    torch.testing.assert_close(-terms.log_weights().mean(1), analytic, atol=0.05, rtol=0)


def test_likelihood_does_not_depend_on_the_chunk() -> None:
    _, network = linear_model()
    images, labels = torch.rand(4, 1, 2, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    whole, *others = (bounds.log_likelihood(network, images, labels, noise_of(4), 23, chunk) for chunk in (0, 1, 4, 23))
    for other in others:
        torch.testing.assert_close(other, whole, atol=1e-12, rtol=1e-12)


def test_likelihood_is_stable_where_weights_leave_float32() -> None:
    _, network = linear_model()
    set_exact_posterior(network)
    images, labels = torch.full((2, 1, 2, 3), 300.0), torch.zeros(2, dtype=torch.int64)  # log p near -1e6
    found = bounds.log_likelihood(network.float(), images, labels, noise_of(2), 5, 2)
    assert found.isfinite().all() and (found < -1e4).all()


def test_training_bound_of_k_samples_is_the_likelihood_at_the_true_posterior() -> None:
    model, network = linear_model(importance_samples=5, kl_warmup_steps=0)
    marginal = set_exact_posterior(network)
    images = torch.rand(4, 1, 2, 3, dtype=torch.float64)
    batch = families.Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4), 4)
    loss, _ = model.phases[0].loss(model.networks, batch, noise_of(4), 0)
    torch.testing.assert_close(loss.detach(), -truth(marginal, images).mean(), atol=1e-5, rtol=0)


def test_free_bits_charge_each_group_at_least_their_amount_and_hold_its_gradient() -> None:
    rate_BG = torch.tensor([[0.1, 2.0, 0.5], [0.9, 0.2, 3.0]], requires_grad=True)
    charged_B = bounds.rate_beyond_free_bits(rate_BG, 0.7)
    torch.testing.assert_close(charged_B.detach(), torch.tensor([0.7 + 2.0 + 0.7, 0.9 + 0.7 + 3.0]))
    (gradient,) = torch.autograd.grad(charged_B.sum(), rate_BG)
    assert torch.equal(gradient, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]))
    torch.testing.assert_close(bounds.rate_beyond_free_bits(rate_BG, 0.0), rate_BG.sum(1))


def test_active_units_are_those_whose_mean_moves_with_the_image() -> None:
    wave = torch.linspace(0, 2 * math.pi, 101)[:100].sin()  # variance 1/2
    means_NZ = torch.stack([wave, 0.01 * wave, 0.15 * wave, torch.full((100,), 7.0)], 1)
    assert bounds.active_units(means_NZ).tolist() == [True, False, True, False]


def test_posterior_means_are_those_of_the_encoder() -> None:
    _, network = linear_model()
    images, labels = torch.rand(4, 1, 2, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(network.posterior_means(images, labels), network.encode(images, labels)[0].detach())
