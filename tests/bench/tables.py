"""The tables of the papers, by their protocols: `python -m tests.bench.tables [--quick] [--table grid25 ...]`.

Figures are kept by table and seed in `tests/bench/out/tables/*.json`, with the settings that made them: what is there
is not trained again, so that a run that was stopped goes on with the tables and seeds that are missing. Prints each
table and writes it to `tests/bench/RESULTS.md` with the command, the machine and the time (not with `--quick`, which
trains two seeds for a moment to show that all of it runs). Exits with 1 where a bar is not met.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.bench import mixture_table
from tests.bench.mixture_table import Settings
from trainers import mixtures
from trainers.mixtures import Mixture

HERE = Path(__file__).parent
OUT = HERE / "out" / "tables"
RESULTS = HERE / "RESULTS.md"
HEADING = "# Results\n\nWritten by the benchmarks, each part by the command that stands in it.\n"


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
class Table:
    """One table: the protocol, the settings that we train with, what is asked and what others got."""

    title: str
    mixture: Callable[[], Mixture]
    settings: Settings
    bars: tuple[Bar, ...]
    peers: str


MIXTURE_GAN: dict[str, Any] = {
    "network": "mlp",
    "hidden": (64,) * 6,  # depth is what makes the generator's steps between modes steep
    "discriminator_hidden": (64,) * 3,
    "latent_size": 2,
    "output": "linear",
    "loss": "relativistic",
    "lr": 3e-3,
    "beta2": 0.9,
    "lr_warmup_steps": 100,
}


def mixture_settings(scale: float, gamma: float, gamma_decay: float, steps: int) -> Settings:
    """Settings of a mixture's table. `gamma` belongs to `scale`: twice the scale is a quarter of the penalty.

    A smaller penalty at the end makes sharper modes and lets their shares drift apart.
    """
    penalty = {"r1_gamma": gamma, "r2_gamma": gamma, "gamma_decay": gamma_decay, "gamma_decay_steps": steps}
    return Settings({**MIXTURE_GAN, **penalty}, scale, steps, decay_from=0.25, ema_half_life_steps=2000)


TABLES = {
    "grid25": Table(
        "25 Gaussians on a grid",
        mixtures.grid25,
        mixture_settings(scale=2.0, gamma=4.0, gamma_decay=0.01, steps=45_000),
        (
            Bar("modes", 25, at_least=True, every_seed=True),
            Bar("good", 0.96, at_least=True),
            Bar("reverse_kl", 0.03, at_least=False),
        ),
        "VEEGAN 24.6, 40%; PacGAN4 24.8, 93.6%, 0.04; perfect sampler 25, 98.9%, 0.005",
    ),
    "ring8": Table(
        "8 Gaussians on a ring",
        mixtures.ring8,
        mixture_settings(scale=5.0, gamma=1.0, gamma_decay=0.04, steps=52_000),
        (
            Bar("modes", 8, at_least=True, every_seed=True),
            Bar("good", 0.97, at_least=True),
            Bar("reverse_kl", 0.02, at_least=False),
        ),
        "VEEGAN 8, 53%; PacGAN3 7.8, 97.7%, 0.10; perfect sampler 8, 98.9%, 0.001",
    ),
}


def quick(table: Table) -> Table:
    """The same for a moment: nothing is learned, everything runs."""
    gan = {**table.settings.gan, "gamma_decay_steps": 40}
    return replace(table, settings=replace(table.settings, gan=gan, steps=40))


def figures(name: str, table: Table, seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """The records of the seeds, in their order; those that are not there are trained, all together."""
    settings = json.loads(json.dumps(table.settings.record()))
    paths = {seed: folder / f"{name}-{seed}.json" for seed in seeds}
    missing = [seed for seed in seeds if not is_done(paths[seed], settings)]
    if missing:
        wall, cpu = time.perf_counter(), time.process_time()
        scores = mixture_table.run(table.mixture(), table.settings, missing, lambda line: print(line, file=sys.stderr))
        took = {
            "trained_together": len(missing),
            "seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for seed, score in zip(missing, scores, strict=True):
            record = {"seed": seed, "settings": settings, "figures": asdict(score), **took}
            partial = paths[seed].with_suffix(".partial")
            partial.write_text(json.dumps(record, indent=1) + "\n")
            partial.replace(paths[seed])
    return [json.loads(paths[seed].read_text()) for seed in seeds]


def is_done(path: Path, settings: dict[str, Any]) -> bool:
    """Whether there is a record that these settings made."""
    return path.exists() and json.loads(path.read_text())["settings"] == settings


def rows(table: Table, records: Sequence[dict[str, Any]]) -> tuple[list[str], bool]:
    """Markdown rows, one a figure, and whether all bars are met."""
    lines, met = [], True
    for bar in table.bars:
        values = [record["figures"][bar.figure] for record in records]
        holds = bar.holds(values)
        met = met and holds
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = [
            bar.figure,
            f"{statistics.fmean(values):.4g}",
            f"{spread:.2g}",
            f"{min(values):.4g}",
            f"{max(values):.4g}",
            bar.words(),
            "yes" if holds else "NO",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines, met


def part(name: str, table: Table, records: Sequence[dict[str, Any]], command: str) -> tuple[str, bool]:
    """A table's part of the results, and whether all bars are met."""
    lines, met = rows(table, records)
    last = records[-1]
    text = [
        f"## {name}: {table.title}",
        "",
        f"Peers (modes, good, reverse KL): {table.peers}.",
        "",
        f"| figure ({len(records)} seeds) | mean | standard deviation | least | most | bar | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *lines,
        "",
        f"`{command}`, {last['date']}, {machine()}, {last['threads']} thread(s):",
        f"{last['trained_together']} seeds together, {table.settings.steps:,} steps in {last['seconds']:.0f} s "
        f"({last['cpu_seconds']:.0f} CPU-seconds).",
        "",
    ]
    return "\n".join(text), met


def machine() -> str:
    """What this ran on, in words."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.machine()} with {os.cpu_count()} cores, {versions}"


def with_part(results: str, name: str, text: str) -> str:
    """The results with one table's part new, in its place or at the end."""
    heading, *parts = results.split("\n## ")
    kept = [f"## {old}" for old in parts if not old.startswith(f"{name}:")]
    return "\n".join([heading.rstrip("\n") + "\n", *(old.rstrip("\n") + "\n" for old in [*kept, text])])


def main(arguments: Sequence[str]) -> int:
    """Run the tables that are asked for. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--table", nargs="+", choices=sorted(TABLES), default=sorted(TABLES))
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two seeds for a moment; shows that all of it runs")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    command = " ".join(["python -m tests.bench.tables", *arguments])
    all_met = True
    for name in asked.table:
        table = quick(TABLES[name]) if asked.quick else TABLES[name]
        seeds = range(2 if asked.quick else asked.seeds)
        records = figures(name, table, seeds, OUT / "quick" if asked.quick else OUT)
        text, met = part(name, table, records, command)
        print(text)
        if not asked.quick:
            all_met = all_met and met
            before = RESULTS.read_text() if RESULTS.exists() else HEADING
            RESULTS.write_text(with_part(before, name, text))
    return 0 if all_met else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
