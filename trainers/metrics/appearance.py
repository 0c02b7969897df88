"""Figures that each image has by itself, to be held against real images': how sharp, how far from its class's mean.

Both are averaged over the generated images and divided by the real images' average (`intervals.ratio_of_means`): 1 is
as sharp, or as diverse, as real images are.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from trainers.metrics.checks import MetricInputError, finite

_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def sharpness(images_BCHW: Tensor) -> Tensor:
    """The mean squared discrete Laplacian of each image with values in [0, 1], (B,) float64; edges are repeated.

    What blur takes away first: it weighs a frequency f by about f^4. Noise raises it, so above 1 is no praise.
    """
    if images_BCHW.ndim != 4 or not images_BCHW.is_floating_point():
        raise MetricInputError(
            f"sharpness: expected float images (B, C, H, W), got {images_BCHW.dtype} {tuple(images_BCHW.shape)}; "
            "divide uint8 images by 255"
        )
    planes = images_BCHW.double().flatten(0, 1)[:, None]
    kernel = torch.tensor(_LAPLACIAN, dtype=planes.dtype, device=planes.device)[None, None]
    curvature = conv2d(pad(planes, (1, 1, 1, 1), mode="replicate"), kernel)
    return curvature.square().view(len(images_BCHW), -1).mean(1)


def spread(features_ND: Tensor, classes_N: Tensor) -> Tensor:
    """The squared distance of each image's features from the mean of its class, (N,) float64.

    Corrected for the mean's own fit (n / (n - 1) in a class of n), so that its average is half the mean squared
    distance of two images of a class: little where a generator makes the same image of a class again and again. Images
    that are alone in their class are left out. Without classes give zeros.
    """
    features_ND = finite("features", features_ND, 2)
    values = []
    for label in torch.unique(classes_N):
        own = features_ND[classes_N == label]
        if len(own) > 1:
            values.append((own - own.mean(0)).square().sum(1) * (len(own) / (len(own) - 1)))
    if not values:
        raise MetricInputError("diversity: expected two images of a class, got one of each; evaluate on more images")
    return torch.cat(values)
