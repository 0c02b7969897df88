"""What a network may not answer."""

import pytest
import torch

from pipeline.errors import IntegrityError
from tests.trainers.test_onnx_export import CASES, sampler
from trainers import families


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case[0])
def test_images_that_are_not_finite_are_no_images(case: tuple[str, dict[str, object], families.DataShape]) -> None:
    one = sampler(*case)
    latents_BZ, labels_B = families.latents([1, 2], one.model.latent_size), torch.zeros(2, dtype=torch.long)
    assert one.images(latents_BZ, labels_B).shape[0] == 2
    latents_BZ[1] = float("nan")  # as bytes they would be black, and pass for images
    with pytest.raises(IntegrityError, match="expected images of finite values, got NaN or infinity") as caught:
        one.images(latents_BZ, labels_B)
    assert "\n" not in str(caught.value)
