"""What the cluster's settings change in how a step is computed, and what they must not change."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.errors import RecipeError
from pipeline.recipe import check_models
from pipeline.sections import ClusterSpec, ModelSpec
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import families
from trainers.engine import TorchEngine
from trainers.families import Batch, Noise
from trainers.meter import Meter
from trainers.precision import of_networks
from trainers.state import State, take_step
from trainers.task import Place, Task

HERE = Place(0, 1, torch.device("cpu"))
BATCH = 12
RESIDUAL: list[dict[str, object]] = [
    {"family": "vae", "preset": "base"},
    {"family": "vae", "preset": "tiny", "depth": 3},
    {"family": "gan", "preset": "base"},  # whose penalties differentiate the recomputed blocks twice
]


def task_of(digits: Digits, model: dict[str, object], **cluster: object) -> Task:
    spec = ModelSpec.model_validate({"steps": 50, "batch_size": BATCH, **model})
    local = ClusterSpec.model_validate({"launcher": "local", "engine": "torch", **cluster})
    recipe = small_recipe().model_copy(update={"models": {"m": spec}, "cluster": local})
    return Task(digits.store, recipe, "m", digits.dataset, "states", node_cache())


def batch_of(step: int) -> Batch:
    random = torch.Generator().manual_seed(step)
    images_BCHW = torch.rand(BATCH, 1, 8, 8, generator=random)
    return Batch(images_BCHW, torch.randint(10, (BATCH,), generator=random), torch.arange(BATCH), BATCH)


def trained(task: Task, steps: int = 3) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and mean metrics after some steps."""
    state = State(task, HERE, TorchEngine)
    meter = Meter(task, HERE, lambda line: None, state.metrics)
    for step in range(steps):
        take_step(state, batch_of(step), task.spec, HERE, meter)
        state.step += 1
        meter.due(state.step)
    meter.read(state.step)
    return dict(state.checkpoint().tensors), meter.lines[-1]


@pytest.mark.parametrize("model", RESIDUAL, ids=str)
def test_recomputed_blocks_train_the_same_weights(digits: Digits, model: dict[str, object]) -> None:
    plain, _ = trained(task_of(digits, model))
    again, _ = trained(task_of(digits, model, checkpoint_activations=True))
    assert plain.keys() == again.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, again[name]), name


