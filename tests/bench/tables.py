"""The tables of the papers, by their protocols: `python -m tests.bench.tables [--quick] [--table grid25 ...]`.

    python -m tests.bench.tables                                  the mixtures
    python -m tests.bench.tables --mnist FOLDER                   these and all that need MNIST's IDX files
    python -m tests.bench.tables --mnist FOLDER --form cpu ...    their short form, which is the default without a GPU

Figures are kept by table and seed in `tests/bench/out/tables/*.json`, with the settings that made them: what is there
is not trained again, so that a run that was stopped goes on with the tables and seeds that are missing (image models
from their last checkpoint). Prints each table and writes it to `tests/bench/RESULTS.md` with the command, the machine
and the time (not with `--quick`, which trains for a moment to show that all of it runs). Exits with 1 where a bar is
not met.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import AtelierError
from tests.bench import agreement_table, likelihood_table, stacked_table
from tests.bench.mixture_table import MIXTURES
from tests.bench.table import Means, Table, part, with_part

HERE = Path(__file__).parent
OUT = HERE / "out" / "tables"
RESULTS = HERE / "RESULTS.md"
HEADING = "# Results\n\nWritten by the benchmarks, each part by the command that stands in it.\n"

FORMS: dict[str, dict[str, Table]] = {  # of the tables that need MNIST
    "full": {
        "mnist_nll": likelihood_table.FULL,
        "mnist_nll_hierarchy": likelihood_table.HIERARCHY_FULL,
        "stacked_mnist": stacked_table.FULL,
        "mnist_agreement": agreement_table.FULL,
    },
    "cpu": {
        "mnist_nll": likelihood_table.CPU,
        "mnist_nll_hierarchy": likelihood_table.HIERARCHY_CPU,
        "stacked_mnist": stacked_table.CPU,
        "mnist_agreement": agreement_table.CPU,
    },
}
NAMES = sorted([*MIXTURES, *FORMS["cpu"]])


def figures(name: str, table: Table, seeds: Sequence[int], folder: Path, means: Means) -> list[dict[str, Any]]:
    """The records of the seeds, in their order; those that are not there are trained, all together or one by one."""
    settings = json.loads(json.dumps(table.record()))
    paths = {seed: folder / f"{name}-{seed}.json" for seed in seeds}
    missing = [seed for seed in seeds if not is_done(paths[seed], settings)]
    groups = ([missing] if missing else []) if table.together else [[seed] for seed in missing]
    for group in groups:
        wall, cpu = time.perf_counter(), time.process_time()
        scores = table.run(group, means)
        took = {
            "trained_together": len(group),
            "seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if means.device.type == "cuda" else "cpu",
            "date": datetime.now(UTC).date().isoformat(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for seed, score in zip(group, scores, strict=True):
            record = {"seed": seed, "settings": settings, "figures": score, **took}
            partial = paths[seed].with_suffix(".partial")
            partial.write_text(json.dumps(record, indent=1) + "\n")
            partial.replace(paths[seed])
    return [json.loads(paths[seed].read_text()) for seed in seeds]


def is_done(path: Path, settings: dict[str, Any]) -> bool:
    """Whether there is a record that these settings made."""
    return path.exists() and json.loads(path.read_text())["settings"] == settings


def main(arguments: Sequence[str]) -> int:
    """Run the tables that are asked for. Returns the exit status."""
    asked = parse(arguments)
    torch.set_num_threads(asked.threads)
    tables: dict[str, Table] = {**MIXTURES, **FORMS[asked.form]}
    device = torch.device("cuda" if asked.form == "full" and torch.cuda.is_available() else "cpu")
    folder = OUT / "quick" if asked.quick else OUT
    means = Means(folder / "work", device, asked.mnist, lambda line: print(line, file=sys.stderr))
    words = " ".join(["python -m tests.bench.tables", *arguments])
    command = words.replace(str(asked.mnist), "FOLDER")  # a place on this machine only
    all_met = True
    for name in asked.table or (NAMES if asked.mnist else sorted(MIXTURES)):
        table = tables[name].quick() if asked.quick else tables[name]
        seeds = range(2 if asked.quick else asked.seeds or table.default_seeds)
        text, met = part(name, table, figures(name, table, seeds, folder, means), command)
        print(text)
        if not asked.quick:
            all_met = all_met and met
            before = RESULTS.read_text() if RESULTS.exists() else HEADING
            RESULTS.write_text(with_part(before, name, text))
    return 0 if all_met else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tables", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", nargs="+", choices=NAMES, help="all, but without --mnist only the mixtures")
    parser.add_argument("--seeds", type=int, help="how many, from 0 on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mnist", type=Path, help="the folder of MNIST's four IDX files")
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--form", choices=sorted(FORMS), default="full" if has_gpu else "cpu", help="how long to train")
    parser.add_argument("--quick", action="store_true", help="two seeds for a moment; shows that all of it runs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except AtelierError as error:
        raise SystemExit(f"error: {error}") from None
