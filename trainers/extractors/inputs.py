"""What an extractor asks of the images that it is given."""

import torch
from torch import Tensor

from pipeline.errors import UserError


def to_unit(images_NCHW: Tensor) -> Tensor:
    """uint8 images, or float ones in [0, 1], as float32 in [0, 1]."""
    return images_NCHW.float() / (255 if images_NCHW.dtype == torch.uint8 else 1)


def check_images(images_NCHW: Tensor, shape: tuple[int, int, int] | None = None) -> None:
    """Raise UserError for images of another shape, and for values that are not finite or outside [0, 1]."""
    if images_NCHW.ndim != 4 or (shape and tuple(images_NCHW.shape[1:]) != shape) or not len(images_NCHW):
        raise UserError(
            f"extractor: expected images (N, {', '.join(map(str, shape or 'CHW'))}) as in its dataset, got "
            f"{tuple(images_NCHW.shape)}; evaluate a run on the dataset that it was trained on"
        )
    if images_NCHW.dtype == torch.uint8:
        return
    if not images_NCHW.is_floating_point():
        raise UserError(f"extractor: expected uint8 images or floats in [0, 1], got {images_NCHW.dtype}; convert them")
    bad = int((~images_NCHW.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise UserError(
            f"extractor: expected finite images, got NaN or infinity in {bad:,} of {len(images_NCHW):,}; "
            "look at the network that made them"
        )
    if images_NCHW.min() < 0 or images_NCHW.max() > 1:
        raise UserError(
            f"extractor: expected floats in [0, 1], got {value_range(images_NCHW)}; divide by 255 or clamp them"
        )


def value_range(x: Tensor) -> str:
    """The least and the largest value, for an error."""
    return f"[{float(x.min()):.3g}, {float(x.max()):.3g}]" if x.numel() else "nothing"
