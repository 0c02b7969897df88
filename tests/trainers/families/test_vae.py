"""The VAE's objective against its parts, what its fields change, and training it for a moment."""

from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from pipeline.errors import RecipeError
from trainers import bounds, families, likelihoods
from trainers.families import Adam, Batch, DataShape, Noise, vae
from trainers.families.vae import VaeModel
from trainers.networks.latent import LatentNetwork, Terms

SHAPE = DataShape(1, 8, 8, 3)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "base", "likelihood": "gaussian"},
    {"likelihood": "gaussian", "scale_per_pixel": True, "decode": "draw"},
    {"likelihood": "logistic_mixture", "mixture_components": 3, "decode": "draw"},
    {"network": "mlp", "hidden": [20, 10], "latent_size": 5, "importance_samples": 4, "binarize": "dynamic"},
    {"depth": 3, "latent_channels": 2, "free_bits": 0.5},
    {"depth": 2, "latent_channels": 2, "likelihood": "logistic_mixture", "importance_samples": 3},
]


def make(shape: DataShape = SHAPE, **options: Any) -> tuple[VaeModel, LatentNetwork]:
    model = families.build("vae", vae.Config.model_validate(options), shape, 0)
    network = model.networks["vae"]
    assert isinstance(model, VaeModel) and isinstance(network, LatentNetwork)
    return model, network


def batch_of(size: int, shape: DataShape = SHAPE) -> Batch:
    images_BCHW = torch.rand(size, shape.channels, shape.height, shape.width)
    return Batch(images_BCHW, torch.arange(size) % max(1, shape.num_classes), torch.arange(size), size)


def noise_of(batch: Batch, step: int = 1) -> Noise:
    return Noise(0, step, 0, batch.rows_B, batch.global_size)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_loss_is_distortion_plus_the_weighted_rate(likelihood: str) -> None:
    model, network = make(likelihood=likelihood, beta=3.0, kl_warmup_steps=10)
    batch = batch_of(4)
    early, metrics = model.phases[0].loss(model.networks, batch, noise_of(batch), 4)
    late, _ = model.phases[0].loss(model.networks, batch, noise_of(batch), 10)
    torch.testing.assert_close(early.detach(), metrics["distortion"] + 3.0 * 0.5 * metrics["rate"])
    torch.testing.assert_close(late.detach(), metrics["distortion"] + 3.0 * metrics["rate"])

    figures = model.image_figures(network, batch.images_BCHW, batch.labels_B, noise_of(batch))
    assert all(value.shape == (4,) for value in figures.values())
    torch.testing.assert_close(figures["negative_elbo"], figures["rate"] + figures["distortion"])
    torch.testing.assert_close(figures["distortion"].mean().detach(), metrics["distortion"])


def test_latent_is_drawn_from_the_posterior() -> None:
    """z = mean + deviation * noise, where the KL's deviation and the sample's are the same."""
    _, network = make()
    assert isinstance(network, vae.Vae)
    images, labels, noise = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]), 5 * torch.randn(3, 32)
    mean, log_variance = network.encode(images, labels)
    posterior = Normal(mean, log_variance.exp().sqrt())
    expected = likelihoods.bernoulli_distortion(network.decode(mean + posterior.stddev * noise, labels), images)
    terms: Terms = network(images, labels, noise[:, None])
    torch.testing.assert_close(terms.distortion_BK[:, 0], expected)
    torch.testing.assert_close(terms.rate_BKG[:, 0, 0], kl_divergence(posterior, Normal(0.0, 1.0)).sum(1))


def test_importance_weighted_loss_is_the_bound_of_the_same_draws_with_the_warm_up_on_the_ratio() -> None:
    model, network = make(importance_samples=6, kl_warmup_steps=10, beta=3.0)
    batch = batch_of(3)
    loss, metrics = model.phases[0].loss(model.networks, batch, noise_of(batch), 4)
    terms: Terms = network(batch.images_BCHW, batch.labels_B, noise_of(batch).normal(6, 32))
    weights = torch.exp(3.0 * 0.5 * terms.log_ratio_BK.double() - terms.distortion_BK.double())
    torch.testing.assert_close(loss.double(), -weights.mean(1).log().mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(metrics["distortion"], terms.distortion_BK.mean().detach())
    assert terms.distortion_BK.std(1).min() > 0  # each draw has noise of its own


def test_free_bits_hold_the_loss_at_their_amount_while_the_figures_tell_the_rate() -> None:
    model, network = make(free_bits=50.0, kl_warmup_steps=0, depth=2, latent_channels=1)
    batch = batch_of(4)
    loss, metrics = model.phases[0].loss(model.networks, batch, noise_of(batch), 0)
    assert metrics["rate"] < 50
    torch.testing.assert_close(loss.detach(), metrics["distortion"] + 2 * 50.0)
    figures = model.image_figures(network, batch.images_BCHW, batch.labels_B, noise_of(batch))
    torch.testing.assert_close(figures["rate"].mean().detach(), metrics["rate"])


def test_dynamic_binarisation_draws_black_and_white_anew_each_step() -> None:
    model, network = make(binarize="dynamic")
    batch, seen = batch_of(500), []
    network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for step in (1, 2):
        model.phases[0].loss(model.networks, batch, noise_of(batch, step), step)
    model.image_figures(network, batch.images_BCHW, batch.labels_B, noise_of(batch, 3))
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1])
    for images in seen:
        assert set(images.unique().tolist()) == {0.0, 1.0}
        for low in (0.0, 0.25, 0.5, 0.75):
            chosen = (batch.images_BCHW >= low) & (batch.images_BCHW < low + 0.25)
            assert images[chosen].mean().item() == pytest.approx(low + 0.125, abs=0.02)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_loss_of_a_global_batch_is_the_mean_over_its_parts(options: dict[str, Any]) -> None:
    model, _ = make(**options)
    whole = batch_of(8)

    def loss_of(batch: Batch) -> Tensor:
        return model.phases[0].loss(model.networks, batch, noise_of(batch), 2)[0].detach()

    parts = [
        loss_of(Batch(whole.images_BCHW[rows], whole.labels_B[rows], rows, 8)) for rows in torch.arange(8).chunk(2)
    ]
    torch.testing.assert_close(loss_of(whole), torch.stack(parts).mean())


