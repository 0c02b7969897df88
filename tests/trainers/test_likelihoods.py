"""Likelihoods against torch.distributions, SciPy, and the frequencies of their own draws."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from scipy.stats import logistic
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

from trainers import likelihoods
from trainers.likelihoods import Likelihood

ALL_KINDS = [
    likelihoods.Bernoulli(1),
    likelihoods.Gaussian(3, per_pixel=False),
    likelihoods.Gaussian(2, per_pixel=True),
    likelihoods.LogisticMixture(1, 4),
    likelihoods.LogisticMixture(3, 2),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(4)


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    result: Tensor = distribution.log_prob(value)
    return result


def levels(*shape: int) -> Tensor:
    return torch.randint(256, shape) / 255


def test_bernoulli_distortion_is_the_mean_over_random_binarisations() -> None:
    logits, images = torch.randn(2, 1, 1, 2), torch.rand(2, 1, 1, 2)
    expected = torch.zeros(2)
    for left, right in itertools.product((0.0, 1.0), repeat=2):
        binary = torch.tensor([left, right]).expand_as(images)
        chance = torch.where(binary == 1, images, 1 - images).prod(-1).flatten()
        expected -= chance * log_prob(Bernoulli(logits=logits), binary).sum((1, 2, 3))
    torch.testing.assert_close(likelihoods.bernoulli_distortion(logits, images), expected)


def test_gaussian_distortion_matches_torch_distributions() -> None:
    mean, images = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    expected = -log_prob(Normal(mean, 0.3), images).sum((1, 2, 3))
    torch.testing.assert_close(likelihoods.gaussian_distortion(mean, images, torch.tensor(0.3).log()), expected)


def test_per_pixel_scale_is_a_factor_of_the_shared_one_and_bounded() -> None:
    output, images = torch.randn(3, 4, 5, 5), torch.rand(3, 2, 5, 5)
    kind, shared = likelihoods.Gaussian(2, per_pixel=True), torch.tensor([0.5]).log()
    expected = -log_prob(Normal(output[:, :2], 0.5 * output[:, 2:].exp()), images).sum((1, 2, 3))
    torch.testing.assert_close(kind.distortion(output, images, shared), expected)
    output[:, 2:] = -1e4
    assert kind.distortion(output, images, shared).isfinite().all()


def scipy_mixture(output_BPHW: Tensor, images_BCHW: Tensor) -> list[float]:
    """-log p(x) of PixelCNN++'s mixture, value by value in float64, by differences of SciPy's logistic cdf."""
    output, found = output_BPHW.double().numpy(), []
    for image_output, image in zip(output, (images_BCHW.double() * 255).round().numpy(), strict=True):
        channels, height, width = image.shape
        total = 0.0
        for row, column in itertools.product(range(height), range(width)):
            parts = image_output[:, row, column].reshape(1 + 2 * channels + channels * (channels - 1) // 2, -1)
            log_probs, couplings = log_softmax(parts[0]), np.tanh(parts[1 + 2 * channels :])
            x = 2 * image[:, row, column] / 255 - 1
            for c in range(channels):
                mean = parts[1 + c].copy()
                for before in range(c):
                    mean += couplings[{(1, 0): 0, (2, 0): 1, (2, 1): 2}[c, before]] * x[before]
                scale = np.exp(np.maximum(parts[1 + channels + c], -7))
                upper = np.inf if image[c, row, column] == 255 else x[c] + 1 / 255
                lower = -np.inf if image[c, row, column] == 0 else x[c] - 1 / 255
                log_probs += np.log(logistic.cdf(upper, mean, scale) - logistic.cdf(lower, mean, scale))
            total -= logsumexp(log_probs)
        found.append(total)
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_distortion_matches_scipy(channels: int) -> None:
    kind = likelihoods.LogisticMixture(channels, 3)
    output, images = torch.randn(4, kind.outputs, 3, 3), levels(4, channels, 3, 3)
    images[0], images[1] = 0, 1  # the bins that reach to infinity
    found = kind.distortion(output, images, torch.zeros(1))
    torch.testing.assert_close(found, torch.tensor(scipy_mixture(output, images)).float(), rtol=1e-4, atol=1e-3)
    moved = (images + 0.4 / 255).clamp(0, 1)  # a value between levels counts as the nearest
    torch.testing.assert_close(kind.distortion(output, moved, torch.zeros(1)), found)


def test_masses_of_all_levels_sum_to_one_wherever_the_mixture_lies() -> None:
    kind = likelihoods.LogisticMixture(1, 2)
    images = (torch.arange(256) / 255).reshape(256, 1, 1, 1)
    for log_scale, mean in itertools.product((-9.0, -4.0, 0.0, 3.0), (-5.0, -0.3, 0.0, 1.0)):
        output = torch.tensor([0.3, -1.0, mean, mean + 0.1, log_scale, log_scale]).reshape(1, 6, 1, 1)
        costs = kind.distortion(output.expand(256, -1, -1, -1), images, torch.zeros(1))
        assert costs.neg().exp().sum().item() == pytest.approx(1, abs=2e-4)


def test_mixture_stays_finite_with_gradients_far_from_its_mean() -> None:
    kind = likelihoods.LogisticMixture(3, 2)
    output = (1000 * torch.randn(4, kind.outputs, 3, 3)).requires_grad_()
    cost = kind.distortion(output, levels(4, 3, 3, 3), torch.zeros(1)).sum()
    (gradient,) = torch.autograd.grad(cost, output)
    assert cost.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_draws_have_the_frequencies_of_the_likelihood(channels: int) -> None:
    """The mean cost of draws is the entropy, whose other estimate is over draws of SciPy's own logistics."""
    kind, draws = likelihoods.LogisticMixture(channels, 2), 20_000
    output = torch.randn(1, kind.outputs, 1, 1)
    output[:, 2 + 2 * channels : 2 + 4 * channels] -= 1.5  # scales
    many = output.expand(draws, -1, -1, -1)
    drawn = kind.draw(many, torch.randn(draws, kind.noise_channels, 1, 1), torch.zeros(1))
    torch.testing.assert_close(drawn * 255, (drawn * 255).round(), atol=1e-3, rtol=0)

    parts = output.flatten().double().numpy().reshape(-1, 2)
    random = np.random.default_rng(0)
    component = (random.random(draws) > np.exp(log_softmax(parts[0]))[0]).astype(int)
    expected: list[npt.NDArray[np.float64]] = []
    for c in range(channels):
        mean = parts[1 + c][component]
        for before in range(c):
            index = {(1, 0): 0, (2, 0): 1, (2, 1): 2}[c, before]
            mean = mean + np.tanh(parts[1 + 2 * channels + index])[component] * expected[before]
        x = random.logistic(mean, np.exp(parts[1 + channels + c])[component])
        expected.append(2 * np.round((np.clip(x, -1, 1) + 1) / 2 * 255) / 255 - 1)
    theirs = (torch.from_numpy(np.stack(expected, 1)).float()[:, :, None, None] + 1) / 2
    for power in (1, 2, 3):
        torch.testing.assert_close((drawn**power).mean(0), (theirs**power).mean(0), atol=0.015, rtol=0)
    costs = [kind.distortion(many, images, torch.zeros(1)).mean().item() for images in (drawn, theirs)]
    assert costs[0] == pytest.approx(costs[1], abs=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_mean_is_the_mean_of_draws_inside_the_range(channels: int) -> None:
    kind, draws = likelihoods.LogisticMixture(channels, 2), 20_000
    output = 0.2 * torch.randn(1, kind.outputs, 2, 2)
    output[:, 2 + 2 * channels : 2 + 4 * channels] -= 4.0  # narrow: the edges cut nothing off
    many = output.expand(draws, -1, -1, -1)
    drawn = kind.draw(many, torch.randn(draws, kind.noise_channels, 2, 2), torch.zeros(1))
    torch.testing.assert_close(kind.mean(output)[0], drawn.mean(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: f"{type(kind).__name__}-{kind.outputs}")
def test_draws_and_means_are_images_and_a_draw_costs_less_than_noise(kind: Likelihood) -> None:
    output = torch.randn(500, kind.outputs, 4, 4)
    scale = torch.tensor([0.1]).log()
    drawn = kind.draw(output, torch.randn(500, kind.noise_channels, 4, 4), scale)
    for images in (drawn, kind.mean(output)):
        assert images.shape == (500, kind.channels, 4, 4)
        assert images.min() >= 0 and images.max() <= 1
    noise = (
        levels(500, kind.channels, 4, 4).round() if isinstance(kind, likelihoods.Bernoulli) else levels(*drawn.shape)
    )
    assert kind.distortion(output, drawn, scale).mean() < kind.distortion(output, noise, scale).mean()


def test_mean_is_what_the_distribution_says() -> None:
    output = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(likelihoods.Bernoulli(1).mean(output), Bernoulli(logits=output).mean)
    torch.testing.assert_close(likelihoods.Gaussian(1, False).mean(output), output.clamp(0, 1))


def test_gaussian_and_bernoulli_draws_follow_their_distribution() -> None:
    output, draws = torch.full((20_000, 1, 1, 1), 0.4), torch.randn(20_000, 1, 1, 1)
    gaussian = likelihoods.Gaussian(1, False).draw(output, draws, torch.tensor([0.05]).log())
    assert gaussian.mean().item() == pytest.approx(0.4, abs=2e-3)
    assert gaussian.std().item() == pytest.approx(0.05, abs=2e-3)
    bernoulli = likelihoods.Bernoulli(1).draw(output, draws, torch.zeros(1))
    assert bernoulli.mean().item() == pytest.approx(torch.tensor(0.4).sigmoid().item(), abs=0.015)
