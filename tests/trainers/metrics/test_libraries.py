"""Our figures are those of the libraries on the same features, to 1e-4: torchmetrics and prdc."""

import pytest
import torch
from prdc import compute_prdc
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from tests.trainers.metrics.sets import normal
from trainers.metrics.frechet import frechet_distance
from trainers.metrics.kernel import kernel_distance
from trainers.metrics.neighbours import neighbourhoods

WIDTH = 64


class Flat(nn.Module):
    """An extractor whose images are features already."""

    num_features = WIDTH

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.flatten(1)


def sets() -> tuple[Tensor, Tensor]:
    """Features of a network: not negative, correlated."""
    mix = normal(WIDTH, WIDTH, 0) / WIDTH**0.5
    return (normal(900, WIDTH, 1) @ mix).relu(), (0.3 + 0.9 * normal(1_100, WIDTH, 2) @ mix).relu()


def as_images(features_ND: Tensor) -> Tensor:
    return features_ND.float()[:, :, None, None]


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    real, fake = sets()
    theirs = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(WIDTH, 1, 1))
    theirs.set_dtype(torch.float64)
    theirs.update(as_images(real), real=True)
    theirs.update(as_images(fake), real=False)
    assert frechet_distance(real.float(), fake.float()) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    real, fake = (x[:900] for x in sets())
    theirs = KernelInceptionDistance(feature=Flat(), normalize=True, subsets=1, subset_size=900)
    theirs.update(as_images(real), real=True)
    theirs.update(as_images(fake), real=False)
    assert kernel_distance(real.float(), fake.float()) == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


@pytest.mark.parametrize("k", [3, 5])
def test_neighbourhoods_are_those_of_prdc(k: int) -> None:
    real, fake = sets()
    theirs = compute_prdc(real_features=real.numpy(), fake_features=fake.numpy(), nearest_k=k)
    found = neighbourhoods(real, fake, k=k, density_k=k)
    for name, value in theirs.items():
        assert getattr(found, name) == pytest.approx(float(value), rel=1e-4), name
    assert 0.05 < found.precision < 0.99 and 0.05 < found.recall < 0.99
