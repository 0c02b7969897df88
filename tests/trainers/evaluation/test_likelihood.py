"""Likelihood figures: of all held-out images, in nats and in bits, beside the same on training images."""

import math

import numpy as np
import pytest
import torch

from pipeline.artifacts import Run
from tests.trainers.evaluation.conftest import Seen
from trainers import sample
from trainers.evaluation import likelihood
from trainers.evaluation.likelihood import image_values, likelihood_figures
from trainers.export import Sampler


def test_a_vae_has_its_bounds_in_nats_and_in_bits(seen: Seen, vae: Sampler) -> None:
    found = likelihood_figures(vae, seen.test, seen.training, seed=0, draws=20)
    elbo, likelihood_ = found["negative_elbo"], found["negative_log_likelihood"]
    assert elbo.value == pytest.approx(found["rate"].value + found["distortion"].value, rel=1e-6)
    assert likelihood_.value < elbo.value
    assert likelihood_.unit == "nats an image, K = 20"
    for name, nats in (("negative_elbo_bits", elbo), ("negative_log_likelihood_bits", likelihood_)):
        bits = found[name]
        for ours, theirs in ((bits.value, nats.value), (bits.low, nats.low), (bits.floor, nats.floor)):
            assert ours is not None and theirs is not None
            assert ours == pytest.approx(theirs / (64 * math.log(2)))
    assert found["negative_log_likelihood_bits"].unit == "bits a dimension (Bernoulli), K = 20"
    assert 0 <= found["active_units"].value <= 32 and found["active_units"].unit == "of 32 latents"
    for figure in found.values():
        assert figure.low is not None and figure.high is not None and figure.floor is not None
        assert figure.low <= figure.value <= figure.high
        assert (figure.num_samples, figure.num_real) == (0, 281)


def test_more_draws_tighten_the_bound(seen: Seen, vae: Sampler) -> None:
    rows = np.arange(60)
    few, many = (
        image_values(vae, seen.test, rows, seed=0, draws=draws)["negative_log_likelihood"].mean() for draws in (1, 100)
    )
    assert many < few


def test_only_some_images_are_decoded_k_times(seen: Seen, vae: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "LIKELIHOOD_IMAGES", 13)
    found = likelihood_figures(vae, seen.test, seen.training, seed=0, draws=2)
    assert found["negative_log_likelihood"].num_real == 13
    assert found["negative_elbo"].num_real == 281


def test_a_gan_has_none(seen: Seen, runs: dict[str, Run]) -> None:
    gan = sample.open_sampler(seen.digits.store, runs["gan"], torch.device("cpu"))
    assert likelihood_figures(gan, seen.test, seen.training, seed=0, draws=5) == {}
