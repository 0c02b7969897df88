"""Augmentation: what happens to a sample depends on (seed, epoch, key) alone, and is spread as it says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import RecipeError
from trainers import families
from trainers.augment import GREY, Augment, uniforms

ALL = Augment(flip=True, crop_pixels=2, brightness=0.25, contrast=0.5, saturation=1, cutout=0.5)
KEYS = torch.from_numpy(np.random.default_rng(0).integers(0, 2**64, 4096, dtype=np.uint64).view(np.int64))
IMAGES = torch.rand(64, 3, 9, 7, generator=torch.Generator().manual_seed(0))


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(12)), size=st.integers(1, 12), epoch=st.integers(0, 3))
def test_a_sample_is_augmented_alike_in_any_batch(order: list[int], size: int, epoch: int) -> None:
    alone = {row: ALL(IMAGES[row : row + 1], KEYS[row : row + 1], 5, epoch)[0] for row in range(12)}
    rows = order[:size]
    for row, image in zip(rows, ALL(IMAGES[rows], KEYS[rows], 5, epoch), strict=True):
        torch.testing.assert_close(image, alone[row], rtol=0, atol=1e-6)  # sums may be added up in another order


def test_seeds_epochs_and_keys_differ() -> None:
    first = ALL(IMAGES, KEYS[:64], seed=0, epoch=0)
    assert torch.equal(first, ALL(IMAGES, KEYS[:64], seed=0, epoch=0))
    for other in (ALL(IMAGES, KEYS[:64], 0, 1), ALL(IMAGES, KEYS[:64], 1, 0), ALL(IMAGES, KEYS[64:128], 0, 0)):
        assert ((other - first).abs().flatten(1).amax(1) > 0).float().mean() > 0.95


def test_images_stay_images() -> None:
    made = ALL(IMAGES, KEYS[:64], 0, 0)
    assert (made.shape, made.dtype, made.is_contiguous()) == (IMAGES.shape, torch.float32, True)
    assert 0 <= made.min() <= made.max() <= 1
    assert torch.equal(Augment()(IMAGES, KEYS[:64], 0, 0), IMAGES)


def test_the_draws_are_uniform_and_independent() -> None:
    draws = torch.cat([uniforms(KEYS, seed, epoch, 4) for seed in range(3) for epoch in range(3)], dim=1).double()
    sequential = uniforms(torch.arange(4096), 0, 0, 4).double()  # keys that differ in few bits
    for each in (draws, sequential):
        num, columns = each.shape
        assert each.min() >= 0 and each.max() < 1
        counts = torch.stack([torch.histc(each[:, column], 16, 0, 1) for column in range(columns)])
        chi = ((counts - num / 16) ** 2 / (num / 16)).sum(1)  # of 15 degrees of freedom
        assert chi.max() < 45  # p = 0.0001, each
        off_diagonal = torch.corrcoef(each.T) - torch.eye(columns)
        assert off_diagonal.abs().max() < 5 / num**0.5


def test_every_other_image_is_flipped() -> None:
    images = torch.arange(6.0).div(6).expand(4096, 1, 2, 6)
    made = Augment(flip=True)(images, KEYS, 0, 0)
    flipped = (made == images.flip(3)).all(3).all(2).all(1)
    assert (flipped | (made == images).all(3).all(2).all(1)).all()
    assert abs(flipped.double().mean() - 0.5) < 0.04  # five standard deviations


def test_crops_move_by_whole_pixels_and_continue_the_edge() -> None:
    image = torch.arange(20.0).view(1, 4, 5) / 20
    made = Augment(crop_pixels=1)(image.expand(4096, 1, 4, 5), KEYS, 0, 0)
    padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    crops = [padded[:, top : top + 4, left : left + 5] for top in range(3) for left in range(3)]
    shares = torch.stack([(made == crop).flatten(1).all(1).double().mean() for crop in crops])
    assert shares.sum() == 1
    assert (shares - 1 / 9).abs().max() < 0.025  # five standard deviations


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_keep_their_range(name: str) -> None:
    images = 0.4 + 0.2 * IMAGES[:1].expand(4096, 3, 9, 7)
    made = Augment.model_validate({name: 0.25})(images, KEYS, 0, 0)
    if name == "brightness":
        found = (made - images).mean((1, 2, 3))
    elif name == "contrast":
        found = made.std((1, 2, 3)) / images.std((1, 2, 3)) - 1
    else:
        found = made.std(1).mean((1, 2)) / images.std(1).mean((1, 2)) - 1
    assert -0.2501 < found.min() < -0.24 and 0.24 < found.max() < 0.2501
    assert abs(found.mean()) < 0.012


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_cutout_is_a_grey_rectangle_anywhere(share: float) -> None:
    made = Augment(cutout=share)(torch.zeros(4096, 1, 8, 6), KEYS, 0, 0)
    assert set(made.flatten().tolist()) == {0.0, GREY}
    cut = made[:, 0] == GREY
    rows, columns = cut.any(2), cut.any(1)
    assert torch.equal(cut, rows[:, :, None] & columns[:, None, :])
    assert rows.sum(1).max() == round(8 * share) and columns.sum(1).max() == round(6 * share)
    assert cut.any(0).all()


def test_the_recipe_names_it_in_a_models_section() -> None:
    config = families.parse_config("vae", {"augment": {"flip": True}}, "models.v")
    assert config.augment == Augment(flip=True)
    assert families.parse_config("gan", {}, "models.g").augment is None
    with pytest.raises(RecipeError, match=r"models.v.augment.flop: .*; the fields of augment are flip, crop_pixels"):
        families.parse_config("vae", {"augment": {"flop": True}}, "models.v")
    with pytest.raises(ValidationError):
        Augment(cutout=1.5)
