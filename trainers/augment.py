"""Augmentation of real images, by the recipe: `augment:` in a model's section.

    models:
      gan: {family: gan, ..., augment: {flip: true, crop_pixels: 2}}

What happens to an image depends on (seed, epoch, the sample's key) alone: not on its batch, the number of workers or
what was drawn before. The random numbers are a hash of a counter (splitmix64: Steele, Lea & Flood 2014), so that they
come by the batch on any device and need no state.

Only real images are augmented here, and a GAN learns to make what it is shown: flips and small crops are common
ground, while colours and cutouts will appear in what it generates (Zhao et al. 2020, section 3.1).

Legend: B images of the batch, C channels, H height, W width, D random numbers an image.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment
GREY = 0.5  # the middle of the range, as in Zhao et al., whose images are in [-1, 1]
NUM_DRAWS = 8


class Augment(BaseModel):
    """What may happen to a real image. Colours and cutout are those of DiffAugment (Zhao et al. 2020).

    Their strengths there are brightness 0.25 (of a range of 1), contrast 0.5, saturation 1 and cutout 0.5.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: bool = False  # left to right, every other image
    crop_pixels: int = Field(0, ge=0, le=512)  # moved by up to so many pixels each way; the edge goes on
    brightness: float = Field(0.0, ge=0, le=1)  # added to all values: between minus this and this
    contrast: float = Field(0.0, ge=0, le=1)  # distance to the image's mean times 1 minus to 1 plus this
    saturation: float = Field(0.0, ge=0, le=1)  # distance to the pixel's mean over the channels, likewise
    cutout: float = Field(0.0, ge=0, le=1)  # side of a grey rectangle, as a share of the image's

    def __call__(self, images_BCHW: Tensor, keys_B: Tensor, seed: int, epoch: int) -> Tensor:
        """Float images in [0, 1], augmented; `keys_B` are the samples' keys as int64 (the bits of uint64)."""
        draws_BD = uniforms(keys_B, seed, epoch, NUM_DRAWS)
        images_BCHW = self._colours(images_BCHW, draws_BD[:, :3])
        images_BCHW = self._moved(images_BCHW, draws_BD[:, 3:6])
        return self._cut(images_BCHW, draws_BD[:, 6:8])

    def _colours(self, images_BCHW: Tensor, draws_B3: Tensor) -> Tensor:
        """Brightness, saturation, contrast, in the order of Zhao et al."""
        between = (2 * draws_B3 - 1)[:, :, None, None, None]  # -1 to 1
        if self.brightness:
            images_BCHW = images_BCHW + self.brightness * between[:, 0]
        if self.saturation:
            grey = images_BCHW.mean(1, keepdim=True)
            images_BCHW = grey + (images_BCHW - grey) * (1 + self.saturation * between[:, 1])
        if self.contrast:
            mean = images_BCHW.mean((1, 2, 3), keepdim=True)
            images_BCHW = mean + (images_BCHW - mean) * (1 + self.contrast * between[:, 2])
        changed = self.brightness or self.saturation or self.contrast
        return images_BCHW.clamp(0, 1) if changed else images_BCHW

    def _moved(self, images_BCHW: Tensor, draws_B3: Tensor) -> Tensor:
        """Moved by whole pixels, the edge going on into the rest, and flipped."""
        if not self.flip and not self.crop_pixels:
            return images_BCHW
        height, width = images_BCHW.shape[2:]
        rows_BH = torch.arange(height, device=images_BCHW.device).expand(len(images_BCHW), height)
        columns_BW = torch.arange(width, device=images_BCHW.device).expand(len(images_BCHW), width)
        if self.flip:
            columns_BW = torch.where(draws_B3[:, :1] < 0.5, columns_BW.flip(1), columns_BW)
        if self.crop_pixels:
            by_B2 = _integers(draws_B3[:, 1:], 2 * self.crop_pixels + 1) - self.crop_pixels
            rows_BH = (rows_BH + by_B2[:, :1]).clamp(0, height - 1)
            columns_BW = (columns_BW + by_B2[:, 1:]).clamp(0, width - 1)
        numbers = torch.arange(len(images_BCHW), device=images_BCHW.device)[:, None, None]
        moved_BHWC = images_BCHW[numbers, :, rows_BH[:, :, None], columns_BW[:, None, :]]
        return moved_BHWC.permute(0, 3, 1, 2).contiguous()

    def _cut(self, images_BCHW: Tensor, draws_B2: Tensor) -> Tensor:
        """A grey rectangle whose middle is anywhere in the image."""
        if not self.cutout:
            return images_BCHW
        inside = []
        for axis, size in enumerate(images_BCHW.shape[2:]):
            side = round(self.cutout * size)
            start_B = _integers(draws_B2[:, axis], size + (1 - side % 2)) - side // 2
            at = torch.arange(size, device=images_BCHW.device)
            inside.append((at >= start_B[:, None]) & (at < start_B[:, None] + side))
        cut_BHW = inside[0][:, :, None] & inside[1][:, None, :]
        return images_BCHW.masked_fill(cut_BHW[:, None], GREY)


def uniforms(keys_B: Tensor, seed: int, epoch: int, num: int) -> Tensor:
    """Numbers in [0, 1), float32 (B, num), which depend on (seed, epoch, key, column) alone."""
    start = _mix_number(_mix_number(seed * GOLDEN + 1) + epoch * GOLDEN)
    hashed_B = _mix(keys_B ^ _signed(start))
    counters_D = torch.tensor([_signed((draw + 1) * GOLDEN) for draw in range(num)], device=keys_B.device)
    bits_BD = _mix(hashed_B[:, None] + counters_D)
    return _shifted(bits_BD, 40).to(torch.float32) * 2.0**-24  # 24 bits: as many as a float32 tells apart


def _integers(draws: Tensor, high: int) -> Tensor:
    """Integers in [0, high) of numbers in [0, 1)."""
    return (draws * high).to(torch.int64).clamp_max(high - 1)  # a product may round up to `high`


def _shifted(x: Tensor, by: int) -> Tensor:
    """An int64 shifted right as if it were unsigned."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finalizer; int64 products wrap around."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _mix_number(x: int) -> int:
    """As `_mix`, of one number."""
    x %= 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The int64 of the same bits."""
    x %= 2**64
    return x - 2**64 if x >= 2**63 else x
