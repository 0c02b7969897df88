"""Whether `make bench-data` runs and says what it must, on tiny data and without peers; never how fast."""

import json
import math
import os
from collections.abc import Generator, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.settings import update_environment
from tests.bench.data import OUT, main
from tests.bench.measure import Timed, best_rates, rate_of
from tests.bench.rows import Against, Limit, Row, holds, row, write_json
from tests.bench.sizes import SMALL

FIELDS = {field.name for field in fields(Row)}
ASKED = {"figure", "value", "unit", "peer", "peer_value", "ratio", "bar", "holds"}  # by those who read the file
WORDS = ("first epoch", "later epochs", "write shards", "ingest", "memory of stream", "plan an epoch", "50 ms")


@pytest.fixture
def environment_kept() -> Iterator[None]:
    """The benchmark points this process at a store of its own: put the environment back."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    update_environment(before)


def test_every_row_states_its_figure_and_its_limit(tmp_path: Path, environment_kept: None) -> None:
    out = tmp_path / "bench-data.json"
    main(peers=None, quick=True, out=out)
    rows = json.loads(out.read_text())
    assert all(set(one) == FIELDS >= ASKED for one in rows)
    assert all(one["value"] > 0 and math.isfinite(one["value"]) and one["unit"] for one in rows)
    assert all((one["bar"] is None) == (one["holds"] is None) for one in rows)
    figures = " ".join(one["figure"] for one in rows)
    assert all(words in figures for words in WORDS)
    limits = [one for one in rows if one["limit"]]
    assert all(one["limit_value"] > 0 and one["limit_share"] > 0 for one in limits)


def test_a_bar_is_held_on_the_ratio_or_else_on_the_value() -> None:
    assert row("reads", 60.0, "images/s", Against("peer", 100.0), ">= 0.6").holds is True
    assert row("reads", 59.0, "images/s", Against("peer", 100.0), ">= 0.6").holds is False
    assert row("plans", 1.5, "s", None, "<= 1").holds is False
    assert holds(1.0, "<= 1")
    assert row("reads", 60.0, "images/s").holds is None


def test_the_share_of_a_limit_is_below_one_for_rates_and_for_seconds() -> None:
    assert row("reads", 50.0, "images/s", limit=Limit("decoder", 100.0)).limit_share == 0.5
    assert row("plans", 2.0, "s", limit=Limit("permutation", 1.0)).limit_share == 0.5


def test_a_round_repeats_short_passes_and_cuts_long_ones() -> None:
    prepared: list[int] = []

    def endless() -> Generator[int]:
        while True:
            yield 1

    def short() -> Generator[int]:
        yield 3

    repeated = rate_of(Timed(short, prepare=lambda: prepared.append(1)), 0.01)
    assert repeated.samples == 3 * len(prepared) > 3
    rates = best_rates({"endless": Timed(endless), "short": Timed(short)}, SMALL.rule)
    assert rates["endless"].wall_seconds >= SMALL.rule.min_seconds
    assert rates["endless"].samples > 0


def test_the_rows_are_written_where_git_does_not_look(tmp_path: Path) -> None:
    write_json(tmp_path / "made" / "rows.json", [row("reads", 1.0, "images/s")])
    assert json.loads((tmp_path / "made" / "rows.json").read_text())[0]["figure"] == "reads"
    assert OUT.parts[-3:] == ("bench", "out", "bench-data.json")
