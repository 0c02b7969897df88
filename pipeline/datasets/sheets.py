"""Contact sheets of a dataset's version as PNG: some samples of each class, and the first rejected inputs with reasons.

Small images are enlarged by a whole factor, each pixel to a square, so that what is shown is what is stored; large ones
are reduced. Text is in the font that Pillow ships, which has ASCII: other letters lose their accents or are escaped.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.pictures import INK, PAPER, decode_png, from_pixels, png_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image, ImageDraw, ImageFont

    Pixels = NDArray[np.uint8]
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP, MARGIN, HEAD = 4, 16, 48  # pixels: between images, around the sheet, for its heading
HEAD_SIZE, TEXT_SIZE, LINE = 18, 13, 17
NAME_WIDTH = (40, 150)  # of the classes' names, at least and at most
MAX_CLASSES = 100
MAX_CHARACTERS = 400  # of a text; more fit nowhere, and measuring them takes time
FEW_CLASSES = 25  # of more, each class has half as many and smaller images, in columns of at most so many
CELL_PIXELS = (96, 64)  # at most, with few classes and with many
LEGIBLE_PIXELS = 48  # smaller images are enlarged to this or a little more; much larger, squares hide the stroke
UNLABELLED_COLUMNS = 8
TILE_COLUMNS, TILE_WIDTH, TILE_PICTURE, REASON_LINES = 5, 196, 112, 4
TILE_HEIGHT = TILE_PICTURE + 8 + LINE * (1 + REASON_LINES) + 16
FAINT = (112, 112, 118)
EMPTY = (232, 232, 228)


@dataclass(frozen=True, slots=True)
class Reject:
    """A rejected input; `thumbnail` is a PNG of what can be seen of it."""

    name: str
    reason: str
    thumbnail: bytes | None


# --- samples ---


def samples_sheet(images_by_class: Mapping[str, Sequence["Pixels"]]) -> bytes:
    """Some images (h, w, c) of each class, a row a class, as PNG; a square where the only class is ""."""
    shown = {name: images for name, images in images_by_class.items() if len(images)}
    if not shown:
        return png_bytes(_note("no training images"), {})
    if list(shown) == [""]:
        cells = [_cell(image, CELL_PIXELS[0]) for image in shown[""]]
        return png_bytes(_framed(_rows(cells, UNLABELLED_COLUMNS), "Training images"), {})
    names = list(shown)[:MAX_CLASSES]
    many = len(names) > FEW_CLASSES
    rows = []
    for name in names:
        images = shown[name][: -(-len(shown[name]) // 2)] if many else shown[name]
        rows.append((name, [_cell(image, CELL_PIXELS[many]) for image in images]))
    height = -(-len(rows) // -(-len(rows) // FEW_CLASSES))
    columns = [_class_column(rows[start : start + height]) for start in range(0, len(rows), height)]
    return png_bytes(_framed(_beside(columns), _classes_title(len(names), len(images_by_class))), {})


def _classes_title(num_shown: int, num_classes: int) -> str:
    if num_classes == 1:
        return "Training images of 1 class"
    few = "" if num_shown == num_classes else f"{num_shown:,} of "
    return f"Training images of {few}{num_classes:,} classes"


def _cell(pixels: "Pixels", side: int) -> "Image.Image":
    """An image as it is shown: at most `side` pixels wide and high, and LEGIBLE_PIXELS or more."""
    from PIL import Image

    image = from_pixels(pixels)
    if max(image.size) > side:
        image.thumbnail((side, side))
        return image
    scale = -(-LEGIBLE_PIXELS // max(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _rows(cells: Sequence["Image.Image"], columns: int) -> "Image.Image":
    """Images of one size in rows."""
    from PIL import Image

    width, height = (side + GAP for side in cells[0].size)
    columns = min(columns, len(cells))
    sheet = Image.new("RGB", (columns * width - GAP, -(-len(cells) // columns) * height - GAP), PAPER)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (column * width, row * height))
    return sheet


def _class_column(rows: Sequence[tuple[str, Sequence["Image.Image"]]]) -> "Image.Image":
    """A row a class: its name at the left, then its images."""
    from PIL import Image, ImageDraw

    font = _font(TEXT_SIZE)
    names = [_fitting(name, NAME_WIDTH[1], font) for name, _ in rows]
    left = max(NAME_WIDTH[0], *(round(font.getlength(name)) for name in names)) + 2 * GAP
    width, height = (side + GAP for side in rows[0][1][0].size)
    most = max(len(cells) for _, cells in rows)
    sheet = Image.new("RGB", (left + most * width - GAP, len(rows) * height - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (name, (_, cells)) in enumerate(zip(names, rows, strict=True)):
        middle = row * height + (height - GAP) // 2
        draw.text((left - 2 * GAP, middle), name, fill=INK, font=font, anchor="rm")
        for column, cell in enumerate(cells):
            sheet.paste(cell, (left + column * width, row * height))
    return sheet


def _beside(columns: Sequence["Image.Image"]) -> "Image.Image":
    from PIL import Image

    gap = 2 * MARGIN
    size = sum(column.width + gap for column in columns) - gap, max(column.height for column in columns)
    sheet, left = Image.new("RGB", size, PAPER), 0
    for column in columns:
        sheet.paste(column, (left, 0))
        left += column.width + gap
    return sheet


def _framed(sheet: "Image.Image", title: str) -> "Image.Image":
    """The sheet with a margin, and its title above."""
    from PIL import Image, ImageDraw

    font = _font(HEAD_SIZE)
    width = max(sheet.width, round(font.getlength(title))) + 2 * MARGIN
    framed = Image.new("RGB", (width, HEAD + sheet.height + MARGIN), PAPER)
    ImageDraw.Draw(framed).text((MARGIN, HEAD // 2), title, fill=INK, font=font, anchor="lm")
    framed.paste(sheet, (MARGIN, HEAD))
    return framed


# --- rejects ---


def rejects_sheet(rejects: Sequence[Reject], num_rejected: int) -> bytes:
    """Tiles with what can be seen of each input, its name and the reason, as PNG."""
    from PIL import Image, ImageDraw

    if not rejects:
        return png_bytes(_note("nothing was rejected"), {})
    columns = min(TILE_COLUMNS, len(rejects))
    size = columns * TILE_WIDTH - MARGIN, -(-len(rejects) // columns) * TILE_HEIGHT - MARGIN
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, reject in enumerate(rejects):
        row, column = divmod(number, columns)
        _tile(sheet, draw, reject, column * TILE_WIDTH, row * TILE_HEIGHT)
    few = "" if num_rejected == len(rejects) else f", the first {len(rejects)}"
    return png_bytes(_framed(sheet, f"{num_rejected:,} rejected{few}"), {})


def _tile(sheet: "Image.Image", draw: "ImageDraw.ImageDraw", reject: Reject, left: int, top: int) -> None:
    width, middle = TILE_WIDTH - MARGIN, TILE_PICTURE // 2
    draw.rectangle((left, top, left + width - 1, top + TILE_PICTURE - 1), fill=EMPTY)
    if reject.thumbnail is None:
        at = left + width // 2, top + middle
        draw.text(at, "no picture", fill=FAINT, font=_font(TEXT_SIZE), anchor="mm")
    else:
        picture = _cell(decode_png(reject.thumbnail), TILE_PICTURE - 2 * GAP)
        sheet.paste(picture, (left + (width - picture.width) // 2, top + middle - picture.height // 2))
    under, font = top + TILE_PICTURE + 8, _font(TEXT_SIZE)
    draw.text((left, under), _fitting(reject.name, width, font), fill=INK, font=font)
    for line, text in enumerate(_wrapped(reject.reason, width, font)):
        draw.text((left, under + LINE * (line + 1)), text, fill=FAINT, font=font)


# --- text ---


def _font(size: int) -> "Font":
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _ascii(text: str) -> str:
    """The text in the letters that the font has."""
    bare = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return bare.encode("ascii", "backslashreplace").decode()


def _fitting(text: str, width: int, font: "Font") -> str:
    """The text with its middle left out where it is wider than `width` pixels: both ends of a path tell something."""
    text = _ascii(text)
    fitting, keep = text, min(len(text), MAX_CHARACTERS)
    while len(fitting) > MAX_CHARACTERS or (font.getlength(fitting) > width and keep > 1):
        keep -= 1
        fitting = f"{text[: keep // 2]}\u2026{text[len(text) - (keep - keep // 2) :]}"
    return fitting


def _wrapped(text: str, width: int, font: "Font") -> list[str]:
    """The text in at most REASON_LINES lines of `width` pixels; an ellipsis says that there is more."""
    lines = [""]
    for word in _ascii(text)[:MAX_CHARACTERS].split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) == REASON_LINES:
            lines[-1] = _ended(lines[-1], width, font)
            break
        else:
            lines.append(_fitting(word, width, font))
    return [line for line in lines if line]


def _ended(line: str, width: int, font: "Font") -> str:
    while font.getlength(f"{line}\u2026") > width:
        line = line[:-1]
    return f"{line}\u2026"


def _note(text: str) -> "Image.Image":
    from PIL import Image, ImageDraw

    note = Image.new("RGB", (320, 64), PAPER)
    ImageDraw.Draw(note).text((160, 32), text, fill=FAINT, font=_font(HEAD_SIZE), anchor="mm")
    return note
