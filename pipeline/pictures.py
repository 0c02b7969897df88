"""Pictures: pixels to PNG and back, and grids of them. What reads a source's files is `pipeline.decoders`.

Pixels are uint8 (height, width, channels) with 1 or 3 channels everywhere.
"""

import functools
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Pixels = NDArray[np.uint8]

PAPER = (250, 250, 248)
INK = (60, 60, 64)
FILTER_FROM_VALUES = 4096  # PNG's filters pay for pictures of this size; below, plain rows pack as well
SUB = 1  # PNG's filter type that takes each value's left neighbour off it


# --- pixels to PNG and back ---


def from_pixels(pixels: "Pixels") -> "Image.Image":
    """(height, width, 1 or 3) uint8 as an image."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def encode_png(pixels: "Pixels", text: Mapping[str, str] | None = None) -> bytes:
    """(height, width, 1 or 3) uint8 as PNG with `text` as its tEXt chunks: the same bytes each time.

    Pillow's encoder takes 84 us for a 28x28 image and this 13 us: most of Pillow's is set-up.
    """
    import numpy as np

    height, width, channels = pixels.shape
    row = width * channels
    lines = np.zeros((height, 1 + row), np.uint8)
    lines[:, 1:] = pixels.reshape(height, row)
    if pixels.size >= FILTER_FROM_VALUES:
        lines[:, 0] = SUB
        lines[:, 1 + channels :] -= pixels.reshape(height, row)[:, :-channels]
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = [
        chunk(b"IHDR", head),
        *_text_chunks(text or {}),
        chunk(b"IDAT", zlib.compress(lines.tobytes(), 1)),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def png_bytes(image: "Image.Image", text: Mapping[str, str]) -> bytes:
    """An image as PNG with `text` as its tEXt chunks: grey stays grey, everything else becomes colour."""
    import numpy as np

    image = image if image.mode == "L" else image.convert("RGB")
    return encode_png(np.asarray(image).reshape(image.height, image.width, -1), text)


def decode_png(data: bytes) -> "Pixels":
    """A PNG of this project as (height, width, 1 or 3), by Pillow. Raises IntegrityError."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode in ("L", "RGB"):
                return np.array(image, dtype=np.uint8).reshape(image.height, image.width, -1)
            got = f"mode {image.mode}"
    except (
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        got = str(error)
    raise IntegrityError(f"expected an 8-bit grey or RGB PNG, got {got}")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _text_chunks(text: Mapping[str, str]) -> list[bytes]:
    return [_text_chunk(keyword, value) for keyword, value in text.items()]


@functools.lru_cache(maxsize=256)  # of a set's pictures all but the seed say the same
def _text_chunk(keyword: str, value: str) -> bytes:
    """tEXt where Latin-1 can say it, iTXt (UTF-8, uncompressed) where not."""
    name = keyword.encode("latin-1")
    if not 1 <= len(name) <= 79 or "\0" in keyword + value:
        raise ValueError(f"expected a PNG keyword of 1 to 79 characters and text without NUL, got {keyword!r}")
    try:
        return chunk(b"tEXt", name + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return chunk(b"iTXt", name + b"\0\0\0\0\0" + value.encode())


def add_text(png: bytes, text: Mapping[str, str]) -> bytes:
    """The PNG with further tEXt chunks after its header; its pixels are not touched. Raises IntegrityError."""
    head_end = 8 + 25  # the signature; IHDR is always 13 bytes in a chunk
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR":
        raise IntegrityError(f"expected a PNG, got {png[:16]!r}")
    return png[:head_end] + b"".join(_text_chunks(text)) + png[head_end:]


# --- the contact sheet ---


def grid(
    images_NHWC: "Pixels", columns: int, scale: int | None = None, row_labels: Sequence[str] | None = None
) -> "Image.Image":
    """A contact sheet, row by row, `row_labels` at the left; images are enlarged `scale` times.

    Without a `scale` small images are enlarged to 48 pixels or more. The enlargement is bicubic: at 8x8 it
    shows the stroke that was scanned where the nearest neighbour shows blocks; it rings less than Lanczos.
    """
    from PIL import Image, ImageDraw, ImageFont

    num, height, width, _ = images_NHWC.shape
    if not num or columns < 1:
        raise ValueError(f"expected images and a column or more, got {num} images and {columns} columns")
    scale = scale or max(1, -(-48 // max(height, width)))
    cell_width, cell_height, rows = width * scale, height * scale, -(-num // columns)
    gap = max(2, cell_height // 16)
    font = ImageFont.load_default(size=max(10, min(20, cell_height // 3)))
    caption = max((font.getlength(label) for label in row_labels or ()), default=0.0)
    left = gap * 2 + (int(caption) + gap * 3 if caption else 0)
    sheet = Image.new(
        "RGB",
        (left + columns * (cell_width + gap) + gap, gap * 3 + rows * (cell_height + gap)),
        PAPER,
    )
    for index, pixels in enumerate(images_NHWC):
        row, column = divmod(index, columns)
        cell = from_pixels(pixels).resize((cell_width, cell_height), Image.Resampling.BICUBIC)
        sheet.paste(cell, (left + column * (cell_width + gap), gap * 2 + row * (cell_height + gap)))
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate((row_labels or ())[:rows]):
        middle = gap * 2 + row * (cell_height + gap) + cell_height // 2
        draw.text((left - gap * 3, middle), label, fill=INK, font=font, anchor="rm")
    return sheet


def grid_by_class(images_NHWC: "Pixels", classes: Sequence[int], names: Sequence[str]) -> "Image.Image":
    """A contact sheet with one captioned row for each class; a class with fewer images ends its row early."""
    import numpy as np

    of_class = np.asarray(classes)
    present = sorted(set(classes))
    columns = int(max((of_class == label).sum() for label in present))
    paper = np.full((1, *images_NHWC.shape[1:]), PAPER[0], np.uint8)
    rows = []
    for label in present:
        own = images_NHWC[of_class == label]
        rows.append(np.concatenate([own, paper.repeat(columns - len(own), axis=0)]))
    return grid(np.concatenate(rows), columns, row_labels=[names[label] for label in present])


def side_by_side(panels: Mapping[str, "Image.Image"]) -> "Image.Image":
    """Contact sheets next to each other, each with its title above."""
    from PIL import Image, ImageDraw, ImageFont

    title_height, gap = 34, 12
    width = sum(panel.width + gap for panel in panels.values()) - gap
    height = title_height + max(panel.height for panel in panels.values())
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(size=18), 0
    for title, panel in panels.items():
        sheet.paste(panel, (left, title_height))
        draw.text((left + panel.width // 2, title_height // 2 + 2), title, fill=INK, font=font, anchor="mm")
        left += panel.width + gap
    return sheet
