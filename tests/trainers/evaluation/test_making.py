"""Samples are measured where they are made, the same on any number of workers, and can be made again."""

import pickle
from functools import partial

import pytest
import torch

from pipeline.artifacts import Run
from pipeline.recipe import ClusterSpec
from pipeline.settings import Settings
from tests.trainers.conftest import small_recipe
from tests.trainers.evaluation.conftest import Seen
from trainers.evaluation import making
from trainers.evaluation.measured import groups_of, joined
from trainers.export import Sampler

SPEC = small_recipe("evaluation.num_samples=90", "evaluation.seed=4").evaluation


@pytest.fixture
def order(seen: Seen, runs: dict[str, Run]) -> making.Order:
    digits = seen.digits
    return making.Order(digits.store.uri, runs["vae"].ref, digits.dataset.ref, SPEC.model_dump_json(), threads=1)


def test_groups_that_were_measured_elsewhere_give_the_same_set(order: making.Order, seen: Seen) -> None:
    settings = Settings.from_environment()
    whole = making.measure_samples(order, seen.eyes.width, ClusterSpec(), settings, print)
    groups = list(enumerate(groups_of(90, seen.eyes.width)))
    # What travels to a worker and back does so as bytes; the order in which workers finish is any.
    work = pickle.loads(pickle.dumps(partial(making.measure_range, order)))  # noqa: S301 - as Ray does
    found = dict(pickle.loads(pickle.dumps(work(group))) for group in reversed(groups))  # noqa: S301 - the same
    again = joined([found[number] for number, _ in groups])
    assert torch.equal(again.features_KD, whole.features_KD)
    assert torch.equal(again.moments.scatters_GDD, whole.moments.scatters_GDD)
    assert torch.equal(again.classes_N, torch.arange(90) % 10)
    assert whole.count == 90


def test_samples_can_be_made_again_by_their_numbers(order: making.Order, seen: Seen, vae: Sampler) -> None:
    settings = Settings.from_environment()
    whole = making.measure_samples(order, seen.eyes.width, ClusterSpec(), settings, print)
    images = making.make(vae, [3, 77, 12], 90, seed=4)
    features_ND, _ = seen.eyes.look(images)
    torch.testing.assert_close(features_ND, whole.features_KD[[3, 77, 12]], rtol=1e-4, atol=1e-5)
