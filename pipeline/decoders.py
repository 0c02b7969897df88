"""Decode: a source's file to pixels of the recipe's shape, and the images of our own shards back to pixels.

Plain PNG and JPEG files, which are nearly all, go to the fastest decoder for them (OpenCV's libpng, simplejpeg's
libjpeg-turbo: 6 and 4 times Pillow); whatever is special goes to Pillow, which also judges what the fast ones refuse.
What both take gives the same pixels. (OpenCV's WebP is 1.2 times Pillow's: not worth a third way.) A PNG is taken only
if the checksum of each of its chunks is right. The size stands in the header and is checked before anything is decoded.

Pixels are uint8 (height, width, channels) with 1 or 3 channels everywhere.
"""

import functools
import io
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import IntegrityError
from pipeline.pictures import encode_png, from_pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from pipeline.sections import DatasetSpec

    Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
JPEG_SIGNATURE = b"\xff\xd8\xff"
PNG_SIGNATURE, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
PLAIN_PNGS = (b"\x08\0", b"\x08\x02")  # bit depth and colour type: 8-bit grey, RGB
PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"sRGB", b"gAMA", b"cHRM"}
TURNING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts of a PNG that Pillow turns it by
TURNED = range(2, 9)  # the EXIF orientations that are not upright
TURNED_BY_A_QUARTER = range(5, 9)
OURS = {"png": "an 8-bit grey or RGB PNG", "jpg": "a whole JPEG", "webp": "a whole RGB WebP"}  # by extension
MAX_PIXELS = 50_000_000  # where no recipe says it
# What Pillow's decoders raise on damaged files (found by damaging some: test_decoders).
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    OverflowError,
    AssertionError,
    struct.error,
    zlib.error,
)


class Unreadable(ValueError):  # noqa: N818 - the reason why an input is rejected, not a failure
    """An input that cannot become a sample, and why in a few words."""


class Picture(NamedTuple):
    """An input in the recipe's shape, with the (upright) size that it had."""

    pixels: "Pixels"
    width: int
    height: int


def read_picture(data: bytes, spec: "DatasetSpec") -> Picture:
    """Decode one image file to the dataset's (height, width, channels).

    Upright by its EXIF tag, transparency over white, the first frame of an animation, 16-bit grey scaled to 8; colour
    profiles are not applied. Raises Unreadable.
    """
    if data.startswith(PNG_SIGNATURE) and _is_plain_png(data, spec.max_pixels):
        pixels = _imdecode(data)
        if pixels is not None:
            return fit_pixels(pixels, spec)
    if data.startswith(JPEG_SIGNATURE) and (picture := _read_plain_jpeg(data, spec)):
        return picture
    return _read_slowly(data, spec)


def fit_pixels(pixels: "Pixels", spec: "DatasetSpec") -> Picture:
    """Pixels (height, width, 1 or 3) in the dataset's shape: the array itself where it has it. Raises Unreadable."""
    height, width, channels = pixels.shape
    if not 1 <= width * height <= spec.max_pixels:
        raise Unreadable(f"expected 1 to max_pixels {spec.max_pixels:,} pixels, got {width} x {height}")
    if pixels.shape == (spec.height, spec.width, spec.channels):
        return Picture(pixels, width, height)
    if (height, width) == (spec.height, spec.width) and channels == 1:
        return Picture(pixels.repeat(3, axis=2), width, height)
    return Picture(to_pixels(from_pixels(pixels), spec), width, height)


# --- fast ---


@functools.cache
def opencv() -> Any:
    """OpenCV: silent, and in the threads that call it."""
    import cv2

    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def _is_plain_png(data: bytes, max_pixels: int) -> bool:
    """Whether a PNG is 8-bit grey or RGB with no chunk that changes its look. Raises Unreadable where it is damaged.

    Pillow and OpenCV both pass over a wrong checksum, and the picture is then another one.
    """
    at, end, kind = len(PNG_SIGNATURE), len(data), b""
    plain = _is_plain_header(data, max_pixels)
    while kind != b"IEND":
        kind, stop = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4])
        if stop + 4 > end:
            raise Unreadable("damaged: a PNG that is cut short")
        if zlib.crc32(data[at + 4 : stop]) != int.from_bytes(data[stop : stop + 4]):
            raise Unreadable("damaged: a PNG with a wrong checksum")
        turning = kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(TURNING_TEXTS, at + 8)
        plain = plain and kind in PLAIN_CHUNKS and not turning
        at = stop + 4
    return plain


