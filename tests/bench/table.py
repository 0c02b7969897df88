"""What every table of the papers has: bars, a record for each seed, a part of RESULTS.md."""

import os
import platform
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]  # numbers by name; `curve` is a list of such, one a point


@dataclass(frozen=True)
class Bar:
    """What a figure must reach in the mean over seeds, or in every seed."""

    figure: str
    value: float
    at_least: bool
    every_seed: bool = False

    def holds(self, values: Sequence[float]) -> bool:
        """Whether it does."""
        if self.every_seed:
            values = [min(values) if self.at_least else max(values)]
        mean = statistics.fmean(values)
        return mean >= self.value if self.at_least else mean <= self.value

    def words(self) -> str:
        """Such as '>= 25 in every seed'."""
        return f"{'>=' if self.at_least else '<='} {self.value:g}{' in every seed' if self.every_seed else ''}"


@dataclass(frozen=True)
class Means:
    """With what a table is made."""

    work: Path  # a folder for what a stopped run goes on from
    device: torch.device
    mnist: Path | None  # the folder of MNIST's IDX files
    say: Callable[[str], None]


class Table(ABC):
    """One table: a protocol, the settings that we train with, what is asked and what others got."""

    title: str
    bars: tuple[Bar, ...]
    peers: str
    default_seeds: int = 10
    together: bool = False  # whether its seeds are trained as one

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """The settings as JSON: figures that others made do not count."""

    @abstractmethod
    def run(self, seeds: Sequence[int], means: Means) -> list[Figures]:
        """Train and score the seeds."""

    @abstractmethod
    def quick(self) -> "Table":
        """The same for a moment: nothing is learned, everything runs."""

    @abstractmethod
    def effort(self) -> str:
        """What was trained, in words."""


def rows(table: Table, records: Sequence[dict[str, Any]]) -> tuple[list[str], bool]:
    """Markdown rows, one a figure, those without a bar last, and whether all bars are met."""
    lines, met = [], True
    for bar in table.bars:
        values = values_of(bar.figure, records)
        holds = bar.holds(values)
        met = met and holds
        lines.append(_row(bar.figure, values, bar.words(), "yes" if holds else "NO"))
    barred = {bar.figure for bar in table.bars}
    others = [name for name in records[0]["figures"] if name not in barred and name != "curve"]
    return lines + [_row(name, values_of(name, records), "", "") for name in others], met


def values_of(figure: str, records: Sequence[dict[str, Any]]) -> list[float]:
    """A figure of every seed."""
    return [record["figures"][figure] for record in records]


def _row(figure: str, values: Sequence[float], bar: str, met: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    mean, least, most = statistics.fmean(values), min(values), max(values)
    return f"| {figure} | {mean:.4g} | {spread:.2g} | {least:.4g} | {most:.4g} | {bar} | {met} |"


def part(name: str, table: Table, records: Sequence[dict[str, Any]], command: str) -> tuple[str, bool]:
    """A table's part of the results, and whether all bars are met."""
    lines, met = rows(table, records)
    last = records[-1]
    took = last if table.together else {key: sum(r[key] for r in records) for key in ("seconds", "cpu_seconds")}
    seeds = f"{last['trained_together']} seeds together" if table.together else f"{len(records)} seed(s) in turn"
    text = [
        f"## {name}: {table.title}",
        "",
        f"Peers {table.peers}.",
        "",
        f"| figure ({len(records)} seeds) | mean | standard deviation | least | most | bar | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *lines,
        "",
        *curve(records[0]["figures"].get("curve", [])),
        f"`{command}`, {last['date']}, {machine(last.get('device', 'cpu'))}, {last['threads']} thread(s):",
        f"{seeds}, {table.effort()} in {took['seconds']:.0f} s ({took['cpu_seconds']:.0f} CPU-seconds).",
        "",
    ]
    return "\n".join(text), met


def curve(points: Sequence[dict[str, float | str]]) -> list[str]:
    """The first seed's figures on the way, as lines of Markdown."""
    if not points:
        return []
    names = list(points[0])
    cells = [[_cell(name, point[name]) for name in names] for point in points]
    lines = [f"| {' | '.join(row)} |" for row in [names, ["---:"] * len(names), *cells]]
    return ["On the way (the first seed's weights, not their average):", "", *lines, ""]


def _cell(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if name == "step" else f"{value:.4g}"


def machine(device: str = "cpu") -> str:
    """What this ran on, in words."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    on = "" if device == "cpu" else f", {device}"
    return f"{platform.machine()} with {os.cpu_count()} cores{on}, {versions}"


def with_part(results: str, name: str, text: str) -> str:
    """The results with one table's part new, in its place or at the end."""
    heading, *parts = results.split("\n## ")
    kept = [f"## {old}" for old in parts if not old.startswith(f"{name}:")]
    return "\n".join([heading.rstrip("\n") + "\n", *(old.rstrip("\n") + "\n" for old in [*kept, text])])