@pytest.mark.parametrize("shape", [SHAPE, DataShape(3, 15, 21, 0), DataShape(1, 28, 28, 10)], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_trains_samples_and_is_measured(options: dict[str, Any], shape: DataShape) -> None:
    model, network = make(shape, **options)
    batch = batch_of(2, shape)
    loss, metrics = model.phases[0].loss(model.networks, batch, noise_of(batch), 500)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert loss.shape == () and loss.isfinite() and set(metrics) == {"distortion", "rate"}
    for name, parameter in network.named_parameters():
        assert parameter.dim() and parameter.grad is not None and parameter.grad.any(), name

    with torch.no_grad():
        figures = model.image_figures(network, batch.images_BCHW, batch.labels_B, noise_of(batch))
        z_BZ = families.latents([1, 2], model.latent_size)
        made = model.decode(network, z_BZ, batch.labels_B)
        assert torch.equal(made, model.decode(network, z_BZ, batch.labels_B))
    torch.testing.assert_close(figures["negative_elbo"], figures["rate"] + figures["distortion"])
    assert all(value.shape == (2,) and value.isfinite().all() for value in figures.values())
    assert made.shape == batch.images_BCHW.shape and made.min() >= 0 and made.max() <= 1


def test_a_drawn_sample_takes_its_pixels_noise_from_the_end_of_its_latent() -> None:
    model, network = make(likelihood="gaussian", decode="draw", scale=0.05)
    assert model.latent_size == 32 + 64
    z, labels = torch.randn(1, model.latent_size), torch.tensor([1])
    mean = network.decode(z[:, :32], labels)
    expected = (mean + 0.05 * z[:, 32:].reshape(1, 1, 8, 8)).clamp(0, 1)
    torch.testing.assert_close(model.decode(network, z, labels), expected)


def test_the_likelihood_is_above_the_elbo_and_what_the_bound_says() -> None:
    model, network = make()
    batch = batch_of(16)
    figures = model.image_figures(network, batch.images_BCHW, batch.labels_B, noise_of(batch))
    found = model.log_likelihood(network, batch.images_BCHW, batch.labels_B, noise_of(batch), num_draws=50)
    assert found.mean() > -figures["negative_elbo"].mean()
    expected = bounds.log_likelihood(network, batch.images_BCHW, batch.labels_B, noise_of(batch), 50, chunk=7)
    torch.testing.assert_close(found, expected)


def test_the_likelihood_of_binarised_images_is_of_black_and_white_ones() -> None:
    model, network = make(binarize="dynamic")
    batch = batch_of(4)
    noise = noise_of(batch)
    drawn = (noise.uniform(1, 8, 8) < batch.images_BCHW).float()
    expected = bounds.log_likelihood(network, drawn, batch.labels_B, noise, 5)
    found = model.log_likelihood(network, batch.images_BCHW, batch.labels_B, noise_of(batch), num_draws=5)
    torch.testing.assert_close(found, expected)


def test_what_a_likelihood_is_of_is_said() -> None:
    assert make()[0].observes == families.Observes("Bernoulli")
    assert make(likelihood="logistic_mixture")[0].observes.bits == 0
    assert make(likelihood="gaussian")[0].observes.bits == pytest.approx(7.994353, rel=1e-6)


def test_scale_is_a_parameter_only_where_it_is_learned() -> None:
    def has_scale(**options: Any) -> bool:
        return "log_scale" in dict(make(**options)[1].named_parameters())

    assert has_scale(likelihood="gaussian")
    assert has_scale(likelihood="gaussian", depth=2)
    assert not has_scale(likelihood="gaussian", learn_scale=False)
    assert not has_scale(likelihood="bernoulli")


def test_learned_scale_is_drawn_to_the_error_of_the_reconstruction() -> None:
    """The gradient is pixels - squared error / scale^2: zero where the scale is the root mean square error."""
    _, network = make(likelihood="gaussian", scale=0.3)
    assert isinstance(network, vae.Vae)
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    terms: Terms = network(images, labels, torch.zeros(4, 1, 32))
    scale = dict(network.named_parameters())["log_scale"]
    (gradient,) = torch.autograd.grad(terms.distortion_BK.mean(), scale)
    with torch.no_grad():
        error = (network.decode(network.encode(images, labels)[0], labels) - images).square().sum() / 4
    torch.testing.assert_close(gradient, (64 - error / 0.3**2).reshape(1))


def test_decoded_image_is_the_mean_of_the_likelihood() -> None:
    model, network = make()
    z_BZ, labels_B = families.latents([1, 2], model.latent_size), torch.tensor([0, 2])
    expected = Bernoulli(logits=network.decode(z_BZ, labels_B)).mean
    torch.testing.assert_close(model.decode(network, z_BZ, labels_B), expected)


def test_optimizer_follows_the_config() -> None:
    model, _ = make(lr=0.5, lr_warmup_steps=3, lr_decay="none")
    assert model.optimizers["vae"] == Adam(lr=0.5, warmup_steps=3, decay="none")


def test_the_default_network_keeps_its_weights_names_so_that_old_releases_open() -> None:
    _, network = make(DataShape(1, 28, 28, 10))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["down.0.weight"] == (16, 1, 4, 4) and shapes["up.3.weight"] == (16, 1, 4, 4)
    assert shapes["encoder.first.weight"] == (512, 32 * 7 * 7) and shapes["decoder.classes.weight"] == (10, 512)
    assert shapes["encoder.rest.3.weight"] == (64, 512) and shapes["log_scale"] == (1,)
    assert len(shapes) == 8 + 2 * 7 + 1


def test_hidden_layers_of_the_papers_table_stand_mirrored() -> None:
    _, network = make(DataShape(1, 28, 28, 0), network="mlp", hidden=[200, 100], latent_size=50)
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(200, 784), (100, 200), (100, 100), (100, 50), (200, 100), (784, 200)]


