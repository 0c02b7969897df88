"""What every family promises to the training loop."""

import pytest
import torch
from torch import Tensor

from pipeline.errors import RecipeError
from trainers import families
from trainers.families import Adam, Batch, DataShape, Model, Noise

SHAPES = [DataShape(1, 8, 8, 10), DataShape(3, 32, 32, 10), DataShape(1, 28, 28, 0), DataShape(3, 15, 21, 2)]


def batch_of(shape: DataShape, size: int) -> Batch:
    generator = torch.Generator().manual_seed(7)
    images_BCHW = torch.rand(size, shape.channels, shape.height, shape.width, generator=generator)
    labels_B = torch.arange(size) % max(shape.num_classes, 1)
    return Batch(images_BCHW, labels_B, torch.arange(size), size)


def make(family: str, shape: DataShape, seed: int = 0) -> Model:
    return families.build(family, families.parse_config(family, {}, "models.m"), shape, seed)


def weights(model: Model) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": tensor
        for name, network in model.networks.items()
        for key, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", families.names())
def test_each_phase_gives_a_finite_loss_and_every_parameter_of_its_network_a_gradient(
    family: str, shape: DataShape
) -> None:
    model = make(family, shape)
    batch = batch_of(shape, 6)
    for index, phase in enumerate(model.phases):
        for name, network in model.networks.items():
            network.requires_grad_(name == phase.network)
        noise = Noise(0, 3, index, batch.rows_B, batch.global_size)
        loss, metrics = phase.loss(model.networks, batch, noise, 3)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert loss.shape == () and loss.isfinite()
        assert all(not value.requires_grad and value.shape == () for value in metrics.values())
        for name, network in model.networks.items():
            got = {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
            assert got == (set(dict(network.named_parameters())) if name == phase.network else set())
        model.networks[phase.network].zero_grad()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", families.names())
def test_decode_gives_images_in_range_that_depend_on_latent_and_class(family: str, shape: DataShape) -> None:
    model = make(family, shape)
    z_BZ = 30 * families.latents(range(5), model.latent_size)  # far out: the range must hold there too
    labels_B = torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        images = model.decode(model.networks[model.sampler], z_BZ, labels_B)
        if shape.num_classes:
            others = model.decode(model.networks[model.sampler], z_BZ, labels_B + 1)
            assert not torch.equal(images, others)
    assert images.shape == (5, shape.channels, shape.height, shape.width)
    assert images.min() >= 0 and images.max() <= 1
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("family", families.names())
def test_initial_weights_depend_on_the_seed_only(family: str) -> None:
    first = make(family, SHAPES[0], seed=5)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again, other = make(family, SHAPES[0], seed=5), make(family, SHAPES[0], seed=6)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(t, weights(again)[name]) for name, t in weights(first).items())
    assert any(not torch.equal(t, weights(other)[name]) for name, t in weights(first).items())


@pytest.mark.parametrize("family", families.names())
def test_loss_of_a_global_batch_is_the_mean_over_its_parts(family: str) -> None:
    model, whole = make(family, SHAPES[0]), batch_of(SHAPES[0], 8)
    for index, phase in enumerate(model.phases):

        def loss_of(batch: Batch, index: int = index) -> Tensor:
            noise = Noise(0, 2, index, batch.rows_B, batch.global_size)
            return model.phases[index].loss(model.networks, batch, noise, 2)[0].detach()

        parts = [
            loss_of(Batch(whole.images_BCHW[rows], whole.labels_B[rows], rows, 8)) for rows in torch.arange(8).chunk(2)
        ]
        torch.testing.assert_close(loss_of(whole), torch.stack(parts).mean(), msg=phase.name)


@pytest.mark.parametrize("family", families.names())
def test_unknown_field_and_wrong_value_are_refused_with_the_choices(family: str) -> None:
    with pytest.raises(RecipeError, match=r"models\.m\.latents: .* fields of .*latent_size"):
        families.check_model(family, {"latents": 3}, "models.m")
    with pytest.raises(RecipeError, match=r"models\.m\.preset: .*'tiny'.*got 'huge'"):
        families.check_model(family, {"preset": "huge"}, "models.m")
    with pytest.raises(RecipeError, match=r"models\.m\.lr: .*got -1"):
        families.check_model(family, {"lr": -1}, "models.m")


def test_unknown_family_is_refused_with_the_choices() -> None:
    with pytest.raises(RecipeError, match=r"models\.m\.family: expected one of gan, vae, vaegan, got 'flow'"):
        families.check_model("flow", {}, "models.m")


def test_a_row_meets_the_same_noise_on_any_number_of_workers() -> None:
    whole = Noise(1, 2, 0, torch.arange(6), 6)
    normal, uniform, integers = whole.normal(3), whole.uniform(2), whole.integers(10)
    part = Noise(1, 2, 0, torch.tensor([4, 1]), 6)
    assert torch.equal(part.normal(3), normal[[4, 1]])
    assert torch.equal(part.uniform(2), uniform[[4, 1]])
    assert torch.equal(part.integers(10), integers[[4, 1]])
    assert not torch.equal(Noise(1, 2, 1, torch.arange(6), 6).normal(3), normal)
    assert not torch.equal(Noise(1, 3, 0, torch.arange(6), 6).normal(3), normal)


def test_a_latent_is_made_again_from_its_seed_alone() -> None:
    assert torch.equal(families.latents([3, 8], 4)[1], families.latents([8], 4)[0])
    assert families.latents([], 4).shape == (0, 4)


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    adam = Adam(lr=2.0, warmup_steps=4, decay="cosine")
    assert adam.lr_at(0, 100) == pytest.approx(0.5)
    assert adam.lr_at(50, 100) == pytest.approx(1.0)
    assert adam.lr_at(100, 100) == pytest.approx(0.0)
    assert Adam(lr=2.0).lr_at(77, 100) == 2.0


@pytest.mark.parametrize("options", [{}, {"likelihood": "gaussian"}], ids=str)
def test_every_parameter_has_a_dimension_as_deepspeed_asks(options: dict[str, str]) -> None:
    for family in families.names() if not options else ["vae"]:
        model = families.build(family, families.parse_config(family, options, "models.m"), SHAPES[0], 0)
        for network in model.networks.values():
            assert all(parameter.dim() for parameter in network.parameters()), family