def _is_plain_header(data: bytes, max_pixels: int) -> bool:
    """Whether a PNG begins as an 8-bit grey or RGB one of at most so many pixels."""
    width, height, kind = int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), data[24:26]
    return kind in PLAIN_PNGS and width * height <= max_pixels


def _imdecode(data: bytes) -> "Pixels | None":
    """An 8-bit image by OpenCV: (height, width, 1 or 3), None where it cannot."""
    import numpy as np

    cv2 = opencv()
    try:
        found: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if found is None:
        return None
    if found.ndim == 2:
        return found[..., None]
    pixels: Pixels | None = cv2.cvtColor(found, cv2.COLOR_BGR2RGB) if found.shape[2] == 3 else None
    return pixels


def _read_plain_jpeg(data: bytes, spec: "DatasetSpec") -> Picture | None:
    """By libjpeg-turbo, None where that refuses or the file is special."""
    import simplejpeg

    if (b"Exif\0\0" in data or b"tiff:Orientation" in data) and _is_turned(data):
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > spec.max_pixels or colour not in ("Gray", "YCbCr"):
            return None
        shrink = _shrink(width, height, spec)
        small = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)} if shrink > 1 else {}
        pixels: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if colour == "Gray" else "RGB", strict=True, **small)
    except ValueError:
        return None
    if shrink == 1:
        return fit_pixels(pixels, spec)
    return Picture(to_pixels(from_pixels(pixels), spec, (width / shrink, height / shrink)), width, height)


