"""The digits with their eyes, and a run of each family, trained for a moment."""

from dataclasses import dataclass

import pytest
import torch

from pipeline.artifacts import Run
from pipeline.settings import Settings
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import launch, sample, stream
from trainers.evaluation.eyes import Eyes, open_eyes
from trainers.export import Sampler
from trainers.readers import Reader


@dataclass(frozen=True)
class Seen:
    """A dataset's splits and the eyes that look at them."""

    digits: Digits
    test: Reader
    training: Reader
    eyes: Eyes


@pytest.fixture(scope="session")
def seen(digits: Digits) -> Seen:
    cache = node_cache()
    test, training = (
        stream.open_split(cache, digits.store, digits.dataset, split, torch.device("cpu"))
        for split in ("test", "train")
    )
    eyes = open_eyes(digits.store, digits.dataset, small_recipe().evaluation, cache)
    return Seen(digits, test, training, eyes)


@pytest.fixture(scope="session")
def runs(digits: Digits) -> dict[str, Run]:
    settings = Settings.from_environment()
    return {
        model: launch.train(digits.store, small_recipe(), model, digits.dataset, settings, print)
        for model in ("vae", "gan")
    }


@pytest.fixture(scope="session")
def vae(seen: Seen, runs: dict[str, Run]) -> Sampler:
    return sample.open_sampler(seen.digits.store, runs["vae"], torch.device("cpu"))
