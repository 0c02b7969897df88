"""Extractors from files: the same features as the network that was saved; wrong files are refused in one line."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from pipeline.artifacts import file_entry
from pipeline.errors import AtelierError, IntegrityError, UserError
from pipeline.sections import ExtractorSpec
from trainers.extractors.network import ExtractorConfig, ExtractorNet
from trainers.extractors.outside import open_file, prepare
from trainers.extractors.own import ExtractorRecord

IMAGES = torch.randint(0, 256, (70, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Small(nn.Module):
    """Three channels of 16 pixels a side to seven features, with a second output that nobody asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 7, 16)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.convolution(images_BCHW)
        return features, features.sum(1)


def spec_of(path: Path, **fields: Any) -> ExtractorSpec:
    return ExtractorSpec(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **fields)


def torchscript(path: Path) -> nn.Module:
    network = Small().eval()
    torch.jit.save(torch.jit.script(network), str(path))
    return network


def onnx(path: Path) -> nn.Module:
    network = Small().eval()
    example = torch.zeros(2, 3, 16, 16)
    batch = {"images_BCHW": {0: "batch"}}
    torch.onnx.export(network, (example,), str(path), dynamo=False, input_names=["images_BCHW"], dynamic_axes=batch)
    return network


@pytest.mark.parametrize(("save", "name"), [(torchscript, "eyes.pt"), (onnx, "eyes.onnx")])
def test_features_are_those_of_the_network_that_was_saved(
    save: Callable[[Path], nn.Module], name: str, tmp_path: Path
) -> None:
    network = save(tmp_path / name)
    spec = spec_of(tmp_path / name, side=16, channels=3, values="symmetric")
    found = open_file(spec).features(IMAGES)
    with torch.no_grad():
        expected = network(prepare(IMAGES, spec))[0].flatten(1)
    assert found.shape == (70, 7)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(open_file(spec).features(IMAGES.float() / 255), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["extractor.safetensors", "extractor.pt"])
def test_weights_are_read_with_the_record_beside_them(name: str, tmp_path: Path) -> None:
    config = ExtractorConfig(feature_size=5, channels=4)
    network = ExtractorNet((1, 8, 8), 3, config).eval()
    data = save_safetensors(network.state_dict())
    (tmp_path / name).write_bytes(data)
    if name.endswith(".pt"):
        torch.save(network.state_dict(), tmp_path / name)
    with pytest.raises(UserError, match=r"expected extractor.json beside the weights, found none"):
        open_file(spec_of(tmp_path / name))
    record = ExtractorRecord(
        code_version="1", id="1", dataset="datasets/x/1", task="classes", config=config, channels=1, height=8, width=8,
        num_outputs=3, num_train=1, num_test=0, train_accuracy=1.0, test_accuracy=None,
        weights=file_entry("extractor.safetensors", data),
    )  # fmt: skip
    (tmp_path / "extractor.json").write_bytes(record.to_bytes())
    found = open_file(spec_of(tmp_path / name))
    with torch.no_grad():
        torch.testing.assert_close(found.features(IMAGES), network(IMAGES.float() / 255)[0])


def test_images_are_prepared_as_the_recipe_says() -> None:
    white = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)

    def prepared(**fields: Any) -> Tensor:
        return prepare(white, ExtractorSpec(path="x.pt", sha256="0" * 64, **fields))

    assert prepared().shape == (1, 1, 4, 4) and torch.unique(prepared()).tolist() == [1]
    assert prepared(channels=3, side=9).shape == (1, 3, 9, 9)
    assert torch.unique(prepared(values="symmetric")).tolist() == [1]
    assert torch.unique(prepared(values="bytes")).tolist() == [255]
    red, green, blue = prepared(channels=3, values="imagenet")[0, :, 0, 0].tolist()
    assert (red, green, blue) == pytest.approx(((1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225))
    colour = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert prepare(colour, ExtractorSpec(path="x.pt", sha256="0" * 64, channels=1)).item() == pytest.approx(0.5)


def one_line(caught: pytest.ExceptionInfo[AtelierError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_digest_is_refused(tmp_path: Path) -> None:
    torchscript(tmp_path / "eyes.pt")
    spec = ExtractorSpec(path=str(tmp_path / "eyes.pt"), sha256="0" * 64)
    with pytest.raises(IntegrityError, match=r"expected SHA-256 0{64}, got [0-9a-f]{64}; another network") as caught:
        open_file(spec)
    one_line(caught)


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_no_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extractor.json").write_bytes(b"{}")
    torch.save({"weights": Dangerous()}, tmp_path / "saved.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Dangerous()))
    record = ExtractorRecord(
        code_version="1", id="1", dataset="d", task="classes", config=ExtractorConfig(), channels=1, height=8, width=8,
        num_outputs=3, num_train=1, num_test=0, train_accuracy=1.0, test_accuracy=None, weights=file_entry("w", b""),
    )  # fmt: skip
    (tmp_path / "extractor.json").write_bytes(record.to_bytes())
    for name in ("saved.pt", "plain.pt"):
        with pytest.raises(UserError, match="expected an extractor in") as caught:
            open_file(spec_of(tmp_path / name))
        one_line(caught)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["eyes.pt", "eyes.onnx", "eyes.ts"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    (onnx if name.endswith("onnx") else torchscript)(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"no network"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"expected (an extractor in|extractor.json)") as caught:
            open_file(spec_of(tmp_path / name))
        one_line(caught)


def test_networks_that_give_no_features_are_refused(tmp_path: Path) -> None:
    torchscript(tmp_path / "eyes.pt")
    with pytest.raises(
        UserError, match=r"expected a network that takes images \(64, 1, 8, 8\), got .*; set side"
    ) as caught:
        open_file(spec_of(tmp_path / "eyes.pt")).features(IMAGES)
    one_line(caught)

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) * 0).log()

    for network, complaint in (
        (Sum(), r"expected features \(B, D\) for images .*, got \(\)"),
        (Log(), "finite features"),
    ):
        torch.jit.save(torch.jit.script(network), str(tmp_path / "other.ts"))
        with pytest.raises(UserError, match=complaint):
            open_file(spec_of(tmp_path / "other.ts")).features(IMAGES)


def test_what_is_no_file_or_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation.extractor: expected a file, got .*none.pt: No such file"):
        open_file(ExtractorSpec(path=str(tmp_path / "none.pt"), sha256="0" * 64))
    (tmp_path / "eyes.pkl").write_bytes(b"x")
    with pytest.raises(UserError, match=r"expected an extractor in .pt, .*, got .pkl"):
        open_file(spec_of(tmp_path / "eyes.pkl"))
