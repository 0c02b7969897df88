"""A trained network as two files, and back: `model.safetensors` (weights) and `config.json` (how to build it).

Neither holds code: the configuration names a family and its fields, which are validated on the way in.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from pipeline.artifacts import Dataset, Strict
from pipeline.errors import IntegrityError
from trainers import families
from trainers.families import DataShape, Model
from trainers.stream import data_shape

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class ExportConfig(Strict):
    """config.json: what `load` needs to build the network."""

    schema_number: int = 1
    family: str
    options: dict[str, Any]
    channels: int = Field(ge=1, le=4)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Sampler:
    """A network that makes images, on its device, ready to use."""

    config: ExportConfig
    model: Model
    network: nn.Module
    where: str  # it came from

    def images(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) on the CPU for latents and class indices. Raises IntegrityError."""
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            unit = self.model.decode(self.network, z_BZ.to(device), labels_B.to(device))
        if not unit.isfinite().all():
            raise IntegrityError(f"{self.where}: expected images of finite values, got NaN or infinity")
        return unit.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def export(family: str, options: dict[str, Any], dataset: Dataset, weights: dict[str, Tensor]) -> dict[str, bytes]:
    """The files of a trained network by name."""
    shape = asdict(data_shape(dataset))
    del shape["num_classes"]
    config = ExportConfig(family=family, options=options, classes=dataset.classes, **shape)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, indent=1) + "\n"
    return {WEIGHTS: save_safetensors(tensors), CONFIG: text.encode()}


def load(config_json: bytes, weights: bytes, device: torch.device, where: str) -> Sampler:
    """Build the network of an export. Raises IntegrityError naming `where` when the two files do not fit together."""
    try:
        config = ExportConfig.model_validate_json(config_json)
        tensors = load_safetensors(weights)
    except (ValidationError, SafetensorError) as error:
        raise IntegrityError(f"{where}: expected {CONFIG} and {WEIGHTS} of a release, got {error!s:.120}") from None
    shape = DataShape(config.channels, config.height, config.width, len(config.classes))
    family_config = families.parse_config(config.family, config.options, where)
    model = families.build(config.family, family_config, shape, seed=0)
    network = model.networks[model.sampler]
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise IntegrityError(
            f"{where}: the weights do not fit {CONFIG}: {str(error).splitlines()[-1].strip()}"
        ) from None
    return Sampler(config, model, network.to(device).eval().requires_grad_(False), where)
