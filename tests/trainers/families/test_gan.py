"""The GAN's phases: penalties, packs, adaptive augmentation, and every kind of network."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import RecipeError
from trainers import adversarial, families
from trainers.families import Batch, DataShape, Model, Noise, gan
from trainers.networks.players import Discriminator, packed

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
        return adversarial.gradient_penalty(discriminator(leaf, labels[:, None]), leaf)

    step = 1e-6
    squares = 0.0
    with torch.no_grad():
        for image in range(2):
            for pixel in range(64):
                moved = torch.zeros_like(images)
                moved[image].view(-1)[pixel] = step
                up, down = (discriminator(images + sign * moved, labels[:, None])[image] for sign in (1, -1))
                squares += ((up - down) / (2 * step)).item() ** 2
    assert penalty().item() == pytest.approx(squares / 2, rel=1e-5)

    weight = dict(discriminator.named_parameters())["trunk.dense.0.weight"]
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


def test_discriminator_logit_is_the_projection_on_the_class() -> None:
    network = make().networks["discriminator"]
    assert isinstance(network, Discriminator) and network.classes is not None
    images = 2 * batch_of(4).images_BCHW - 1
    features = network.trunk(images)
    labels = torch.tensor([2, 0, 1, 1])
    inner = (features * network.classes.weight[labels]).sum(1)
    torch.testing.assert_close(network(images, labels[:, None]), network.logit(features).squeeze(1) + inner)


def test_perturbed_penalty_is_near_the_exact_one_in_the_mean_over_noise() -> None:
    model, exact = make(penalty="perturbed", penalty_sigma=1e-3), make()
    discriminator = LinearDiscriminator()
    networks = {"generator": model.networks["generator"], "discriminator": discriminator}
    _, expected = phase_loss(exact, 0, networks)
    batch = batch_of(6)
    found = []
    for step in range(400):
        noise = Noise(0, step, 0, batch.rows_B, 6)
        found.append(model.phases[0].loss(networks, batch, noise, step)[1]["r1"].item())
    assert sum(found) / 400 == pytest.approx(expected["r1"].item(), rel=0.1)


def test_only_the_exact_penalty_needs_a_double_backward() -> None:
    """A backward pass that is itself differentiated runs with gradients on: sharded engines cannot follow it."""
    differentiated: list[bool] = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
            differentiated.append(torch.is_grad_enabled())
            return gradient

    class Watched(LinearDiscriminator):
        def forward(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            logits_B: Tensor = Watch.apply(super().forward(images_BCHW, labels_B))  # type: ignore[no-untyped-call]
            return logits_B

    networks = {"generator": make().networks["generator"], "discriminator": Watched()}
    for penalty, expected in (("perturbed", {False}), ("exact", {False, True})):
        phase_loss(make(penalty=penalty), 0, networks)[0].backward()  # type: ignore[no-untyped-call]  # as above
        assert set(differentiated) == expected
        differentiated.clear()


def test_penalties_decay_geometrically() -> None:
    config = gan.Config(r1_gamma=2.0, r2_gamma=0.5, gamma_decay=0.01, gamma_decay_steps=100)
    assert config.gammas(0) == {"r1": 2.0, "r2": 0.5}
    assert config.gammas(50) == pytest.approx({"r1": 0.2, "r2": 0.05})
    assert config.gammas(100) == config.gammas(500) == pytest.approx({"r1": 0.02, "r2": 0.005})
    assert gan.Config().gammas(1000) == {"r1": 1.0, "r2": 1.0}


def test_packs_are_rows_that_follow_each_other() -> None:
    images_BCHW = torch.arange(4 * 2 * 3).view(4, 2, 1, 3)
    packs = packed(images_BCHW, 2)
    assert packs.shape == (2, 4, 1, 3)
    assert torch.equal(packs[1], torch.cat([images_BCHW[2], images_BCHW[3]]))
    assert packed(torch.tensor([5, 6, 7, 8]), 2).tolist() == [[5, 6], [7, 8]]
    with pytest.raises(ValueError, match=r"4 images, got 3; choose another batch_size"):
        packed(images_BCHW, 3)


def test_packed_discriminator_judges_images_together() -> None:
    model = make(pack=3)
    network = model.networks["discriminator"]
    images_PCHW, labels_PM = torch.rand(2, 3, 8, 8), torch.tensor([[0, 1, 2], [1, 1, 1]])
    before = network(images_PCHW, labels_PM)
    other_image, other_class = images_PCHW.clone(), labels_PM.clone()
    other_image[0, 2] = 0
    other_class[0, 2] = 1
    for changed in (network(other_image, labels_PM), network(images_PCHW, other_class)):
        assert changed[0] != before[0] and torch.equal(changed[1], before[1])
    assert torch.allclose(network(images_PCHW, labels_PM[:, [2, 0, 1]]), before)  # classes are a set
    for phase in (0, 1):
        assert phase_loss(model, phase)[0].isfinite()


def test_adaptive_augmentation_follows_the_sign_of_overfitting() -> None:
    model = make(ada_target=0.5, ada_images=60, loss="non_saturating", r1_gamma=0, r2_gamma=0)
    discriminator = model.networks["discriminator"]
    assert isinstance(discriminator, Discriminator) and "chance" in discriminator.state_dict()
    assert discriminator.logit.bias is not None
    with torch.no_grad():
        for bias, expected in ((100.0, [0.1, 0.2]), (-100.0, [0.1, 0.0, 0.0])):
            discriminator.logit.bias.fill_(bias)
            for chance in expected:
                _, metrics = phase_loss(model, 0)
                assert metrics["overfitting"] == (1.0 if bias > 0 else -1.0)
                assert discriminator.chance.item() == pytest.approx(chance, abs=1e-6)
                assert metrics["augment_chance"] == discriminator.chance


def test_augmented_images_reach_the_discriminator_only_where_the_chance_is_not_zero() -> None:
    model, plain = make(ada_target=0.6), make()
    model.networks["discriminator"].load_state_dict(plain.networks["discriminator"].state_dict(), strict=False)
    unchanged, _ = phase_loss(model, 0)
    model.networks["discriminator"].get_buffer("chance").fill_(0.8)
    changed, _ = phase_loss(model, 0)
    expected = phase_loss(plain, 0)[0]
    torch.testing.assert_close(unchanged, expected)
    assert not torch.allclose(changed, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "base"},
        {"network": "mlp", "output": "linear"},
        {"loss": "hinge", "pack": 2},
        {"loss": "wgan", "penalty": "perturbed"},
        {"ada_target": 0.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [SHAPE, DataShape(3, 15, 21, 0), DataShape(2, 1, 1, 0)], ids=str)
def test_every_variant_trains_and_makes_images(options: dict[str, object], shape: DataShape) -> None:
    """After a first step, which leaves the zeros that a residual block starts with, every parameter is trained."""
    model = families.build("gan", gan.Config.model_validate(options), shape, 0)
    images = torch.rand(6, shape.channels, shape.height, shape.width, generator=torch.Generator().manual_seed(3))
    batch = Batch(images, torch.arange(6) % max(1, shape.num_classes), torch.arange(6), 6)
    optimizers = {name: torch.optim.SGD(network.parameters(), lr=1e-2) for name, network in model.networks.items()}
    for step in range(2):
        for index, phase in enumerate(model.phases):
            for name, network in model.networks.items():
                network.requires_grad_(name == phase.network)
            loss, metrics = phase.loss(model.networks, batch, Noise(0, step, index, batch.rows_B, 6), step)
            optimizers[phase.network].zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            assert loss.isfinite() and all(value.shape == () for value in metrics.values())
            if step:
                idle = [name for name, p in model.networks[phase.network].named_parameters() if not p.grad.any()]  # type: ignore[union-attr]  # it has one after backward
                # At the hinge's start both margins pull the bias with the same force.
                assert set(idle) <= {"logit.bias"} and (not idle or options["loss"] == "hinge")
            optimizers[phase.network].step()
    with torch.no_grad():
        z_BZ, labels_B = families.latents(range(3), model.latent_size), torch.zeros(3, dtype=torch.int64)
        made = model.decode(model.networks["generator"], z_BZ, labels_B)
        far = model.decode(model.networks["generator"], 30 * z_BZ, labels_B)
    assert made.shape == (3, shape.channels, shape.height, shape.width)
    assert far.min() >= 0 and far.max() <= 1 and not torch.equal(made[0], made[1])


@pytest.mark.parametrize("preset", ["base", "large"])
@pytest.mark.parametrize("side", [8, 32, 256])
def test_residual_networks_keep_the_signal_at_any_depth(preset: str, side: int) -> None:
    """Without normalisation: at first, images and features have a size near one whatever the resolution."""
    with torch.device("meta" if side == 256 else "cpu"):
        model = families.build("gan", gan.Config.model_validate({"preset": preset}), DataShape(3, side, side, 0), 0)
        count = 1 if side == 256 else 8
        z_BZ, labels_B = torch.randn(count, 64), torch.zeros(count, dtype=torch.int64)
    generator, discriminator = model.networks["generator"], model.networks["discriminator"]
    with torch.no_grad():
        images = generator(z_BZ, labels_B)
        logits = discriminator(images, labels_B[:, None])
    assert images.shape == (count, 3, side, side) and logits.shape == (count,)
    if side != 256:  # meta tensors have shapes only: 256 pixels would take long here
        assert 0.2 < images.std() < 3
        assert 0.2 < discriminator.get_submodule("trunk")(images).std() < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "mlp", "preset": "base"}, "preset is used with network: conv only"),
        ({"hidden": [10, 10]}, "hidden is used with network: mlp only"),
        ({"penalty_sigma": 0.1}, "penalty_sigma is used with penalty: perturbed only"),
        ({"ada_images": 1000}, "ada_images is used with ada_target above 0 only"),
        ({"gamma_decay": 0.1}, "gamma_decay is used with gamma_decay_steps above 0 only"),
        ({"network": "mlp", "hidden": [10]}, "at least 2 items"),
        ({"loss": "wasserstein"}, "'wgan'"),
    ],
)
def test_fields_that_would_be_ignored_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        families.check_model("gan", options, "models.m")


@pytest.mark.parametrize("loss", ["relativistic", "non_saturating"])
def test_overfitting_is_counted_on_real_images(loss: str) -> None:
    """Mean sign of real logits: twice their accuracy less one, whichever the loss calls accuracy."""
    _, metrics = phase_loss(make(ada_target=0.6, loss=loss), 0)
    accuracy = metrics["pair_accuracy" if loss == "relativistic" else "real_accuracy"]
    torch.testing.assert_close(metrics["overfitting"], 2 * accuracy - 1)
    assert metrics["overfitting"] != 0
