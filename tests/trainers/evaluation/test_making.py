"""Samples are measured where they are made, the same on any number of workers, and can be made again."""

import pickle

import pytest
import torch

from pipeline import tasks
from pipeline.artifacts import Run
from pipeline.sections import ClusterSpec
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
    groups = groups_of(90, seen.eyes.width)
    # What travels to a worker and back does so as bytes; the order in which workers finish is any.
    parts = pickle.loads(pickle.dumps([making.Part(order, rows) for rows in reversed(groups)]))  # noqa: S301 - as Ray
    found = dict(pickle.loads(pickle.dumps(making.measure_part(part))) for part in parts)  # noqa: S301 - the same
    again = joined([found[rows] for rows in groups])
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


@pytest.mark.stack
def test_samples_that_ray_makes_are_measured_the_same(
    order: making.Order, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.from_environment()
    here = making.measure_samples(order, seen.eyes.width, ClusterSpec(), settings, print)
    monkeypatch.setattr(tasks, "RAY_PAYS_SECONDS", 0.0)
    said: list[str] = []
    there = making.measure_samples(order, seen.eyes.width, ClusterSpec(workers=2), settings, said.append)
    assert said and said[0].startswith("tasks on Ray")
    assert torch.equal(here.features_KD, there.features_KD)
    assert torch.equal(here.moments.scatters_GDD, there.moments.scatters_GDD)
    assert torch.equal(here.sharpness_N, there.sharpness_N)
