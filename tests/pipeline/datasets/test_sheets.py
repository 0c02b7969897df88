"""Contact sheets: what is shown is what is stored, at any number of classes and whatever the names say."""

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.datasets.sheets import FEW_CLASSES, MAX_CLASSES, Reject, rejects_sheet, samples_sheet
from pipeline.pictures import PAPER, decode_png, encode_png


def images(number: int, side: int = 8, channels: int = 1) -> list[Any]:
    generator = np.random.default_rng(side)
    return list(generator.integers(0, 256, (number, side, side, channels), dtype=np.uint8))


def count(sheet: bytes, image: Any) -> int:
    """How often an image stands in a sheet, as it is."""
    shown = decode_png(sheet)
    windows = sliding_window_view(shown, (*image.shape[:2], 3))[:, :, 0]
    rgb = np.broadcast_to(image, (*image.shape[:2], 3))
    corners = (windows[:, :, 0, 0] == rgb[0, 0]).all(-1) & (windows[:, :, -1, -1] == rgb[-1, -1]).all(-1)
    return sum(bool((windows[row, column] == rgb).all()) for row, column in np.argwhere(corners))


def enlarged(image: Any, factor: int) -> Any:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.mark.parametrize(("side", "factor"), [(8, 6), (28, 2), (48, 1), (96, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_stands_there_enlarged_by_a_whole_factor(side: int, factor: int, channels: int) -> None:
    some = images(6, side, channels)
    sheet = samples_sheet({"cats": some[:4], "dogs": some[4:]})
    assert [count(sheet, enlarged(image, factor)) for image in some] == [1] * 6


def test_unlabelled_images_stand_in_a_square() -> None:
    some = images(64, 32)
    sheet = samples_sheet({"": some})
    assert all(count(sheet, enlarged(image, 2)) == 1 for image in some[::9])
    height, width, _ = decode_png(sheet).shape
    assert abs(height - width) < 64


def test_large_images_are_reduced() -> None:
    sheet = decode_png(samples_sheet({"a": [np.full((512, 256, 3), (200, 0, 0), np.uint8)]}))
    assert (sheet == (200, 0, 0)).all(-1).sum() == 96 * 48


def test_many_classes_are_shown_in_columns_and_the_first_of_more() -> None:
    one, other = images(2, 64)
    few = {f"{number}": [one] * 4 for number in range(FEW_CLASSES)}
    assert count(samples_sheet(few), one) == 4 * FEW_CLASSES
    more = few | {f"more {number}": [other] * 4 for number in range(MAX_CLASSES)}
    sheet = samples_sheet(more)
    assert (count(sheet, one), count(sheet, other)) == (2 * FEW_CLASSES, 2 * (MAX_CLASSES - FEW_CLASSES))
    height, width, _ = decode_png(sheet).shape
    assert max(height, width) < 2_000


def test_a_class_without_images_has_no_row_and_none_at_all_is_said() -> None:
    some = images(3)
    rows = [len(decode_png(samples_sheet(classes))) for classes in ({"cats": some}, {"cats": some, "none": []})]
    assert rows[0] == rows[1]
    assert (decode_png(samples_sheet({"none": []})) != PAPER).any()


NAMES = [
    "x" * 50_000,
    "word " * 200,
    "\u732b\u72ac",
    "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p.png",
    "",
    "[bold] \U0001f63a\u0301",
    "a\tb",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_and_reason_stays_in_its_place(name: str) -> None:
    pixels = decode_png(samples_sheet({name or "?": images(8), "dogs": images(8)}))
    assert pixels.shape[1] <= 16 + 160 + 8 * 52 + 16
    rejects = [Reject("one", "fine", None), Reject(name, f"{name} {name}", None), Reject("two", "fine", None)]
    tiles = decode_png(rejects_sheet(rejects, 3))
    assert (tiles[:, -16:] == PAPER).all() and (tiles[-16:] == PAPER).all()
    gaps = tiles[48:, 16 + 180 + 1 : 16 + 196 - 1]  # between the first tile and the second
    assert (gaps == PAPER).all()


def test_rejects_show_their_thumbnails() -> None:
    (small,), (large,) = images(1, 8, 3), images(1, 200, 3)
    rejects = [Reject("a.png", "damaged", encode_png(small)), Reject("b.png", "too large", encode_png(large))]
    sheet = rejects_sheet([*rejects, Reject("c.txt", "not an image", None)], 3)
    assert count(sheet, enlarged(small, 6)) == 1
    assert len({rejects_sheet(some, 9) for some in ([], rejects[:1], rejects)}) == 3


def test_the_same_input_gives_the_same_bytes() -> None:
    some = {"cats": images(4), "dogs": images(2)}
    assert samples_sheet(some) == samples_sheet(some)
    assert rejects_sheet([Reject("a", "b", None)], 1) == rejects_sheet([Reject("a", "b", None)], 1)