def test_recomputed_blocks_are_not_kept_in_memory(digits: Digits) -> None:
    def kept(task: Task) -> int:
        """Bytes that a forward keeps for its backward."""
        state = State(task, HERE, TorchEngine)
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = batch_of(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            held, _ = state.loss(0, batch, Noise(0, 0, 0, batch.rows_B, BATCH))
        assert held.requires_grad
        return sum(seen.values())

    plain = task_of(digits, RESIDUAL[0])
    parameters = sum(4 * p.numel() for p in State(plain, HERE, TorchEngine).networks["vae"].parameters())
    without = kept(plain) - parameters
    with_it = kept(task_of(digits, RESIDUAL[0], checkpoint_activations=True)) - parameters
    assert with_it < 0.7 * without, (with_it, without)


def test_recomputing_without_residual_blocks_is_refused(digits: Digits) -> None:
    with pytest.raises(RecipeError, match="checkpoint_activations: expected networks with residual blocks"):
        State(task_of(digits, {"family": "gan"}, checkpoint_activations=True), HERE, TorchEngine)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.parametrize("model", [{"family": "vae"}, {"family": "gan", "penalty": "perturbed"}], ids=str)
def test_compiled_networks_train_the_same_weights(digits: Digits, model: dict[str, object]) -> None:
    plain, _ = trained(task_of(digits, model))
    compiled, _ = trained(task_of(digits, model, compile=True))
    for name, tensor in plain.items():
        if not name.startswith("optimizer/"):
            assert (compiled[name] - tensor).norm() <= 1e-3 * tensor.norm().clamp(min=1e-2), name


@pytest.mark.parametrize("model", [{"family": "vae"}, {"family": "gan"}, {"family": "gan", "loss": "wgan"}], ids=str)
def test_bfloat16_networks_train_float32_weights_by_float32_losses(digits: Digits, model: dict[str, object]) -> None:
    _, plain = trained(task_of(digits, model, precision="fp32"), steps=1)
    weights, reduced = trained(task_of(digits, model, precision="bf16"), steps=1)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert reduced != plain  # it was bfloat16
    for name, value in plain.items():
        if not name.endswith("accuracy"):
            assert reduced[name] == pytest.approx(value, rel=0.05, abs=0.01), name


def test_a_perturbed_penalty_is_float32_in_bfloat16_networks(digits: Digits) -> None:
    task = task_of(digits, {"family": "gan", "penalty": "perturbed"}, precision="bf16")
    reduced = State(task, HERE, TorchEngine)
    plain = State(replace(task, recipe=task_of(digits, task.spec.model_dump()).recipe), HERE, TorchEngine)
    batch = batch_of(0)
    losses = [state.loss(0, batch, Noise(0, 0, 0, batch.rows_B, BATCH))[1] for state in (reduced, plain)]
    # Of real images it is the same to the last digits: what enters it was never bfloat16.
    torch.testing.assert_close(losses[0]["r1"], losses[1]["r1"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0]["r2"], losses[1]["r2"], rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("family", "options"),
    [("vae", {"likelihood": "gaussian"}), ("vae", {"depth": 3}), ("gan", {"loss": "wgan"}), ("vaegan", {})],
)
def test_losses_are_float32_in_bfloat16_networks(family: str, options: dict[str, object]) -> None:
    shape = families.DataShape(1, 8, 8, 0)  # without classes, whose sums are float32 anyway
    model = families.build(family, families.parse_config(family, options, "m"), shape, 0)
    batch = batch_of(0)
    for index, phase in enumerate(model.phases):
        with of_networks("bf16", HERE.device):
            loss, metrics = phase.loss(model.networks, batch, Noise(0, 0, index, batch.rows_B, BATCH), 0)
        kinds = {name: value.dtype for name, value in metrics.items() if name != "pixel_std"}
        assert {loss.dtype, *kinds.values()} == {torch.float32}, (phase.name, kinds)


def test_automatic_precision_is_float32_on_a_cpu() -> None:
    with of_networks("auto", torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.float32


def test_settings_that_would_not_compute_the_model_are_refused() -> None:
    def check(options: dict[str, object], family: str = "gan", **cluster: object) -> None:
        families.check_model(family, options, "models.m", ClusterSpec.model_validate(cluster))

    with pytest.raises(RecipeError, match=r"cluster.compile: .* choose penalty: perturbed or compile: false"):
        check({}, compile=True)
    with pytest.raises(RecipeError, match=r"cluster.compile: .* choose compile: false"):
        check({}, "vaegan", compile=True)
    with pytest.raises(RecipeError, match=r"cluster.accumulate: .* choose accumulate: 1 or ada_target: 0"):
        check({"ada_target": 0.6}, accumulate=2)
    with pytest.raises(RecipeError, match=r"^recipe:1: cluster.compile: expected false with models.gan"):
        check_models(small_recipe("cluster.compile=true"))
    check({"penalty": "perturbed"}, compile=True)
    check({"r1_gamma": 0, "r2_gamma": 0}, compile=True)
    check({}, accumulate=2)
    check({}, zero=3)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"cluster.accumulate: expected at most 48 with models.vae.*, got 50; lower"):
        check_models(small_recipe("cluster.accumulate=50"))
    check_models(small_recipe("cluster.accumulate=48"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"engine": "torch", "zero": 1}, "choose engine: deepspeed"),
        ({"offload": "cpu"}, "zero: 1, 2 or 3 with offload: cpu"),
        ({"zero": 3, "compile": True}, "compile: false with zero: 3"),
    ],
)
def test_an_engine_refuses_settings_of_another(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterSpec.model_validate(setting)
