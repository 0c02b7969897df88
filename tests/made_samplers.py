"""Releases that can be sampled, made by hand: a small ONNX sampler, without a training."""

import json
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline import pictures, shards
from pipeline.artifacts import Release, file_entry
from pipeline.release.signing import Signer
from pipeline.store import Store
from tests.made_releases import published

CLASSES = ("zero", "one")
CONFIG = {"family": "vae", "options": {}, "channels": 1, "height": 8, "width": 8, "classes": list(CLASSES)}
TAR = "samples/samples-000000.tar"


def onnx_sampler(side: int = 8, scale: float = 1.0) -> onnx.ModelProto:
    """image = sigmoid(scale * latent + label), of 64 numbers each, as (batch, 1, 64 / side, side)."""
    nodes = [
        helper.make_node("Cast", ["label"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["wide", "axis"], ["column"]),
        helper.make_node("Mul", ["latent", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "column"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["image"]),
    ]
    constants = {
        "axis": np.array([1], np.int64),
        "scale": np.full(64, scale, np.float32),
        "shape": np.array([-1, 1, 64 // side, side], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "sampler",
        [
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", 64]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 64 // side, side])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def sample_shard(labels: tuple[int | None, ...] = (0, 1, 1)) -> bytes:
    """Images whose first value is their number, of these classes."""
    made = []
    for number, label in enumerate(labels):
        pixels = np.zeros((8, 8, 1), np.uint8)
        pixels[0, 0, 0] = number
        made.append(shards.Sample.of(f"{number:09d}", pictures.encode_png(pixels), label, {"seed": 100 + number}))
    return shards.write_shard(made)


def consumable(store: Store, files: Mapping[str, bytes] | None = None, signer: Signer | None = None) -> Release:
    """tiny-vae/1, whose alias champion it is not yet; `files` replace those that it has by default."""
    release = published(store)
    contents = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.onnx": onnx_sampler().SerializeToString(),
        TAR: sample_shard(),
        **(files or {}),
    }
    for name, data in contents.items():
        store.put(f"{release.ref}/{name}", data)
    kept = [entry for entry in release.files if entry.name not in contents]
    made = release.model_copy(update={"files": (*kept, *(file_entry(name, data) for name, data in contents.items()))})
    return restate(store, signer.signed(made) if signer else made)


def restate(store: Store, release: Release) -> Release:
    """Put a manifest in the place of the one that is there."""
    store.put(f"{release.ref}/manifest.json", release.to_bytes())
    return release
