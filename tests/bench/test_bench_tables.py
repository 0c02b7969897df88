"""The tables' machinery: seeds trained together are seeds trained alone, and a run that was stopped goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.bench import mixture_table, tables
from tests.bench.mixture_table import BATCH_POINTS, Points, SeedsNoise, Stacked
from tests.bench.table import Bar, Means, with_part
from trainers import families, mixtures
from trainers.families import Noise

SMALL = mixture_table.MIXTURES["grid25"].quick()
SMALL = replace(
    SMALL, settings=replace(SMALL.settings, steps=6, gan={**SMALL.settings.gan, "hidden": (8, 8), "lr_warmup_steps": 0})
)


def means(folder: Path) -> Means:
    """On this CPU, without MNIST."""
    return Means(folder, torch.device("cpu"), None, lambda line: None)


def weights_after(seeds: list[int], steps: int) -> list[torch.Tensor]:
    """The generator's weights of each seed, as one vector."""
    settings = replace(SMALL.settings, steps=steps)
    model, networks = mixture_table.train(mixtures.grid25(), settings, seeds, lambda line: None)
    sampler = networks[model.sampler]
    return [torch.cat([stack[i].flatten() for stack in sampler.parameters()]) for i in range(len(seeds))]


def test_a_stack_computes_what_its_networks_compute() -> None:
    config = families.parse_config("gan", {"network": "mlp", "hidden": [8, 8]}, "gan")
    models = [families.build("gan", config, mixture_table.SHAPE, seed) for seed in (3, 4)]
    stacked = Stacked([model.networks["generator"] for model in models])
    z_RZ, labels_R = torch.randn(6, 64), torch.zeros(6, dtype=torch.int64)
    made = stacked(z_RZ, labels_R)
    for i, model in enumerate(models):
        own = slice(3 * i, 3 * i + 3)
        torch.testing.assert_close(made[own], model.networks["generator"](z_RZ[own], labels_R[own]))


def test_seeds_trained_together_are_seeds_trained_alone() -> None:
    together, alone = weights_after([5, 2, 9], 6), [weights_after([seed], 6)[0] for seed in (5, 2, 9)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert not torch.allclose(together[0], weights_after([5], 1)[0], rtol=1e-4, atol=1e-5)


def test_a_seed_meets_its_own_noise_and_its_own_points() -> None:
    noise, rows = SeedsNoise([7, 1], 3, 1, 4), torch.arange(4)
    assert torch.equal(noise.normal(2)[4:], Noise(1, 3, 1, rows, 4).normal(2))
    points = Points(mixtures.ring8(), 5.0, [7, 1])
    alone = Points(mixtures.ring8(), 5.0, [1])
    assert torch.equal(points.at(0)[BATCH_POINTS:], alone.at(0))
    assert torch.equal(points.at(1)[BATCH_POINTS:], alone.at(1))


def test_an_epoch_shows_every_point_once() -> None:
    points = Points(mixtures.grid25(), 2.0, [0])
    seen = torch.cat([points.at(step) for step in range(1000)])
    assert torch.equal(seen.flatten(1).unique(dim=0), points.images_SN[0].flatten(1).unique(dim=0))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert not torch.equal(points.at(1000), seen[:BATCH_POINTS])


def test_what_is_recorded_is_not_trained_again_and_other_settings_are(tmp_path: Path) -> None:
    first = tables.figures("grid25", SMALL, [0, 1], tmp_path, means(tmp_path))
    path = tmp_path / "grid25-1.json"
    path.write_text(json.dumps({**first[1], "date": "marked"}))
    (tmp_path / "grid25-0.json").unlink()
    again = tables.figures("grid25", SMALL, [0, 1, 2], tmp_path, means(tmp_path))
    assert [record["date"] == "marked" for record in again] == [False, True, False]
    assert again[0]["trained_together"] == 2
    longer = replace(SMALL, settings=replace(SMALL.settings, steps=7))
    assert tables.figures("grid25", longer, [1], tmp_path, means(tmp_path))[0]["date"] != "marked"


def test_bars_look_at_the_mean_or_at_every_seed() -> None:
    values = [25.0, 24.0, 27.0]
    assert Bar("modes", 25, at_least=True).holds(values)
    assert not Bar("modes", 25, at_least=True, every_seed=True).holds(values)
    assert Bar("kl", 26, at_least=False).holds(values)
    assert not Bar("kl", 26, at_least=False, every_seed=True).holds(values)


def test_a_table_takes_its_own_place_in_the_results() -> None:
    results = with_part(tables.HEADING, "b", "## b: second\n\nold\n")
    results = with_part(results, "a", "## a: first\n\nwords\n")
    again = with_part(results, "b", "## b: second\n\nnew\n")
    assert again.startswith(tables.HEADING)
    assert again.count("## ") == 2 and "old" not in again and "words" in again and again.endswith("new\n")


def test_settings_decay_the_learning_rate_at_the_end() -> None:
    settings = replace(SMALL.settings, steps=100, decay_from=0.5)
    assert settings.lr_factor(49) == 1.0
    assert settings.lr_factor(75) == pytest.approx(0.5)
    assert settings.lr_factor(100) == pytest.approx(0.0)
