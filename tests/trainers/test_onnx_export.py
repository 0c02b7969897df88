"""The ONNX file makes torch's images, for any number of them, without torch, and says nothing of this machine."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline.errors import IntegrityError
from pipeline.latents import latents
from trainers import families, onnx_export
from trainers.export import ExportConfig, Sampler
from trainers.families import DataShape

CASES: list[tuple[str, dict[str, Any], DataShape]] = [
    ("vae", {}, DataShape(1, 8, 8, 3)),
    ("gan", {}, DataShape(1, 8, 8, 3)),
    ("vaegan", {}, DataShape(3, 12, 8, 0)),
    ("vae", {"preset": "base", "depth": 3}, DataShape(3, 8, 8, 0)),
    ("vae", {"likelihood": "logistic_mixture", "decode": "draw"}, DataShape(3, 8, 8, 2)),
]


def sampler(family: str, options: dict[str, Any], shape: DataShape) -> Sampler:
    model = families.build(family, families.parse_config(family, options, "models.x"), shape, seed=3)
    config = ExportConfig(
        family=family,
        options=options,
        channels=shape.channels,
        height=shape.height,
        width=shape.width,
        classes=tuple(f"class {index}" for index in range(shape.num_classes)),
    )
    return Sampler(config, model, model.networks[model.sampler].eval().requires_grad_(False), "here")


@pytest.mark.parametrize(("family", "options", "shape"), CASES)
def test_onnxruntime_makes_the_images_of_torch(family: str, options: dict[str, Any], shape: DataShape) -> None:
    one = sampler(family, options, shape)
    file = onnx_export.to_onnx(one, "here")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 5):  # not the number that it was traced with
        seeds, labels = range(100, 100 + count), np.arange(count) % max(1, shape.num_classes)
        (made,) = session.run(None, {"latent": latents(seeds, one.model.latent_size), "label": labels})
        expected = one.images(families.latents(seeds, one.model.latent_size), torch.from_numpy(labels))
        assert made.shape == (count, shape.channels, shape.height, shape.width)
        assert abs(255 * made - expected.numpy()).max() <= 0.5 + 255 * onnx_export.TOLERANCE
        assert made.std() > 1e-3  # they are no blank images, which would agree too


def test_the_file_says_nothing_of_this_machine_and_is_the_same_again() -> None:
    one = sampler(*CASES[1])
    file = onnx_export.to_onnx(one, "here")
    onnx.checker.check_model(onnx.load_from_string(file), full_check=True)
    assert str(Path(__file__).parents[2]).encode() not in file and b".py" not in file
    assert onnx_export.to_onnx(one, "here") == file


def test_a_file_of_another_network_is_refused() -> None:
    one = sampler(*CASES[1])
    file = onnx_export.to_onnx(one, "here")
    with torch.no_grad():
        next(one.network.parameters()).add_(0.5)
    with pytest.raises(IntegrityError, match=r"here: expected model.onnx to make the images of torch"):
        onnx_export.check(file, one, "here")