@pytest.mark.parametrize(
    ("preset", "side", "channels", "depth", "millions"),
    [
        ("tiny", 28, 1, 1, 2.21),
        ("tiny", 28, 1, 6, 1.62),
        ("base", 28, 1, 1, 6.41),
        ("base", 64, 3, 6, 8.77),
        ("large", 8, 1, 1, 46.05),
    ],
)
def test_presets_have_the_parameters_that_the_docstring_states(
    preset: str, side: int, channels: int, depth: int, millions: float
) -> None:
    _, network = make(DataShape(channels, side, side, 10), preset=preset, depth=depth)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": [10]}, "hidden is used with network: mlp only"),
        ({"latent_channels": 4}, "latent_channels is used with depth: 2 or more"),
        ({"depth": 2, "latent_size": 4}, r"latent_size is used with depth: 1 \(set latent_channels\)"),
        ({"mixture_components": 4}, "mixture_components is used with likelihood: logistic_mixture"),
        ({"scale_per_pixel": True}, "scale_per_pixel is used with likelihood: gaussian"),
        ({"likelihood": "gaussian", "binarize": "dynamic"}, "binarize: dynamic needs likelihood: bernoulli"),
        ({"network": "mlp", "depth": 2}, "depth above 1 needs network: conv"),
        ({"importance_samples": 5, "free_bits": 1.0}, "free_bits belong to the ELBO"),
        ({"importance_samples": 0}, r"importance_samples: .*greater than or equal to 1.*got 0"),
        ({"depth": "deep"}, r"depth: .*got 'deep'"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"models\.m.*{message}"):
        families.check_model("vae", options, "models.m")


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"network": "mlp", "hidden": [64], "importance_samples": 5, "binarize": "dynamic"}, 250),
        ({"depth": 2, "latent_channels": 4, "free_bits": 0.1}, 90),
        ({"likelihood": "logistic_mixture", "mixture_components": 3}, 100),
    ],
    ids=str,
)
def test_a_moment_of_training_on_digits_lowers_the_bound_and_uses_the_latents(
    options: dict[str, Any], steps: int
) -> None:
    images = torch.from_numpy(load_digits().data / 16).float().reshape(-1, 1, 8, 8)
    model, network = make(DataShape(1, 8, 8, 0), kl_warmup_steps=0, **options)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def batch_at(start: int, size: int) -> Batch:
        return Batch(images[start : start + size], torch.zeros(size, dtype=torch.int64), torch.arange(size), size)

    def figures() -> dict[str, float]:
        batch = batch_at(1500, 256)
        with torch.no_grad():
            found = model.image_figures(network, batch.images_BCHW, batch.labels_B, noise_of(batch))
        return {name: values.mean().item() for name, values in found.items()}

    before = figures()
    for step in range(steps):
        batch = batch_at(step * 64 % 1472, 64)
        loss, _ = model.phases[0].loss(model.networks, batch, noise_of(batch, step), step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    after = figures()
    assert after["negative_elbo"] < 0.85 * before["negative_elbo"]
    assert after["rate"] > 0.2
