"""Extractors that mean harm, or that were handed what they cannot see: one clear line, and nothing touched."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from pipeline.artifacts import file_entry
from pipeline.errors import UserError
from tests.trainers.extractors.test_outside import IMAGES, one_line, spec_of, torchscript
from trainers.extractors.network import ExtractorConfig, ExtractorNet
from trainers.extractors.outside import open_file
from trainers.extractors.own import ExtractorRecord

CONFIG = ExtractorConfig(feature_size=5, channels=4)


class Writes(nn.Module):
    """Looks like an extractor, and writes a file when it is asked for features."""

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "ran")
        return x.flatten(1)


class Maps(nn.Module):
    """Makes a file as a tensor's memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.from_file("ran", True, 1)


class Wakes(nn.Module):
    """Writes when it is loaded, before anybody asks it for anything."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.training = state[1]
        torch.save(state[0], "ran")


@pytest.mark.parametrize(("network", "named"), [(Writes(), "save"), (Maps(), "from_file"), (Wakes(), "save")])
def test_torchscript_that_reaches_files_is_not_even_loaded(
    network: nn.Module, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(network), "eyes.pt")
    with pytest.raises(UserError, match=f"reaches no files, got TorchScript code that names {named}; ") as caught:
        open_file(spec_of(tmp_path / "eyes.pt"))
    one_line(caught)
    assert not (tmp_path / "ran").exists()
    torch.jit.load("eyes.pt")(torch.zeros(1, 1, 1, 1))  # type: ignore[no-untyped-call]  # torch's
    assert (tmp_path / "ran").exists()  # it would have


def rewritten(path: Path, code: bytes) -> Path:
    """The archive with a line added to its code."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data + code if name.endswith(".py") else data)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize(
    "code", [b"torch . # a note\n  save(x)", b"ops . image.write_file(x)", b"__torch__.torch.classes.rpc.Agent"]
)
def test_torchscript_that_names_what_reaches_out_is_refused_however_it_is_written(code: bytes, tmp_path: Path) -> None:
    torchscript(tmp_path / "eyes.pt")
    with pytest.raises(UserError, match="expected a network that reaches no files") as caught:
        open_file(spec_of(rewritten(tmp_path / "eyes.pt", b"\n" + code)))
    one_line(caught)


def test_torchscript_of_quantized_and_traced_networks_is_taken(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    quantize: Any = torch.ao.quantization.quantize_dynamic
    quantized = quantize(network, {nn.Linear}, dtype=torch.qint8)
    traced = torch.jit.trace(quantized, torch.zeros(2, 1, 8, 8))  # type: ignore[no-untyped-call]  # torch's
    torch.jit.save(traced, str(tmp_path / "eyes.pt"))
    assert open_file(spec_of(tmp_path / "eyes.pt")).features(IMAGES).shape == (70, 5)


def graph(nodes: list[onnx.NodeProto], *constants: onnx.TensorProto) -> bytes:
    """An ONNX network from images `x` of one channel and 8x8 pixels to features `y`."""
    made = helper.make_graph(
        nodes,
        "eyes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 64])],
        list(constants),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString())


FLATTEN = helper.make_node("Flatten", ["x"], ["f"])


def outside(location: str) -> bytes:
    """A network whose weights are another file of this machine."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    return graph([FLATTEN, helper.make_node("Add", ["f", "w"], ["y"])], weights)


def test_onnx_that_reads_other_files_or_brings_operators_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(np.ones(64, "<f4").tobytes())
    own = graph([helper.make_node("Own", ["x"], ["y"], domain="own")])
    for data in (outside("secret"), outside(str(tmp_path / "secret")), outside("../secret"), own):
        (tmp_path / "eyes.onnx").write_bytes(data)
        with pytest.raises(UserError, match="expected an extractor in") as caught:
            open_file(spec_of(tmp_path / "eyes.onnx"))
        one_line(caught)
    assert capfd.readouterr().err == ""


def test_onnx_that_asks_for_more_memory_than_there_is_ends_in_one_line(tmp_path: Path) -> None:
    size = helper.make_tensor("s", TensorProto.INT64, [1], [10**13])
    nodes = [
        FLATTEN,
        helper.make_node("ConstantOfShape", ["s"], ["k"]),
        helper.make_node("ReduceSum", ["k"], ["r"]),
        helper.make_node("Add", ["f", "r"], ["y"]),
    ]
    (tmp_path / "eyes.onnx").write_bytes(graph(nodes, size))
    with pytest.raises(UserError, match="expected a network that takes images") as caught:
        open_file(spec_of(tmp_path / "eyes.onnx")).features(IMAGES)
    one_line(caught)


def weights_beside_a_record(path: Path, state: Any) -> Path:
    """A state dict, and the record of a network that it may not fit."""
    record = ExtractorRecord(
        code_version="1", id="1", dataset="datasets/x/1", task="classes", config=CONFIG, channels=1, height=8, width=8,
        num_outputs=3, num_train=1, num_test=0, train_accuracy=1.0, test_accuracy=None,
        weights=file_entry("extractor.safetensors", b""),
    )  # fmt: skip
    (path / "extractor.json").write_bytes(record.to_bytes())
    torch.save(state, path / "eyes.pt")
    return path / "eyes.pt"


def test_state_dicts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = ExtractorNet((1, 8, 8), 3, CONFIG).state_dict()
    first = next(iter(good))
    states: list[Any] = [
        {},
        good | {"more": torch.zeros(1)},
        good | {first: torch.zeros(1)},
        [torch.zeros(1)],
        {"weights": good},
    ]
    for state in states:
        with pytest.raises(UserError, match="expected an extractor in") as caught:
            open_file(spec_of(weights_beside_a_record(tmp_path, state)))
        one_line(caught)
    assert open_file(spec_of(weights_beside_a_record(tmp_path, good))).features(IMAGES).shape == (70, 5)


def test_weights_that_are_not_finite_give_no_features(tmp_path: Path) -> None:
    good = ExtractorNet((1, 8, 8), 3, CONFIG).state_dict()
    state = {name: torch.full_like(one, float("nan")) if one.is_floating_point() else one for name, one in good.items()}
    with pytest.raises(UserError, match="expected finite features, got NaN or infinity"):
        open_file(spec_of(weights_beside_a_record(tmp_path, state))).features(IMAGES)
    (tmp_path / "eyes.safetensors").write_bytes(save_safetensors(state)[:-40])
    with pytest.raises(UserError, match="expected an extractor in") as caught:
        open_file(spec_of(tmp_path / "eyes.safetensors"))
    one_line(caught)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 255.0])
def test_images_that_are_none_are_refused_before_the_network_sees_them(value: float, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Flatten()), str(tmp_path / "eyes.pt"))
    images = IMAGES.float() / 255
    images[3, 0, 2, 2] = value
    eyes = open_file(spec_of(tmp_path / "eyes.pt"))
    with pytest.raises(UserError, match=r"extractor: expected (finite images, got NaN or infinity in 1 of 70|floats)"):
        eyes.features(images)
    with pytest.raises(UserError, match="expected uint8 images or floats"):
        eyes.features(IMAGES.long())
