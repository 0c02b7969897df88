"""What is left of an input that was rejected: a small picture of it, for the contact sheet of rejects."""

import io
import struct
import zlib
from typing import TYPE_CHECKING

from pipeline.decoders import DAMAGED, FORMATS, MAX_PIXELS, PNG_SIGNATURE
from pipeline.pictures import chunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
MAX_LINES_BYTES = 64 << 20
PIECE_BYTES = 256  # unpacked at a time: one that breaks gives nothing


def thumbnail(data: bytes, side: int) -> "Pixels | None":
    """What can be seen of an input that was rejected, RGB of at most `side` x `side`; None where that is nothing.

    Of a damaged PNG the lines before the damage, of a damaged JPEG what libjpeg makes of it.
    """
    import numpy as np
    import simplejpeg
    from PIL import Image

    try:
        whole = _before_damage(data) if data.startswith(PNG_SIGNATURE) else data
        with Image.open(io.BytesIO(whole), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            shown: Image.Image = image
            if image.format == "JPEG":
                found = simplejpeg.decode_jpeg(data, "RGB", min_height=side, min_width=side, strict=False)
                shown = Image.fromarray(found)
            shown.thumbnail((side, side))
            return np.asarray(shown.convert("RGB"))
    except (*DAMAGED, Image.DecompressionBombError):
        return None


def _before_damage(data: bytes) -> bytes:
    """A PNG cut after the last whole line that can be unpacked; as it is where it is interlaced or large."""
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    line = 1 + -(-width * depth * PNG_CHANNELS[colour] // 8)
    if interlaced or line * height > MAX_LINES_BYTES:
        return data
    at, kept, packed = len(PNG_SIGNATURE), b"", bytearray()
    while at + 8 <= len(data):
        kind, stop = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4])
        if kind == b"IDAT":
            packed += data[at + 8 : stop]
        elif not packed and kind in (b"PLTE", b"tRNS"):
            kept += chunk(kind, data[at + 8 : stop])
        at = stop + 4
    lines = _unpacked(packed, line * height)
    whole = len(lines) // line
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, whole, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(lines[: whole * line], 1))
    return PNG_SIGNATURE + head + kept + body + chunk(b"IEND", b"")


def _unpacked(packed: bytearray, most: int) -> bytearray:
    """What comes out of a zlib stream before it ends or breaks, at most so many bytes."""
    inflate, found = zlib.decompressobj(), bytearray()
    for at in range(0, len(packed), PIECE_BYTES):
        if len(found) >= most:
            break
        try:
            found += inflate.decompress(packed[at : at + PIECE_BYTES], most - len(found))
        except zlib.error:
            break
    return found
