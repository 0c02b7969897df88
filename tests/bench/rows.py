"""The rows of a benchmark: what was measured, against whom, whether the bar is held, and what the limit is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Rate

UNIT = "images/CPU-s"


@dataclass(frozen=True)
class Row:
    """One figure. `bar` is what the ratio (or, without a peer, the value) must be, such as `>= 0.6`; None: no bar.

    `limit` names what bounds the figure from above, `limit_value` is its own rate in the figure's unit, measured in
    the same run, and `limit_share` how much of it the figure reaches.
    """

    figure: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    bar: str | None = None
    holds: bool | None = None
    limit: str | None = None
    limit_value: float | None = None
    limit_share: float | None = None


@dataclass(frozen=True)
class Against:
    """Whom a figure is held against."""

    peer: str
    value: float


@dataclass(frozen=True)
class Limit:
    """What a figure cannot pass: its name, and its own figure in the same unit."""

    name: str
    value: float


def row(
    figure: str,
    value: float,
    unit: str,
    against: Against | None = None,
    bar: str | None = None,
    limit: Limit | None = None,
) -> Row:
    """Put a row together: the bar is on the ratio where there is a peer, else on the value."""
    ratio = value / against.value if against else None
    judged = value if ratio is None else ratio
    return Row(
        figure,
        value,
        unit,
        against.peer if against else None,
        against.value if against else None,
        ratio,
        bar,
        holds(judged, bar) if bar else None,
        limit.name if limit else None,
        limit.value if limit else None,
        _share(value, limit, unit) if limit else None,
    )


def rate_row(
    figure: str, rate: Rate, against: Against | None, bar: str | None = None, limit: Limit | None = None
) -> Row:
    """A rate by CPU time against a peer's; where the peer did not run there is no bar."""
    return row(figure, rate.per_cpu_second, UNIT, against, bar if against else None, limit)


def holds(judged: float, bar: str) -> bool:
    """Whether a number is on the right side of a bar, `>= NUMBER` or `<= NUMBER`."""
    sense, number = bar.split()
    return judged >= float(number) if sense == ">=" else judged <= float(number)


def _share(value: float, limit: Limit, unit: str) -> float:
    """How close a figure comes to its limit: 1 is at it. Rates should be high; seconds and bytes low."""
    return value / limit.value if "/" in unit else limit.value / value


def print_table(title: str, rows: Sequence[Row], console: Console) -> None:
    """All rows as one table."""
    table = Table(title=title, title_justify="left")
    for name, justify in (("figure", "left"), ("value", "right"), ("unit", "left"), ("peer", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    for name in ("peer's", "ratio", "bar", "holds"):
        table.add_column(name, justify="right")
    table.add_column("limit, and the share of it", overflow="fold")
    for one in rows:
        table.add_row(*_cells(one))
    console.print(table)


def _cells(one: Row) -> list[str]:
    verdict = {None: "", True: "[green]yes[/green]", False: "[red]no[/red]"}[one.holds]
    share = f"{one.limit} {number(one.limit_value)}: {one.limit_share:.0%}" if one.limit_share is not None else ""
    ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
    figures = [one.figure, number(one.value), one.unit, one.peer or "", number(one.peer_value), ratio]
    return [*figures, one.bar or "", verdict, share]


def number(value: float | None) -> str:
    """Three or more digits, as one reads them."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """The rows as a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")
