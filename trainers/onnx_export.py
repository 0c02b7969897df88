"""A sampling network as one ONNX file: what makes images without torch, in onnxruntime or in a browser.

    latent  float32 (batch, Z)          standard normal: `pipeline.latents` makes it from a seed
    label   int64 (batch,)              class index; zeros for an unconditional model
    image   float32 (batch, C, H, W)    in [0, 1]

It is written by torch's exporter of 2.6 and later (`torch.export`, by onnxscript) and then held to torch.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import IntegrityError
from trainers import families
from trainers.export import Sampler

MODEL = "model.onnx"
OPSET = 18  # onnxruntime 1.14 and onnxruntime-web read it
TOLERANCE = 1e-4  # of an image's values, which are in [0, 1]
TRACED_IMAGES = 2  # one image would be taken for a constant
CHECKED_IMAGES = 16


class Decoder(nn.Module):
    """A sampler's `images` up to the rounding to bytes, as one module."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.model = sampler.model
        self.network = sampler.network

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1]; the names are those of the file's inputs."""
        return self.model.decode(self.network, latent, label).clamp(0, 1)


def to_onnx(sampler: Sampler, where: str) -> bytes:
    """The sampler as an ONNX file, checked. Raises IntegrityError naming `where` if onnxruntime makes other images."""
    decoder = Decoder(sampler).eval()
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.onnx.export(
            decoder,
            inputs(sampler, TRACED_IMAGES),
            dynamo=True,
            dynamic_shapes=({0: batch}, {0: batch}),
            input_names=["latent", "label"],
            output_names=["image"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    _strip(program.model)
    file: bytes = program.model_proto.SerializeToString()
    check(file, sampler, where)
    return file


def check(onnx: bytes, sampler: Sampler, where: str) -> None:
    """Hold the file to torch on seeds that it was not traced with. Raises IntegrityError."""
    import onnxruntime

    latent_BZ, label_B = inputs(sampler, CHECKED_IMAGES)
    with torch.inference_mode():
        expected = Decoder(sampler)(latent_BZ, label_B).numpy()
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"latent": latent_BZ.numpy(), "label": label_B.numpy()})
    largest = float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
    if not largest <= TOLERANCE:  # NaN counts as a difference
        raise IntegrityError(
            f"{where}: expected {MODEL} to make the images of torch to {TOLERANCE}, got a difference of {largest:.2g}; "
            "the versions of torch and onnxruntime may not fit together"
        )


def inputs(sampler: Sampler, count: int) -> tuple[Tensor, Tensor]:
    """Latents and class indices of the first few seeds."""
    classes = torch.arange(count) % max(1, len(sampler.config.classes))
    return families.latents(range(count), sampler.model.latent_size), classes


def _strip(model: Any) -> None:
    """Take out what the exporter notes of the source: it would put this machine's paths into a published file."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks of its own inside (deprecations, missing torchvision), which no user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
