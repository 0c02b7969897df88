"""The small network behind a dataset's own extractor: how it is built, and what it gives for images.

Shape legend: N images of a set, B of a batch, C channels, H height, W width, D feature size, K outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.artifacts import Strict
from trainers.extractors.inputs import to_unit

BATCH_IMAGES = 500  # at inference: features do not depend on it, beyond rounding


class ExtractorConfig(Strict):
    """How an extractor is built and trained; the defaults reach 99% on MNIST in about 15 s on one core."""

    feature_size: int = 64
    channels: int = 24  # of the first convolution; doubled by each further one, up to four times as many
    max_side: int = 64  # larger images are reduced to this side
    epochs: int = 3
    min_images_seen: int = 60_000  # small sets are gone through more often
    max_images_seen: int = 500_000
    batch_images: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0


DEFAULT = ExtractorConfig()


class ExtractorNet(nn.Module):
    """Stride-2 convolutions down to a side of 4 or less, one dense layer to the features, one to the logits.

    The features are batch-normalised without gain: over the images that it was trained on each has a mean of 0
    and a variance of 1, so that distances between feature sets have a similar scale for every dataset.
    """

    def __init__(self, shape: Sequence[int], num_outputs: int, config: ExtractorConfig) -> None:
        """`shape` is an image's (C, H, W). Initial weights come from torch's global generator."""
        super().__init__()
        inputs, height, width = shape
        self.side = side = min(max(height, width), config.max_side)
        outputs = config.channels
        layers: list[nn.Module] = []
        while not layers or side > 4:
            stride = 1 if not layers and side <= 16 else 2
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs, outputs, side = outputs, min(2 * outputs, 4 * config.channels), -(-side // stride)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.to_features = nn.Sequential(
            nn.Linear(inputs * side * side, config.feature_size, bias=False),
            nn.BatchNorm1d(config.feature_size, affine=False),
        )
        self.to_logits = nn.Linear(config.feature_size, num_outputs)

    def to_square(self, images_BCHW: Tensor) -> Tensor:
        """The images at the network's own square size, so that a quarter turn keeps the shape."""
        if images_BCHW.shape[2:] == (self.side, self.side):
            return images_BCHW
        return interpolate(images_BCHW, size=(self.side, self.side), mode="bilinear", antialias=True)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, K) of float images in [0, 1]."""
        features_BD = self.to_features(self.body(self.to_square(images_BCHW) - 0.5))
        return features_BD, self.to_logits(features_BD)


def infer(network: ExtractorNet, images_NCHW: Tensor, batch_size: int = BATCH_IMAGES) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, K) on the CPU, of uint8 images or float ones in [0, 1]."""
    device = next(network.parameters()).device
    network.eval()
    features, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(images_NCHW), batch_size):
            images = images_NCHW[start : start + batch_size]
            features_BD, logits_BK = network(to_unit(images.to(device)))
            features.append(features_BD.cpu())
            logits.append(logits_BK.cpu())
    return torch.cat(features), torch.cat(logits)
