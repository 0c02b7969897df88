"""Pictures: every kind of file to the same pixels, damage by name, and PNG that others read."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFile

from pipeline.errors import IntegrityError
from pipeline.pictures import (
    Unreadable,
    add_text,
    decode_png,
    encode_png,
    from_pixels,
    grid,
    grid_by_class,
    png_bytes,
    read_picture,
    side_by_side,
    to_pixels,
)
from pipeline.recipe import DatasetSpec


def spec(channels: int = 3, height: int = 8, width: int = 8, **fields: Any) -> DatasetSpec:
    return DatasetSpec.model_validate({"channels": channels, "height": height, "width": width, **fields})


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(width: int = 16, height: int = 16) -> Image.Image:
    """Red at the left, blue at the right."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_kind_of_file_gives_its_colours(kind: str) -> None:
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    pixels = read_picture(saved(two_halves(64, 64), kind, **options), spec())
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[4, 1].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(pixels[4, 6].astype(int) - (0, 0, 255)).max() < 12


def test_an_image_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (read_picture(saved(Image.fromarray(pixels)), spec()) == pixels).all()
    grey = pixels[..., 0]
    assert (read_picture(saved(Image.fromarray(grey)), spec(1))[..., 0] == grey).all()
    assert (read_picture(saved(Image.fromarray(grey)), spec(3)) == grey[..., None]).all()


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("LA", (8, 8), (0, 128))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (read_picture(saved(clear), spec()) == 255).all()
    assert (read_picture(saved(half), spec(1)) == 127).all()
    assert (read_picture(saved(palette, transparency=1), spec()) == 255).all()
    assert (read_picture(saved(palette), spec()) == (10, 20, 30)).all()


def test_16_bits_are_scaled_and_32_refused() -> None:
    values = np.array([[0, 200, 32768, 65535]], np.uint16).repeat(4, axis=0)
    for kind in ("PNG", "TIFF"):
        pixels = read_picture(saved(Image.fromarray(values), kind), spec(1, 4, 4))
        assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    with pytest.raises(Unreadable, match="32 bits a pixel"):
        read_picture(saved(Image.fromarray(values.astype(np.float32)), "TIFF"), spec(1, 4, 4))


def test_cmyk_one_bit_upside_down_and_moving_pictures_come_right() -> None:
    assert np.abs(read_picture(saved(Image.new("CMYK", (8, 8)), "JPEG"), spec()).astype(int) - 255).max() < 3
    assert (read_picture(saved(Image.new("1", (8, 8), 1)), spec(1)) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    turned = read_picture(saved(two_halves(), exif=exif), spec())
    assert np.abs(turned[4, 1].astype(int) - (0, 0, 255)).max() < 3
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read_picture(moving, spec()) == (255, 0, 0)).all()


def test_contain_keeps_the_whole_and_continues_the_edge() -> None:
    pixels = read_picture(saved(two_halves(32, 16)), spec(fit="contain"))
    assert (pixels[0] == pixels[4]).all()
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[7, 7].tolist() == [0, 0, 255]


def test_cover_cuts_the_ends_and_stretch_keeps_them() -> None:
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 8, 16))
    assert (read_picture(saved(image), spec(fit="cover")) >= 240).all()  # the black was in the ends
    assert read_picture(saved(image), spec(fit="stretch"))[4, 0].max() < 20


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["contain", "cover", "stretch"]))
def test_any_size_comes_to_the_shape(width: int, height: int, fit: str) -> None:
    pixels = to_pixels(Image.new("L", (width, height), 77), spec(1, 6, 9, fit=fit))
    assert pixels.shape == (6, 9, 1)
    assert (pixels == 77).all()


def test_shrinking_does_not_alias() -> None:
    """Stripes of one pixel become grey; a filter that does not widen with the scale would show bars."""
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    inner = to_pixels(Image.fromarray(stripes), spec(1))[1:-1, 1:-1]
    assert np.abs(inner.astype(int) - 127).max() < 6


def huge_png(side: int) -> bytes:
    """A real, valid one-bit PNG of that side: 50 MB of zeros that pack to kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    lines = zlib.compress(bytes(side * (1 + -(-side // 8))), 1)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 20_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Image.Image) -> None:
        raise AssertionError("decoded")

    data = huge_png(side)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(Unreadable, match="pixels are more than max_pixels 50,000,000"):
        read_picture(data, spec())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(Unreadable) as caught:
        read_picture(data[: len(data) // 2], spec())
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damage_gives_pixels_or_a_reason_never_a_crash(kind: str) -> None:
    dice = random.Random(0)
    whole = saved(two_halves(24, 24), kind)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            assert read_picture(bytes(data), spec()).shape == (8, 8, 3)
        except Unreadable as reason:
            assert str(reason)


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"], ids=len)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable, match="not a PNG, JPEG, WEBP, BMP, GIF, TIFF image"):
        read_picture(data, spec())


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
