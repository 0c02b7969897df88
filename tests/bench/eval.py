"""`make bench-eval`: what evaluation, publishing and consuming cost, against libraries and the bare generator.

    python -m tests.bench.eval [--quick] [--out FILE]

Prints one table and writes it as JSON to tests/bench/out/bench-eval.json. The peers, torchmetrics and prdc, run in the
same run. A full run takes some five minutes on two cores, which should be quiet, and 5 GB of memory: prdc's.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.bench.asked import ROOT
from tests.bench.evaluating import consuming, figures, publishing
from tests.bench.evaluating.made import Kind
from tests.bench.rows import Row, print_table, write_json
from tests.bench.training.cases import Case

OUT = ROOT / "tests" / "bench" / "out" / "bench-eval.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """How large a run of this benchmark is."""

    features: int
    width: int
    rounds: int
    figure_rounds: int  # of many seconds each
    published: int
    kinds: tuple[Kind, ...]
    consumed: Kind
    streamed: int
    calls: int


DIGITS = Kind(Case("GAN tiny", "gan", 64, {"preset": "tiny"}), side=8)
FULL = Sizes(
    features=10_000,
    width=2048,
    rounds=7,
    figure_rounds=1,
    published=8192,
    kinds=(DIGITS, Kind(Case("GAN tiny", "gan", 64, {"preset": "tiny"}), side=28)),
    consumed=DIGITS,
    streamed=8192,
    calls=100,
)  # fmt: skip
SMALL = Sizes(
    features=60, width=16, rounds=1, figure_rounds=1, published=40, kinds=(DIGITS,), consumed=DIGITS, streamed=20,
    calls=1,
)  # fmt: skip


def main(
    quick: Annotated[bool, typer.Option(help="a moment of each: whether it runs, not how fast")] = False,
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = OUT,
) -> None:
    """Measure evaluation, publishing and consuming against their peers."""
    console = Console(stderr=True)
    load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory(prefix="bench-eval-") as folder:
        rows = measured(SMALL if quick else FULL, Path(folder), lambda text: console.print(text, style="dim"))
    write_json(out, rows)
    machine = f"{os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[1]:.1f} at the end (1 is this run)"
    print_table(f"make bench-eval, {machine}", rows, Console(width=None if console.is_terminal else 200))


def measured(sizes: Sizes, folder: Path, say: Say) -> list[Row]:
    """All rows of the table."""
    say("consumers")
    rows = consuming.rows(sizes.consumed, sizes.streamed, sizes.rounds, sizes.calls, folder)
    say("sample sets")
    rows += publishing.rows(sizes.kinds, sizes.published, min(sizes.rounds, 3), folder)
    say("figures")
    rows += figures.rows(sizes.features, sizes.width, sizes.figure_rounds, folder)
    return rows  # the page's rows (size, seconds to show) belong here, as a part of their own


if __name__ == "__main__":
    typer.run(main)
