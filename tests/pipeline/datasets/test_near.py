"""Near duplicates: a hash that small changes leave, and an exact search."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.datasets.near import NearIndex, perceptual_hash


def picture(seed: int, side: int = 64) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def hashed(image: Image.Image) -> int:
    found = perceptual_hash(np.asarray(image))
    assert found is not None
    return found


def distance(one: Image.Image, other: Image.Image) -> int:
    return (hashed(one) ^ hashed(other)).bit_count()


@pytest.mark.parametrize("seed", range(5))
def test_small_changes_change_few_bits_and_other_pictures_many(seed: int) -> None:
    image = picture(seed)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    assert distance(image, Image.open(buffer)) <= 3
    assert distance(image, image.resize((48, 48))) <= 3
    assert distance(image, image.point(lambda value: min(value * 1.05, 255))) <= 6
    assert distance(image, picture(seed + 100)) > 12


@pytest.mark.parametrize("channels", [1, 3])
def test_flat_images_and_faint_noise_have_no_hash(channels: int) -> None:
    for value in (0, 3, 200, 255):
        assert perceptual_hash(np.full((28, 30, channels), value, np.uint8)) is None
    faint = np.random.default_rng(0).normal(128, 3, (64, 64, channels)).round().astype(np.uint8)
    assert perceptual_hash(faint) is None


def test_grey_and_colour_of_the_same_picture_are_near() -> None:
    image = picture(3)
    grey = np.asarray(image.convert("L"))[..., None]
    found = perceptual_hash(grey)
    assert found is not None and (found ^ hashed(image)).bit_count() <= 1


def test_different_pictures_are_rarely_near() -> None:
    hashes = np.array([hashed(picture(seed, 32)) for seed in range(400)], np.uint64)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])[np.triu_indices(400, 1)]
    assert (apart <= 8).sum() == 0


def test_the_hash_is_the_same_on_every_machine() -> None:
    """Written down: whole-number sums leave nothing to the processor or to the order of summing."""
    pixels = (np.arange(28)[:, None] * np.arange(31)[None] % 251).astype(np.uint8)[..., None]
    assert perceptual_hash(pixels) == 0xBD0E227125696ED5


def test_bands_share_the_load() -> None:
    """Blurred pictures say little in their high frequencies: no band may be made of those alone."""
    hashes = np.array([hashed(picture(seed, 32)) for seed in range(500)], np.uint64)
    for low in range(0, 64, 16):
        keys = (hashes >> np.uint64(low)) & np.uint64(0xFFFF)
        assert np.unique(keys, return_counts=True)[1].max() <= 10


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=30),
    st.lists(st.integers(0, 63), max_size=9),
    st.integers(0, 8),
)
def test_the_search_is_exact(values: list[int], flips: list[int], most: int) -> None:
    near = [value ^ sum(1 << bit for bit in set(flips[:n])) for n, value in enumerate(values)]
    index = NearIndex(most)
    for row, value in enumerate(near):
        index.add(value, row)
    for value in values:
        assert index.near(value) == [row for row, other in enumerate(near) if (other ^ value).bit_count() <= most]


def test_long_buckets_are_searched_as_well() -> None:
    index = NearIndex(3)
    values = [(5 << 48) | n for n in range(500)]
    for row, value in enumerate(values):
        index.add(value, row)
    wanted = [row for row, value in enumerate(values) if (value ^ values[7]).bit_count() <= 3]
    assert index.near(values[7]) == wanted
