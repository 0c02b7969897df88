"""The gate: first or better beyond the interval passes, ties do not, bars hold, other protocols are not compared."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import Protocol
from pipeline.errors import RecipeError, RecordError
from pipeline.recipe import load_recipe
from pipeline.release.gate import Bounds, Measured, decide, gain_of
from pipeline.release.records import Verdict
from pipeline.sections import GateSpec
from tests.made import PROTOCOL
from tests.made_releases import RECIPE

WIDE = {"frechet_distance": (5.0, 4.0, 7.0), "recall": (0.5, 0.4, 0.6), "near_copies": (0.02, 0.0, 0.05)}


def measured(number: int, protocol: Protocol = PROTOCOL, **changes: tuple[float, float, float]) -> Measured:
    figures = {name: Bounds(*bounds) for name, bounds in {**WIDE, **changes}.items()}
    return Measured(f"tiny@{number}", number, protocol, figures)


def test_the_first_is_promoted() -> None:
    verdict = decide(GateSpec(), measured(1), None)
    assert verdict.promoted and verdict.against is None and verdict.reason == "the first to stand there"


def test_a_tie_keeps_the_champion() -> None:
    exact = (5.0, 5.0, 5.0)  # no interval to hide behind
    for bounds in (WIDE["frechet_distance"], exact):
        verdict = decide(GateSpec(), measured(2, frechet_distance=bounds), measured(1, frechet_distance=bounds))
        assert not verdict.promoted and verdict.gain == 0


@pytest.mark.parametrize(("direction", "sign"), [("lower", 1), ("higher", -1)])
def test_better_within_the_interval_is_not_enough(direction: Any, sign: int) -> None:
    spec = GateSpec(metric="x", direction=direction)

    def of(value: float, below: float, above: float) -> tuple[float, float, float]:
        low, high = sorted((sign * (value - below), sign * (value + above)))
        return sign * value, low, high

    def judged(value: float) -> Verdict:
        """Only the sides that face each other count: the interval of the difference reaches sqrt(3^2 + 4^2)."""
        return decide(spec, measured(2, x=of(value, 8, 4)), measured(1, x=of(20, 3, 9)))

    near, far, worse = judged(15.1), judged(14.9), judged(30)
    assert not near.promoted and near.gain == pytest.approx(4.9) and near.short_by == pytest.approx(0.1)
    assert "it must be more than 0, 0.1 is missing" in near.reason
    assert far.promoted and far.gain_low == pytest.approx(0.1) and far.short_by is None
    assert not worse.promoted and "no better" in worse.reason and worse.short_by == pytest.approx(15)


def test_a_margin_must_be_passed_too() -> None:
    champion, better = measured(1, frechet_distance=(9, 9, 9)), measured(2, frechet_distance=(5, 5, 5))
    assert decide(GateSpec(margin=3.9), better, champion).promoted
    verdict = decide(GateSpec(margin=4), better, champion)
    assert not verdict.promoted and verdict.short_by == 0


def test_the_interval_of_a_difference_holds_what_it_says() -> None:
    """Two means of the same truth: the gate would let a challenger pass in 2.5% of the cases."""
    rng = np.random.default_rng(0)
    means = rng.normal(0, 1, (2, 4000))
    half = 1.96
    passed = [gain_of(Bounds(a, a - half, a + half), Bounds(b, b - half, b + half))[1] > 0 for a, b in means.T]
    assert 0.018 < np.mean(passed) < 0.032


def test_bars_hold_for_the_first_too() -> None:
    spec = GateSpec(floors={"recall": 0.6}, ceilings={"frechet_distance": 4.5}, max_near_copies=0.01)
    verdict = decide(spec, measured(1), None)
    assert not verdict.promoted
    for part in ("recall 0.5 is 0.1 below its floor of 0.6", "near_copies 0.02 is 0.01 above its ceiling of 0.01"):
        assert part in verdict.reason
    assert "frechet_distance 5 is 0.5 above its ceiling of 4.5" in verdict.reason
    met = GateSpec(floors={"recall": 0.5}, ceilings={"frechet_distance": 5}, max_near_copies=0.02)
    assert decide(met, measured(1), None).promoted


def test_figures_of_another_protocol_are_not_compared() -> None:
    other = PROTOCOL.model_copy(update={"num_samples": 7})
    verdict = decide(GateSpec(), measured(2, other, frechet_distance=(0, 0, 0)), measured(1))
    assert not verdict.promoted and verdict.gain is None
    assert "tiny@2 and tiny@1 cannot be compared, their protocols differ in num_samples: 7, not 100" in verdict.reason
    assert "the bias of a distance depends on the number of samples" in verdict.reason


@pytest.mark.parametrize("bounds", [(float("nan"),) * 3, (float("inf"),) * 3, (1.0, float("nan"), float("nan"))])
def test_a_figure_that_is_no_number_is_not_better(bounds: tuple[float, float, float]) -> None:
    verdict = decide(GateSpec(), measured(2, frechet_distance=bounds), measured(1))
    assert not verdict.promoted
    assert json.loads(verdict.model_dump_json())["gain_low"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "fid"}, r"gate.metric: expected a figure of tiny@1 \(frechet_distance, near_copies, recall\)"),
        ({"floors": {"sharpness": 1}}, "gate.floors.sharpness: expected a figure"),
        ({"ceilings": {"sharpness": 1}}, "gate.ceilings.sharpness: expected a figure"),
    ],
)
def test_a_gate_on_what_was_not_measured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        decide(GateSpec(**fields), measured(1), None)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gate": {"direction": "up"}}, "gate.direction: expected 'lower' or 'higher'"),
        ({"gate": {"margin": -1}}, "gate.margin: expected greater than or equal to 0"),
        ({"gate": {"margins": 1}}, "gate.margins: unknown field; did you mean margin"),
        ({"release": {"alias": "candidate"}}, "release.alias: expected another alias than candidate"),
    ],
)
def test_a_wrong_gate_is_one_line(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(json.dumps({**RECIPE, **section}))
