"""The hierarchy of latents against distributions written out in its own coordinates."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from trainers.likelihoods import Bernoulli
from trainers.networks.blocks import BottomUp, ConditionalMlp, TopDown, TowerSize, pyramid
from trainers.networks.ladder import Ladder, LatentBlock, Stage, bounded, spread
from trainers.networks.latent import kl_to_standard_normal, log_ratio_to_standard_normal

SMALL = TowerSize(budget=64, least=8, most=16, blocks=1, hidden=16)


@pytest.fixture(autouse=True)
def small_and_seeded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(2)
    yield
    torch.set_num_threads(before)


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    found: Tensor = distribution.log_prob(value)
    return found.flatten(1).sum(1)


def ladder(depth: int = 3, side: int = 16) -> Ladder:
    network = Ladder(1, side, side, 4, depth, latent_channels=2, size=SMALL, likelihood=Bernoulli(1))
    with torch.no_grad():  # heads start near N(0, 1): move them away, so that nothing holds by smallness
        for name, parameter in network.named_parameters():
            if "head" in name or "entry" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    network.log_scale = torch.zeros(1)
    return network


def test_kl_and_log_ratio_match_torch_distributions() -> None:
    mean, log_variance, noise = torch.randn(5, 7), torch.randn(5, 7), torch.randn(5, 7)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    torch.testing.assert_close(
        kl_to_standard_normal(mean, log_variance), kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    )
    value = mean + posterior.stddev * noise
    expected = log_prob(Normal(0.0, 1.0), value) - log_prob(posterior, value)
    torch.testing.assert_close(log_ratio_to_standard_normal(value, noise, log_variance), expected)


def test_rates_and_ratio_are_those_of_each_groups_own_prior_and_posterior() -> None:
    network = ladder()
    images, labels, noise = torch.rand(3, 1, 16, 16), torch.tensor([0, 3, 1]), torch.randn(3, network.latent_size)
    found = network.infer(network.posterior(images, labels), labels, noise)

    h, noises = network._start(labels), network._split(noise)
    features, rates, ratio = iter(network.posterior(images, labels)), [], torch.zeros(3)
    for stage, count in zip(network.stages, network.counts, strict=True):
        assert isinstance(stage, Stage)
        h = stage.enlarge(h) if stage.enlarge is not None else h
        here = next(features) if count else None
        for block in stage.latents:
            assert isinstance(block, LatentBlock) and here is not None
            own = next(noises)
            drawn = block.draw(h, here, own)
            mean, log_scale, told = block.prior(h)
            prior = Normal(mean, log_scale.exp())
            posterior = Normal(
                mean + log_scale.exp() * drawn.mean_BLHW, (log_scale + 0.5 * drawn.log_variance_BLHW).exp()
            )
            z = posterior.mean + posterior.stddev * own
            rates.append(kl_divergence(posterior, prior).flatten(1).sum(1))
            ratio = ratio + log_prob(prior, z) - log_prob(posterior, z)
            h = block.after(h + told + block.entry(z))
        h = stage.plain(h)
    torch.testing.assert_close(found.rate_BG, torch.stack(rates, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.log_ratio_B, ratio, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.output_BPHW, network.head(torch.nn.functional.silu(h)))
    assert len(rates) == 3 and (found.rate_BG > 0.1).all()


def test_mean_log_ratio_over_draws_is_minus_the_rate() -> None:
    """The rates depend on the draws above them; in the mean both estimate the same KL divergence."""
    network = ladder(2, 8)
    images, labels, draws = torch.rand(1, 1, 8, 8), torch.tensor([2]), 4000
    terms = network(images, labels, torch.randn(1, draws, network.latent_size))
    rate = terms.rate_BKG.sum(2)
    error = 4 * (terms.log_ratio_BK + rate).std() / draws**0.5
    assert abs((terms.log_ratio_BK + rate).mean()) < error < 0.1 * rate.mean()


def test_generation_from_the_posteriors_latents_gives_the_posteriors_image() -> None:
    network = ladder()
    images, labels, noise = torch.rand(2, 1, 16, 16), torch.tensor([0, 3]), torch.randn(2, network.latent_size)
    values: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, LatentBlock):
            module.register_forward_hook(lambda _, __, output: values.append(output[1].value_BLHW.flatten(1)))
    inferred = network.infer(network.posterior(images, labels), labels, noise).output_BPHW
    for module in network.modules():
        module._forward_hooks.clear()
    torch.testing.assert_close(network.decode(torch.cat(values, 1), labels), inferred)


def test_each_group_and_the_class_move_the_image() -> None:
    network = ladder(4, 16)
    z, labels = torch.randn(1, network.latent_size), torch.tensor([1])
    base, start = network.decode(z, labels), 0
    assert [group[1:] for group in network.groups] == [(4, 4), (4, 4), (8, 8), (8, 8)]
    for group in network.groups:
        moved, size = z.clone(), group[0] * group[1] * group[2]
        moved[:, start : start + size] += 1
        assert (network.decode(moved, labels) - base).abs().max() > 1e-4
        start += size
    assert start == network.latent_size
    assert (network.decode(z, labels + 1) - base).abs().max() > 1e-4


def test_groups_are_spread_over_the_grids_with_the_rest_to_the_coarse() -> None:
    assert spread(6, [(28, 28), (14, 14), (7, 7), (4, 4)]) == [0, 2, 2, 2]
    assert spread(5, [(28, 28), (14, 14), (7, 7), (4, 4)]) == [0, 1, 2, 2]
    assert spread(2, [(28, 28), (14, 14), (7, 7), (4, 4)]) == [0, 0, 1, 1]
    assert spread(3, [(5, 5)]) == [3]


@pytest.mark.parametrize(("height", "width", "depth"), [(8, 8, 2), (5, 5, 3), (15, 21, 5), (28, 28, 2), (9, 40, 4)])
def test_every_parameter_has_a_dimension_and_a_gradient_at_any_size(height: int, width: int, depth: int) -> None:
    network = Ladder(3, height, width, 2, depth, latent_channels=2, size=SMALL, likelihood=Bernoulli(3))
    network.log_scale = torch.zeros(1)
    terms = network(torch.rand(2, 3, height, width), torch.tensor([0, 1]), torch.randn(2, 1, network.latent_size))
    terms.log_weights().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.dim() and parameter.grad is not None and parameter.grad.any(), name


def test_scales_are_bounded_so_that_wild_outputs_stay_finite() -> None:
    assert bounded(torch.tensor([1e9, -1e9])).tolist() == [5.0, -5.0]
    torch.testing.assert_close(bounded(torch.tensor([0.01])), torch.tensor([0.01]), atol=1e-6, rtol=0)


def test_grids_halve_rounding_up_to_the_smallest() -> None:
    assert pyramid(28, 28, 4) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert pyramid(15, 21, 4) == [(15, 21), (8, 11), (4, 6)]
    assert pyramid(8, 8, 4) == [(8, 8), (4, 4)]
    assert pyramid(3, 50, 4) == [(3, 50)]
    assert len(pyramid(256, 256, 4)) == 7


@pytest.mark.parametrize(("height", "width"), [(8, 8), (15, 21), (28, 28), (3, 50), (97, 64)])
def test_towers_go_down_and_return_to_the_same_size(height: int, width: int) -> None:
    grids = pyramid(height, width, 4)
    down, up = BottomUp(3, grids, SMALL), TopDown(5, grids, SMALL)
    features = down(torch.rand(2, 3, height, width))
    assert features.shape == (2, SMALL.channels(grids[-1]), *grids[-1])
    outputs = up(features)
    assert outputs.shape == (2, 5, height, width)
    outputs.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in itertools.chain(down.parameters(), up.parameters()))


def test_widths_go_by_the_grid_between_their_bounds() -> None:
    size = TowerSize(budget=2048, least=32, most=128, blocks=2, hidden=512)
    assert [size.channels((side, side)) for side in (256, 64, 32, 28, 14, 7, 4)] == [32, 32, 64, 64, 128, 128, 128]


def test_dense_layers_without_hidden_ones_are_a_linear_map_with_the_class_as_offset() -> None:
    network = ConditionalMlp(3, (), 2, 4)
    x = torch.randn(5, 3)
    labels = torch.tensor([0, 1, 2, 3, 0])
    assert network.classes is not None
    expected = x @ network.first.weight.T + network.first.bias + network.classes.weight[labels]
    torch.testing.assert_close(network(x, labels), expected)
