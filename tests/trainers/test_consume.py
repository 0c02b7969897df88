"""A real release in its consumer's hands: torch makes the published images again, onnxruntime nearly, and
huggingface_hub loads the folder as it is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from pipeline import releases
from pipeline.artifacts import Release, file_entry
from pipeline.errors import IntegrityError
from pipeline.latents import image_seed
from pipeline.release import runtime
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from tests.trainers.conftest import Digits, small_recipe
from trainers import evaluate, families, launch, sample, sampleset
from trainers.families import DataShape

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["vae", "gan"])
def release(request: pytest.FixtureRequest, digits: Digits) -> Release:
    recipe, settings, model = small_recipe(), Settings.from_environment(), request.param
    run = launch.train(digits.store, recipe, model, digits.dataset, settings, print)
    evaluation = evaluate.evaluate(digits.store, recipe, run, settings, print)
    samples = sampleset.sample_set(digits.store, recipe, run)
    return releases.publish(digits.store, recipe, model, run.ref, evaluation.ref, samples.ref)


@pytest.fixture
def copy(digits: Digits, release: Release, tmp_path: Path) -> Store:
    """The release's folder alone, in a store of its own."""
    store = open_store(f"file://{tmp_path}/store")
    shutil.copytree(digits.store.root / release.ref, tmp_path / "store" / release.ref)  # type: ignore[attr-defined]
    return store


def test_new_images_are_those_of_the_published_set(copy: Store, release: Release) -> None:
    with releases.open(f"{copy.uri}/{release.ref}") as r:
        published = list(r.samples())
        assert r.made_with == sample.made_with()  # torch, which made the set
        assert [one.class_name for one in published[:11]] == [*map(str, range(10)), "0"]
        assert [one.seed for one in published] == [image_seed(0, index) for index in range(30)]
        assert np.array_equal(r.sample(30), np.stack([one.image for one in published]))


def test_onnxruntime_makes_them_too(copy: Store, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    by_torch = releases.open(f"{copy.uri}/{release.ref}").sample(20, classes="7", seed=5)
    monkeypatch.setattr(runtime, "entry_points", lambda **_: [])
    r = releases.open(f"{copy.uri}/{release.ref}")
    assert np.abs(r.sample(20, classes="7", seed=5).astype(int) - by_torch).max() <= 1
    assert r.made_with.startswith("onnxruntime")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "expected config.json and model.safetensors of a release, got "),
        (lambda data: (2**62).to_bytes(8, "little") + data[8:], "expected config.json and model.safetensors"),
        (lambda data: b"\x80\x04cos\nsystem\n", "expected config.json and model.safetensors"),
        (lambda data: data.replace(b'"F32"', b'"F64"', 1), "expected config.json and model.safetensors"),
        (lambda data: data[:-4000] + np.full(1000, np.nan, "<f4").tobytes(), "expected images of finite values"),
    ],
)
def test_broken_or_hostile_weights_are_one_line(copy: Store, release: Release, damage: Any, message: str) -> None:
    """Their digests are right: whoever published them made them so."""
    weights = damage(copy.get(f"{release.ref}/model.safetensors"))
    copy.put(f"{release.ref}/model.safetensors", weights)
    changed = file_entry("model.safetensors", weights)
    files = tuple(changed if entry.name == changed.name else entry for entry in release.files)
    copy.put(f"{release.ref}/manifest.json", release.model_copy(update={"files": files}).to_bytes())
    with pytest.raises(IntegrityError, match=message) as caught:
        releases.open(f"{copy.uri}/{release.ref}").sample(2)
    assert "\n" not in str(caught.value)


class Network(nn.Module, PyTorchModelHubMixin):  # type: ignore[misc]  # it ships no types that mypy is shown
    """What a user of huggingface_hub writes around a release: its configuration builds it."""

    def __init__(
        self, family: str, options: dict[str, Any], channels: int, height: int, width: int, classes: list[str]
    ) -> None:
        super().__init__()
        shape = DataShape(channels, height, width, len(classes))
        self.model = families.build(family, families.parse_config(family, options, "here"), shape, seed=1)
        self.network = self.model.networks[self.model.sampler]

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """The file names the network's tensors without a prefix."""
        return self.network.load_state_dict(state_dict, strict, assign)

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        return self.model.decode(self.network, z_BZ, labels_B).clamp(0, 1)


def test_the_folder_loads_as_one_of_huggingface_hub(copy: Store, release: Release, tmp_path: Path) -> None:
    folder = tmp_path / "store" / release.ref
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == release.license and card.data.to_dict()["model-index"]
    network = Network.from_pretrained(str(folder)).eval()
    z_BZ, labels_B = families.latents([image_seed(0, 0), image_seed(0, 1)], network.model.latent_size), torch.arange(2)
    with torch.inference_mode():
        images = network(z_BZ, labels_B).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, releases.open(f"{copy.uri}/{release.ref}").sample(2))