def _shrink(width: int, height: int, spec: "DatasetSpec") -> int:
    """By what a JPEG is shrunk as it is decoded, as Pillow's `draft` does: twice the size is enough for the filter.

    libjpeg-turbo knows all eighths, and is slower at those that are no power of two.
    """
    enough = 2 * max(spec.height, spec.width)
    room = min(width // enough, height // enough)
    return next((shrink for shrink in (8, 4, 2) if room >= shrink), 1)


def _is_turned(data: bytes) -> bool:
    """Whether the EXIF tag says that the image does not stand upright."""
    from PIL import ExifTags, Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.getexif().get(ExifTags.Base.Orientation) in TURNED
    except (*DAMAGED, Image.DecompressionBombError):
        return True  # Pillow will say why


# --- by Pillow ---


def _read_slowly(data: bytes, spec: "DatasetSpec") -> Picture:
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > spec.max_pixels:
                size = f"{image.width} x {image.height}"
                raise Unreadable(f"{size} pixels are more than max_pixels {spec.max_pixels:,}")
            width, height = image.size
            shrink = _shrink(width, height, spec)
            drafted = image.draft(None, (width // shrink, height // shrink)) if shrink > 1 else None
            shown = (width / shrink, height / shrink) if drafted else None
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            upright = ImageOps.exif_transpose(image)
            if orientation in TURNED_BY_A_QUARTER and image.format != "TIFF":  # of a TIFF Pillow states it upright
                width, height = height, width
            return Picture(to_pixels(_plain(upright), spec, None if orientation in TURNED else shown), width, height)
    except Image.DecompressionBombError:  # of a limit of Pillow's own
        most = min(spec.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or spec.max_pixels))
        raise Unreadable(f"its pixels are more than max_pixels {most:,}") from None
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable(f"not a {', '.join(FORMATS)} image") from None
    except DAMAGED as error:
        raise Unreadable(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def _plain(image: "Image.Image") -> "Image.Image":
    """The image as 8-bit grey ("L") or colour ("RGB"), whatever it was. Raises Unreadable."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16"):
        scaled = ((np.arange(1 << 16) * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(scaled[np.asarray(image)])
    if image.mode in ("I", "F"):
        raise Unreadable("32 bits a pixel have no known range; save it with 8 or 16")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image if image.mode == "L" else image.convert("L" if image.mode == "1" else "RGB")


def to_pixels(image: "Image.Image", spec: "DatasetSpec", shown: tuple[float, float] | None = None) -> "Pixels":
    """An "L" or "RGB" image as the dataset's (height, width, channels). An image of that size is not touched.

    `shown` is how much of its width and height is the picture: a JPEG that was shrunk as it was decoded is padded to
    whole pixels, by which the picture would be drawn out (500 pixels at 1/8 are 62.5 of 63).

    Lanczos with its support widened by the scale (Pillow's `resize`) is the sharpest filter without aliasing
    at hand; the datasets of StyleGAN and EDM are made with it. `contain` keeps the whole image and continues
    its edge into the rest: a plain background goes on whatever its colour, and there is no bar of another
    colour to be learnt. `cover` fills the shape and cuts the longer side's ends off; `stretch` gives up the
    aspect.
    """
    import numpy as np
    from PIL import Image

    channels, height, width, fit = spec.channels, spec.height, spec.width, spec.fit
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    full_width, full_height = shown or image.size
    if (full_width, full_height) != (width, height):
        scales = width / full_width, height / full_height
        scale = max(scales) if fit == "cover" else min(scales)
        box, size = (0.0, 0.0, full_width, full_height), (width, height)
        if fit == "contain":
            size = min(max(1, round(full_width * scale)), width), min(max(1, round(full_height * scale)), height)
        elif fit == "cover":
            box = _middle(full_width, full_height, width / scale, height / scale)
        image = image.resize(size, Image.Resampling.LANCZOS, box=box)
    pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    if image.size == (width, height):
        return pixels
    above, left = (height - image.height) // 2, (width - image.width) // 2
    below, right = height - image.height - above, width - image.width - left
    return np.pad(pixels, ((above, below), (left, right), (0, 0)), mode="edge")


def _middle(full_width: float, full_height: float, width: float, height: float) -> tuple[float, float, float, float]:
    """The box of `width` and `height` around the middle of the full one, inside of it."""
    left, top = max(0.0, (full_width - width) / 2), max(0.0, (full_height - height) / 2)
    return left, top, min(full_width - left, full_width), min(full_height - top, full_height)


# --- our own shards ---


def encode_image(pixels: "Pixels", encoding: str, quality: int) -> bytes:
    """Pixels as png, jpg or webp (without loss at quality 100; colour only): the same bytes each time.

    jpg keeps the colours at full resolution: at the sizes that models are trained on, halving them shows. webp is
    packed by its fastest method: without loss 70 times as fast as by OpenCV's, for 8% more bytes.
    """
    import simplejpeg

    if encoding == "png":
        return encode_png(pixels)
    if encoding == "jpg":
        colour = "GRAY" if pixels.shape[2] == 1 else "RGB"
        data: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace=colour, colorsubsampling="444")
        return data
    assert encoding == "webp" and pixels.shape[2] == 3, (encoding, pixels.shape)
    buffer = io.BytesIO()
    lossless = quality == 100
    from_pixels(pixels).save(buffer, "WEBP", lossless=lossless, quality=0 if lossless else quality, method=0)
    return buffer.getvalue()


def decode_image(data: bytes, extension: str) -> "Pixels":
    """A png, jpg or webp of our shards, (height, width, 1 or 3). Raises IntegrityError.

    For bytes whose SHA-256 was checked: a PNG's own checksums are not.
    """
    import simplejpeg

    found: Pixels | None = None
    try:
        if extension == "png":
            whole = data.startswith(PNG_SIGNATURE) and data.endswith(PNG_END)
            found = _imdecode(data) if whole and _is_plain_header(data, MAX_PIXELS) else None
        elif extension == "jpg":
            _, _, colour, _ = simplejpeg.decode_jpeg_header(data)
            found = simplejpeg.decode_jpeg(data, "GRAY" if colour == "Gray" else "RGB", strict=True)
        elif data[8:12] == b"WEBP":
            found = _imdecode(data)
    except ValueError as error:
        raise IntegrityError(f"expected {OURS[extension]}, got {error}") from None
    if found is None:
        raise IntegrityError(f"expected {OURS[extension]}, got {data[:12]!r}")
    return found
