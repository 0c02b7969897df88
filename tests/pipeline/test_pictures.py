"""Pictures: PNG that others read, and grids."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.errors import IntegrityError
from pipeline.pictures import (
    add_text,
    decode_png,
    encode_png,
    from_pixels,
    grid,
    grid_by_class,
    png_bytes,
    side_by_side,
)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PIXELS = st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3])).flatmap(
    lambda shape: arrays(np.uint8, shape)
)


@given(PIXELS)
def test_png_gives_the_pixels_back(pixels: np.ndarray) -> None:
    data = encode_png(pixels)
    assert (decode_png(data) == pixels).all()
    assert encode_png(pixels) == data
    assert png_bytes(from_pixels(pixels), {}) == data


def test_png_text_is_read_by_others() -> None:
    text = {"Software": "Atelier", "release": "digits-gan/3", "comment": "naïve 数字"}
    with Image.open(io.BytesIO(encode_png(np.zeros((9, 9, 1), np.uint8), text))) as image:
        assert image.info == text
        image.verify()
    for wrong in ({"": "x"}, {"k" * 80: "x"}, {"k": "a\0b"}):
        with pytest.raises(ValueError, match="expected a PNG keyword"):
            encode_png(np.zeros((9, 9, 1), np.uint8), wrong)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", saved(Image.new("RGBA", (8, 8))), encode_png(np.ones((9, 9, 3), np.uint8))[:50]],
    ids=["empty", "text", "rgba", "cut"],
)
def test_decode_png_refuses_what_this_project_does_not_write(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="expected an 8-bit grey or RGB PNG, got"):
        decode_png(data)


def test_a_grid_shows_each_image_in_its_place_beside_its_label() -> None:
    shades = np.arange(0, 240, 40, dtype=np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (6, 8, 8, 1))
    plain, labelled = grid(images, 3), grid(images, 3, row_labels=["cats", "dogs"])
    assert plain.mode == "RGB"
    assert labelled.height == plain.height
    found = {colour[0] for _, colour in plain.getcolors(9999) or [] if isinstance(colour, tuple)}
    assert set(shades.tolist()) < found  # flat images stay flat when they are enlarged
    columns = np.asarray(labelled)[:, : labelled.width - plain.width]
    assert columns.min() < 128  # the captions, in the margin that they widened
    assert grid(images, 3, scale=2).width < plain.width


def test_a_grid_of_colour_with_a_row_that_is_not_full() -> None:
    sheet = grid(np.full((4, 64, 64, 3), (10, 200, 30), np.uint8), 3)
    assert sheet.getpixel((sheet.width - 10, sheet.height - 10)) == (250, 250, 248)
    with pytest.raises(ValueError, match="expected images and a column or more"):
        grid(np.zeros((0, 8, 8, 1), np.uint8), 3)


def test_added_text_is_read_by_others_and_leaves_the_pixels_and_earlier_text() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    png = add_text(encode_png(pixels, {"seed": "7"}), {"release": "digits-gan/1", "note": "\u2713"})
    assert np.array_equal(decode_png(png), pixels)
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.info["seed"] == "7" and image.info["release"] == "digits-gan/1" and image.info["note"] == "\u2713"
    with pytest.raises(IntegrityError, match="expected a PNG"):
        add_text(b"GIF89a", {"release": "x"})


def test_a_grid_by_class_gives_each_class_its_row() -> None:
    images = np.stack([np.full((48, 48, 1), 40 + 60 * label, np.uint8) for label in (2, 0, 2)])
    sheet = np.asarray(grid_by_class(images, [2, 0, 2], ["zero", "one", "two"]).convert("L"))
    alone, twice = (sheet == 40).any(1), (sheet == 160).any(1)
    assert alone.sum() == twice.sum() == 48 and alone.argmax() < twice.argmax()
    assert (sheet[twice.argmax() + 10] == 160).sum() == 96 and (sheet[alone.argmax() + 10] == 40).sum() == 48


def test_panels_stand_side_by_side_under_their_titles() -> None:
    left, right = Image.new("RGB", (50, 30), "red"), Image.new("RGB", (40, 60), "blue")
    sheet = side_by_side({"left": left, "right": right})
    assert sheet.width > 90 and sheet.height > 60
    assert sheet.getpixel((25, sheet.height - 35)) == (255, 0, 0)
    assert sheet.getpixel((sheet.width - 20, sheet.height - 5)) == (0, 0, 255)
