"""The model's costs against numbers worked out by hand, and against a real step."""

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from pipeline.errors import RecipeError
from trainers import families, summary
from trainers.engine import TorchEngine
from trainers.families import Batch, DataShape, Noise
from trainers.summary import CountFlops, CountSaved, network_cost, summarise

SHAPE = DataShape(channels=1, height=8, width=8, num_classes=0)
PIXELS, HIDDEN, LATENT, BATCH = 64, 16, 4, 6
MLP: dict[str, Any] = {"network": "mlp", "hidden": [HIDDEN], "latent_size": LATENT}


def test_parameters_and_flops_of_an_mlp_by_hand() -> None:
    found = summarise("vae", MLP, SHAPE, BATCH)
    products = [(PIXELS, HIDDEN), (HIDDEN, 2 * LATENT), (LATENT, HIDDEN), (HIDDEN, PIXELS)]
    assert found.parameters == sum(a * b + b for a, b in products)
    # Forward, gradient of the weights, gradient of the inputs: 2ab each; no gradient goes back into the image.
    flops = sum(3 * 2 * a * b for a, b in products) - 2 * PIXELS * HIDDEN
    assert found.flops_per_image == flops
    assert found.flops_per_step == flops * BATCH


def test_bytes_of_an_mlp_by_hand() -> None:
    found = summarise("vae", MLP, SHAPE, BATCH)
    (network,) = found.networks
    weights = 4 * found.parameters
    assert (network.gradients, network.adam) == (weights, 2 * weights)
    assert network.weights == network.average == weights + 4  # the Gaussian's scale is a buffer here
    assert found.memory == network.total + found.activations


def test_zero_spreads_what_its_stages_name() -> None:
    network = nn.Linear(30, 40, bias=False)
    size = 4 * 30 * 40
    held = {stage: network_cost("n", network, False, workers=4, zero=stage) for stage in (0, 1, 2, 3)}
    found = {stage: (one.weights, one.gradients, one.adam) for stage, one in held.items()}
    assert found[0] == (size, size, 2 * size)
    assert found[1] == (size, size, 3 * size // 4)
    assert found[2] == (size, size // 4, 3 * size // 4)
    assert found[3] == (size // 4, size // 4, 3 * size // 4)


def test_a_real_step_keeps_what_is_stated() -> None:
    config = families.parse_config("gan", {}, "gan")
    model = families.build("gan", config, SHAPE, 0)
    rows_B = torch.arange(BATCH)
    batch = Batch(torch.rand(BATCH, 1, 8, 8), torch.zeros(BATCH, dtype=torch.int64), rows_B, BATCH)
    stated = summarise("gan", {}, SHAPE, BATCH)
    for phase, cost, network in zip(model.phases, stated.phases, reversed(stated.networks), strict=True):
        module = model.networks[phase.network]
        engine = TorchEngine(module, model.optimizers[phase.network])
        for name, other in model.networks.items():
            other.requires_grad_(name == phase.network)
        gradients = watched_gradients(engine)
        with CountFlops() as counted:
            loss, _ = phase.loss(model.networks, batch, Noise(0, 1, 0, rows_B, BATCH), 1)
            engine.step(loss, 1e-3)
        assert counted.total == cost.flops_per_image * BATCH
        assert network.name == phase.network
        assert network.weights == size_of(module.parameters())
        assert [network.gradients] == gradients
        moments = [state[key] for state in engine.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
        assert network.adam == size_of(moments)


def watched_gradients(engine: TorchEngine) -> list[int]:
    """Filled with the bytes of the gradients at each step, which leaves none behind."""
    sizes: list[int] = []
    engine.optimizer.register_step_pre_hook(
        lambda *_: sizes.append(size_of(p.grad for p in engine.module.parameters()))
    )
    return sizes


def size_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (4, False), (4, True), (1, True)])
def test_flops_of_a_convolution_by_hand(groups: int, transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(8, 12, 3, stride=2, padding=1, groups=groups, bias=False)
    x_BCHW = torch.rand(2, 8, 10, 10, requires_grad=True)
    with CountFlops() as counted:
        out = layer(x_BCHW)
        forward = counted.total
        out.sum().backward()
    positions = 10 * 10 if transposed else 5 * 5
    assert forward == 2 * 2 * positions * 9 * 8 * 12 // groups
    assert counted.total == 3 * forward


def test_flops_of_a_gradient_penalty_by_hand() -> None:
    first, second = nn.Linear(5, 7, bias=False), nn.Linear(7, 1, bias=False)
    x = torch.rand(3, 5, requires_grad=True)
    with CountFlops() as counted:
        out = second(first(x))
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        before = counted.total
        gradient.square().sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    forward = 2 * 3 * (5 * 7 + 7)
    assert before == 2 * forward  # forward, and back to the image
    # Back through the way back to the image: for each of its two products two gradients, but the first one's input
    # (ones) needs none.
    assert counted.total - before == 2 * forward - 2 * 3 * 7


def test_activations_are_what_autograd_keeps() -> None:
    layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    saved = CountSaved()
    with saved:
        loss = layers(torch.rand(3, 5)).sum()
    weights = 4 * 7 * 1  # of the last layer; nothing goes back beyond the first
    assert sum(saved.bytes_of.values()) == 4 * 3 * 5 + 4 * 3 * 7 + weights
    assert isinstance(loss, Tensor)


def test_activations_grow_with_a_workers_part_of_the_batch() -> None:
    small, large = summarise("gan", {}, SHAPE, 8), summarise("gan", {}, SHAPE, 16)
    assert 1.9 < large.activations / small.activations < 2.1
    assert summarise("gan", {}, SHAPE, 16, workers=2).activations == small.activations


@pytest.mark.parametrize("preset", ["tiny", "base", "large"])
@pytest.mark.parametrize("family", families.names())
def test_every_family_states_its_costs(family: str, preset: str) -> None:
    found = summarise(family, {"preset": preset}, DataShape(3, 32, 32, 10), 8)
    assert all(phase.flops_per_image > 0 and phase.activations > 0 for phase in found.phases)
    assert all(f"{one.name} {one.parameters / 1e6:.2f} M" in summary.line(found) for one in found.networks)
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        console.print(summary.table(found))
    shown = captured.get()
    for name in [network.name for network in found.networks] + [phase.name for phase in found.phases]:
        assert name in shown
    assert f"{found.flops_per_step / 1e9:,.2f}" in shown


def test_options_that_the_family_refuses_are_refused() -> None:
    with pytest.raises(RecipeError, match="preset"):
        summarise("vae", {"preset": "huge"}, SHAPE, 8)
