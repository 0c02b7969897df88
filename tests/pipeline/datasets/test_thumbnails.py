"""Thumbnails of rejects: they show what is there, and never fail."""

import random

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.thumbnails import thumbnail
from pipeline.pictures import from_pixels
from tests.pipeline.test_decoders import bomb, huge_png, saved, smooth, two_halves


def test_a_cut_png_shows_its_first_lines() -> None:
    for image in (
        from_pixels(smooth(90, 60, 3)),
        from_pixels(smooth(90, 60, 1)),
        from_pixels(smooth(90, 60, 3)).convert("P"),
    ):
        whole = saved(image)
        shown = thumbnail(whole[: len(whole) * 2 // 3], 96)
        assert shown is not None and 10 < len(shown) < 90 and shown.shape[1:] == (60, 3)
        assert np.array_equal(shown, np.asarray(image.convert("RGB"))[: len(shown)])


def test_a_png_with_a_changed_byte_shows_the_lines_before_it() -> None:
    data = bytearray(saved(from_pixels(smooth(90, 60, 3))))
    data[len(data) // 2] ^= 4
    shown = thumbnail(bytes(data), 96)
    assert shown is not None and np.array_equal(shown[:10], smooth(90, 60, 3)[:10])


def test_a_cut_jpeg_shows_what_is_there() -> None:
    whole = saved(from_pixels(smooth(300, 200, 3)), "JPEG", quality=90)
    shown = thumbnail(whole[: len(whole) * 3 // 4], 96)
    assert shown is not None and shown.shape == (96, 64, 3)
    expected = np.asarray(from_pixels(smooth(300, 200, 3)).resize((64, 96))).astype(int)
    assert np.abs(shown[:40] - expected[:40]).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_whole_image_is_shown_in_its_aspect(kind: str) -> None:
    shown = thumbnail(saved(two_halves(200, 100), kind), 96)
    assert shown is not None and shown.shape == (48, 96, 3) and shown.dtype == np.uint8
    assert thumbnail(saved(two_halves(20, 10), kind), 96) is not None


@pytest.mark.parametrize(
    "data",
    [b"", b"text", saved(two_halves())[:40], huge_png(20_000), *map(bomb, ("PNG", "JPEG", "BMP", "GIF"))],
    ids=["empty", "text", "header", "huge", "png", "jpeg", "bmp", "gif"],
)
def test_what_cannot_be_seen_is_not_shown(data: bytes) -> None:
    assert thumbnail(data, 96) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damage_never_raises(kind: str) -> None:
    dice = random.Random(1)
    whole = saved(two_halves(24, 24).convert("P") if kind == "PNG" else Image.new("RGB", (24, 24), "red"), kind)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        shown = thumbnail(bytes(data), 16)
        assert shown is None or (max(shown.shape[:2]) <= 16 and shown.shape[2] == 3)
