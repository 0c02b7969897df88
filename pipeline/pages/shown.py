"""Images as they stand in a page: `data:` URLs, so that a report is one file.

A published PNG stands there byte for byte, with what it says of itself, while that fits; a larger one as WebP.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import pictures
from pipeline.release import provenance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Pixels = NDArray[np.uint8]

WEBP_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """One image of a page; `width` and `height` are the pixels of the image itself."""

    src: str
    alt: str
    width: int
    height: int
    seed: int | None = None
    label: int | None = None
    caption: str = ""


def png_url(png: bytes) -> str:
    """A PNG as a URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def fitting(pngs: Sequence[bytes], budget_bytes: int, side: int) -> list[str]:
    """URLs of these PNGs: as they are where all of them fit, else as WebP of `side` pixels, the first that fit."""
    if sum(map(len, pngs)) <= budget_bytes:
        return [png_url(png) for png in pngs]
    urls, left = [], budget_bytes
    for png in pngs:
        data = _webp(pictures.from_pixels(pictures.decode_png(png)), side, generated=True)
        left -= len(data)
        if left < 0:
            break
        urls.append(_webp_url(data))
    return urls


def real(pixels: "Pixels", side: int) -> str:
    """A real image as a URL, reduced to `side` pixels where it is larger."""
    if max(pixels.shape[:2]) <= side:
        return png_url(pictures.encode_png(pixels))
    return _webp_url(_webp(pictures.from_pixels(pixels), side, generated=False))


def sheet(png: bytes, side: int, *, generated: bool) -> tuple[str, int, int]:
    """A contact sheet as a URL, reduced to `side` pixels where it is larger, with its width and height."""
    image = pictures.from_pixels(pictures.decode_png(png))
    image.thumbnail((side, side))
    return _webp_url(_webp(image, side, generated=generated)), image.width, image.height


def _webp(image: "Image.Image", side: int, *, generated: bool) -> bytes:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    file = io.BytesIO()
    xmp = provenance.XMP.encode() if generated else b""
    image.convert("RGB").save(file, "WEBP", quality=WEBP_QUALITY, method=4, xmp=xmp)
    return file.getvalue()


def _webp_url(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
