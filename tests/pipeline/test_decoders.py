"""Decoders: every kind of file to the same pixels, damage by name, the fast ones as the slow one."""

import io
import random
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pipeline.decoders import (
    Picture,
    Unreadable,
    decode_image,
    encode_image,
    fit_pixels,
    read_picture,
    to_pixels,
)
from pipeline.errors import IntegrityError
from pipeline.pictures import add_text, chunk, encode_png, from_pixels
from pipeline.sections import DatasetSpec


def read_pixels(data: bytes, wanted: DatasetSpec) -> Any:
    return read_picture(data, wanted).pixels


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


def png(width: int, height: int, packed: bytes, *, depth: int = 8, colour: int = 0, more: bytes = b"") -> bytes:
    """A PNG by hand, its checksums right whatever it holds."""
    head = chunk(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([depth, colour, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def huge_png(side: int) -> bytes:
    """A real, valid one-bit PNG of that side: 50 MB of zeros that pack to kilobytes."""
    return png(side, side, zlib.compress(bytes(side * (1 + -(-side // 8))), 1), depth=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_kind_of_file_gives_its_colours(kind: str) -> None:
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    pixels = read_pixels(saved(two_halves(64, 64), kind, **options), spec())
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[4, 1].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(pixels[4, 6].astype(int) - (0, 0, 255)).max() < 12


def test_an_image_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (read_pixels(saved(Image.fromarray(pixels)), spec()) == pixels).all()
    grey = pixels[..., 0]
    assert (read_pixels(saved(Image.fromarray(grey)), spec(1))[..., 0] == grey).all()
    assert (read_pixels(saved(Image.fromarray(grey)), spec(3)) == grey[..., None]).all()


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("LA", (8, 8), (0, 128))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (read_pixels(saved(clear), spec()) == 255).all()
    assert (read_pixels(saved(half), spec(1)) == 127).all()
    assert (read_pixels(saved(palette, transparency=1), spec()) == 255).all()
    assert (read_pixels(saved(palette), spec()) == (10, 20, 30)).all()


def test_16_bits_are_scaled_and_32_refused() -> None:
    values = np.array([[0, 200, 32768, 65535]], np.uint16).repeat(4, axis=0)
    for kind in ("PNG", "TIFF"):
        pixels = read_pixels(saved(Image.fromarray(values), kind), spec(1, 4, 4))
        assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    with pytest.raises(Unreadable, match="32 bits a pixel"):
        read_pixels(saved(Image.fromarray(values.astype(np.float32)), "TIFF"), spec(1, 4, 4))


def test_cmyk_one_bit_upside_down_and_moving_pictures_come_right() -> None:
    assert np.abs(read_pixels(saved(Image.new("CMYK", (8, 8)), "JPEG"), spec()).astype(int) - 255).max() < 3
    assert (read_pixels(saved(Image.new("1", (8, 8), 1)), spec(1)) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    turned = read_pixels(saved(two_halves(), exif=exif), spec())
    assert np.abs(turned[4, 1].astype(int) - (0, 0, 255)).max() < 3
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read_pixels(moving, spec()) == (255, 0, 0)).all()


def test_contain_keeps_the_whole_and_continues_the_edge() -> None:
    pixels = read_pixels(saved(two_halves(32, 16)), spec(fit="contain"))
    assert (pixels[0] == pixels[4]).all()
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[7, 7].tolist() == [0, 0, 255]


def test_cover_cuts_the_ends_and_stretch_keeps_them() -> None:
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 8, 16))
    assert (read_pixels(saved(image), spec(fit="cover")) >= 240).all()  # the black was in the ends
    assert read_pixels(saved(image), spec(fit="stretch"))[4, 0].max() < 20


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


@pytest.mark.parametrize("side", [8_000, 20_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Image.Image) -> None:
        raise AssertionError("decoded")

    data = huge_png(side)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(Unreadable, match="pixels are more than max_pixels 50,000,000"):
        read_pixels(data, spec())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(Unreadable) as caught:
        read_pixels(data[: len(data) // 2], spec())
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
            assert read_pixels(bytes(data), spec()).shape == (8, 8, 3)
        except Unreadable as reason:
            assert str(reason)


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"], ids=len)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable, match="not a PNG, JPEG, WEBP, BMP, GIF, TIFF image"):
        read_pixels(data, spec())


def noise(height: int, width: int, channels: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int, channels: int, seed: int = 0) -> Any:
    small = from_pixels(noise(6, 6, channels, seed))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 64, 200])
def test_the_fast_decoders_give_what_pillow_gives(channels: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = from_pixels(smooth(side, side + 3, channels))
    files = [saved(image), saved(image, optimize=True), saved(image, "JPEG", quality=90)]
    wanted = [spec(channels, side, side + 3), spec(channels), spec(channels, 2 * side, side, fit="cover")]
    fast = [read_picture(file, one) for file in files for one in wanted]
    monkeypatch.setattr("pipeline.decoders.PNG_SIGNATURE", b"never")
    monkeypatch.setattr("pipeline.decoders.JPEG_SIGNATURE", b"never")
    slow = [read_picture(file, one) for file in files for one in wanted]
    for one, other in zip(fast, slow, strict=True):
        assert (one.width, one.height) == (other.width, other.height) == (side + 3, side)
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 1


def test_a_png_cut_anywhere_or_with_any_bit_flipped_is_rejected() -> None:
    whole = saved(from_pixels(noise(6, 5, 1)))
    flipped = [
        bytes([*whole[:at], whole[at] ^ 1 << bit, *whole[at + 1 :]]) for at in range(len(whole)) for bit in range(8)
    ]
    for data in [whole[:cut] for cut in range(len(whole))] + flipped:
        with pytest.raises(Unreadable):
            read_picture(data, spec(1, 6, 5))
    for cut in range(len(whole)):  # a flipped bit in a shard is found by the shard's SHA-256
        with pytest.raises(IntegrityError):
            decode_image(whole[:cut], "png")


@given(st.data())
def test_a_png_broken_below_its_checksums_is_rejected_or_what_pillow_makes_of_it(data: st.DataObject) -> None:
    """OpenCV's libpng must neither fill in what is missing nor stop at what Pillow reads."""
    lines = zlib.compress(b"".join(b"\0" + line.tobytes() for line in noise(8, 8, 1)))
    at, drop = data.draw(st.integers(0, len(lines))), data.draw(st.integers(0, len(lines)))
    broken = png(8, 8, lines[:at] + data.draw(st.binary(max_size=4)) + lines[at + drop :])
    with pytest.MonkeyPatch.context() as patch:
        fast = read_or_reason(broken)
        patch.setattr("pipeline.decoders.PNG_SIGNATURE", b"never")
        slow = read_or_reason(broken)
    assert fast == slow


def read_or_reason(data: bytes) -> Any:
    try:
        return read_picture(data, spec(1)).pixels.tolist()
    except Unreadable as reason:
        return str(reason)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    """Against EXIF 2.3, table 6: where the first row and column of the stored image lie in the upright one."""
    stored = Image.new("L", (32, 48), 30)
    stored.paste(240, (0, 0, 16, 24))  # the corner of the first row and column
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind in ("PNG", "TIFF") else {"quality": 95}
    picture = read_picture(saved(stored.convert("RGB"), kind, exif=exif, **options), spec(3, 8, 8, fit="stretch"))
    assert (picture.width, picture.height) == ((32, 48) if orientation < 5 else (48, 32))
    bright = picture.pixels[..., 0] > 128
    top, left = orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8)
    corner = bright[:3, :3] if top and left else bright[:3, 5:] if top else bright[5:, :3] if left else bright[5:, 5:]
    assert corner.all() and bright.sum() <= 20


def test_orientation_is_found_wherever_pillow_finds_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    xmp = '<x tiff:Orientation="3"/>'
    late = saved(two_halves(), "JPEG", exif=exif, icc_profile=bytes(100_000))  # behind 100 kB of another segment
    plain = saved(two_halves())
    raw = "\nexif\n" + f"{len(exif.tobytes()):8}\n" + exif.tobytes().hex()
    for turned in (
        late,
        saved(two_halves(), "JPEG", xmp=xmp.encode()),
        add_text(plain, {"XML:com.adobe.xmp": xmp}),
        add_text(plain, {"Raw profile type exif": raw}),
    ):
        pixels = read_picture(turned, spec()).pixels
        assert pixels[4, 1, 2] > 200 and pixels[4, 1, 0] < 60, turned[:80]
    assert read_picture(add_text(plain, {"Comment": xmp}), spec()).pixels[4, 1, 0] > 200


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_the_first_frame_stands_for_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.abs(read_picture(moving, spec()).pixels.astype(int) - (255, 0, 0)).max() < 3


def bomb(kind: str) -> bytes:
    """A file whose header says 60,000 x 60,000 where the format can."""
    small = saved(two_halves(), kind)
    if kind == "PNG":
        return png(60_000, 60_000, b"")
    if kind == "JPEG":
        at = small.index(b"\xff\xc0") + 5
        return small[:at] + (60_000).to_bytes(2) * 2 + small[at + 4 :]
    if kind == "BMP":
        return small[:18] + (60_000).to_bytes(4, "little") * 2 + small[26:]
    assert kind == "GIF"
    return small[:6] + (60_000).to_bytes(2, "little") * 2 + small[10:]


def test_a_bomb_in_a_shard_is_refused_by_its_header() -> None:
    data = encode_png(np.zeros((10_000, 10_000, 1), np.uint8))
    with pytest.raises(IntegrityError):
        decode_image(data, "png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_a_bomb_is_refused_by_its_header(kind: str) -> None:
    with pytest.raises(Unreadable, match=r"pixels are more than max_pixels 50,000,000"):
        read_picture(bomb(kind), spec())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("limit", [63, 64])
def test_the_limit_of_pixels_holds_for_fast_files_too(kind: str, limit: int) -> None:
    data = saved(two_halves(8, 8), kind)
    if limit == 64:
        assert read_picture(data, spec(max_pixels=limit)).width == 8
        return
    with pytest.raises(Unreadable, match="8 x 8 pixels are more than max_pixels 63"):
        read_picture(data, spec(max_pixels=limit))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5_000), (5_000, 1)])
@pytest.mark.parametrize("fit", ["contain", "cover", "stretch"])
def test_odd_shapes_are_read(kind: str, size: tuple[int, int], fit: str) -> None:
    picture = read_picture(saved(Image.new("RGB", size, (200, 200, 200)), kind), spec(fit=fit))
    assert (picture.width, picture.height) == size
    assert np.abs(picture.pixels.astype(int) - 200).max() <= 2


def test_a_jpeg_decoded_small_is_not_drawn_out() -> None:
    """500 pixels at 1/8 are 62.5, which libjpeg pads to 63."""
    image = from_pixels(smooth(500, 500, 3))
    small = read_picture(saved(image, "JPEG", quality=95), spec(3, 28, 28)).pixels
    assert np.abs(small.astype(int) - to_pixels(image, spec(3, 28, 28))).mean() < 1.0


def test_a_jpeg_cut_anywhere_is_rejected() -> None:
    whole = saved(from_pixels(smooth(24, 24, 3)), "JPEG")
    for cut in range(len(whole) - 2):
        with pytest.raises(Unreadable):
            read_pixels(whole[:cut], spec())


def test_fast_decoders_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for data in (saved(from_pixels(noise(9, 9, 3)))[:-20], saved(from_pixels(noise(9, 9, 3)), "JPEG")[:-20]):
        with pytest.raises(Unreadable):
            read_pixels(data, spec())
    assert capfd.readouterr() == ("", "")


def test_decoding_starts_no_threads() -> None:
    """Tasks run one a core. (Importing OpenCV does: its OpenBLAS, which nothing here calls, as NumPy's own.)"""
    program = (
        "import io, os, numpy as np; from PIL import Image; from pipeline import decoders; from pipeline.recipe import "
        "DatasetSpec; spec = DatasetSpec(channels=3, height=64, width=64); pixels = np.zeros((300, 300, 3), np.uint8); "
        "decoders.opencv(); before = len(os.listdir('/proc/self/task')); "
        "[decoders.read_picture(decoders.encode_image(pixels, kind, 90), spec) for kind in ('png', 'jpg', 'webp')]; "
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


@pytest.mark.parametrize(
    ("encoding", "quality", "channels", "tolerance"),
    [
        ("png", 95, 1, 0),
        ("png", 95, 3, 0),
        ("jpg", 95, 1, 12),
        ("jpg", 95, 3, 12),
        ("webp", 100, 3, 0),
        ("webp", 90, 3, 40),
    ],
)
def test_our_encodings_come_back(encoding: str, quality: int, channels: int, tolerance: int) -> None:
    pixels = smooth(40, 32, channels)
    data = encode_image(pixels, encoding, quality)
    assert data == encode_image(pixels, encoding, quality)
    found = decode_image(data, encoding)
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() <= tolerance
    for damaged in (b"", b"other bytes", data[: len(data) // 2]):
        with pytest.raises(IntegrityError):
            decode_image(damaged, encoding)


def test_raw_pixels_are_fitted_as_files_are() -> None:
    pixels = smooth(30, 20, 3)
    assert np.array_equal(fit_pixels(pixels, spec(1)).pixels, read_pixels(saved(from_pixels(pixels)), spec(1)))
    grey = smooth(8, 8, 1)
    assert np.array_equal(fit_pixels(grey, spec()).pixels, grey.repeat(3, axis=2))
    assert fit_pixels(pixels, spec()).width == 20


def test_raw_pixels_have_the_limits_of_files() -> None:
    for shape in ((0, 5, 1), (5, 0, 3), (9, 9, 3)):
        with pytest.raises(Unreadable, match="expected 1 to max_pixels 80 pixels, got"):
            fit_pixels(np.zeros(shape, np.uint8), spec(max_pixels=80))


def test_what_is_no_image_of_ours_is_refused() -> None:
    wide = np.full((8, 8), 40_000, np.uint16)
    for data in (saved(two_halves().convert("RGBA")), saved(Image.fromarray(wide)), saved(two_halves(), "TIFF")):
        for extension in ("png", "jpg", "webp"):
            with pytest.raises(IntegrityError, match=r"expected an? .*(PNG|JPEG|WebP), got"):
                decode_image(data, extension)
    assert decode_image(encode_png(noise(7, 9, 1)), "png").dtype == np.uint8


def test_a_picture_says_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = read_picture(saved(two_halves(40, 20), "JPEG", exif=exif), spec())
    assert isinstance(turned, Picture)
    assert (turned.width, turned.height) == (20, 40)
