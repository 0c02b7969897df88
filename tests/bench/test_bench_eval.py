"""Whether `make bench-eval` runs and says what it must, for a moment; never how fast."""

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from tests.bench.eval import OUT, main
from tests.bench.evaluating.figures import FIGURES
from tests.bench.rows import Row


@pytest.fixture(autouse=True)
def process_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmark sets the threads of this process: put them back. No key of this machine's is asked for."""
    monkeypatch.delenv("ATELIER_TRUSTED_KEYS", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_row_states_its_figure_and_the_figures_are_those_of_the_libraries(tmp_path: Path) -> None:
    out = tmp_path / "bench-eval.json"
    main(quick=True, out=out)
    rows = json.loads(out.read_text())
    assert all(set(one) == {field.name for field in fields(Row)} for one in rows)
    assert all(math.isfinite(one["value"]) and one["unit"] for one in rows)
    assert all((one["bar"] is None) == (one["holds"] is None) for one in rows)
    assert all(one["ratio"] == pytest.approx(one["value"] / one["peer_value"]) for one in rows if one["peer"])
    by_unit = {unit: [one for one in rows if one["unit"] == unit] for unit in {one["unit"] for one in rows}}
    assert len(by_unit["relative"]) == len(by_unit["CPU-s"]) == len(FIGURES)
    assert all(one["holds"] for one in by_unit["relative"])
    assert [one["peer"] for one in by_unit["CPU-ms"]] == ["the bare generator"] * 2  # by torch and by onnxruntime
    assert any(one["figure"].startswith("publish") and one["bar"] == ">= 0.9" for one in rows)
    assert sum(one["figure"].startswith("cold start") and one["bar"] == "<= 1" for one in rows) == 2


def test_the_rows_are_written_where_git_does_not_look() -> None:
    assert OUT.parts[-3:] == ("bench", "out", "bench-eval.json")
