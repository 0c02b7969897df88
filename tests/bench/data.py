"""`make bench-data`: how fast and in how much memory the data layer ingests, writes and streams, against its peers.

    python -m tests.bench.data [--peers PYTHON] [--quick] [--out FILE]

Prints one table and writes it as JSON to tests/bench/out/bench-data.json. The peers run in the same run by a Python of
their own (`make .venv-peers/done`); without `--peers` their columns are empty. A full run takes some ten minutes on two
cores, which should be quiet, and 5 GB of disk, freed at the end.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from pipeline import weed
from pipeline.settings import update_environment
from pipeline.store import open_store
from tests.bench import memory, planning, prepared, streams, writing
from tests.bench.asked import ROOT, Request, ask
from tests.bench.measure import Rate
from tests.bench.prepared import Pictures, Stored
from tests.bench.rows import Row, print_table, write_json
from tests.bench.sizes import FULL, SMALL, Sizes

OUT = ROOT / "tests" / "bench" / "out" / "bench-data.json"
INGEST_ROUNDS = 2

Say = Callable[[str], None]


def main(
    peers: Annotated[Path | None, typer.Option(help="the Python of the peers' environment")] = None,
    quick: Annotated[bool, typer.Option(help="tiny data: whether it runs, not how fast")] = False,
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = OUT,
) -> None:
    """Measure the data layer against its peers."""
    console = Console(stderr=True)
    sizes, load = SMALL if quick else FULL, os.getloadavg()[1]
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        rows = measured(sizes, Path(folder), peers, lambda text: console.print(text, style="dim"))
    write_json(out, rows)
    width = None if console.is_terminal else 200
    print_table(f"make bench-data, {_machine(load)}", rows, Console(width=width))


def _machine(load: float) -> str:
    """What the figures were taken on: other work on the machine slows down CPU time too, by shared caches and cores."""
    return f"{os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[1]:.1f} at the end (1 is this run)"


def measured(sizes: Sizes, folder: Path, peers: Path | None, say: Say) -> list[Row]:
    """All rows of the table."""
    torch.set_num_threads(1)
    server = weed.start(folder / "weed")
    try:
        update_environment(server.environment())
        stores = {"disk": prepared.file_store(folder / "store"), "store": open_store(f"{weed.STORE_URI}/bench")}
        say("making images")
        pictures = prepared.make_pictures(sizes, folder)
        say("ingesting them")
        datasets = prepared.make_datasets(pictures, stores)
        theirs = _peers(peers, sizes, folder, pictures, datasets, say)
        say("streaming")
        rows = streams.rows(pictures, datasets, folder / "cache", sizes, theirs)
        say("writing and ingesting")
        ours = writing.rates(pictures["28x28"], folder / "written", sizes.rule)
        ingested = writing.ingest_rate(pictures["28x28"], folder / "written", INGEST_ROUNDS)
        rows += writing.rows(ours, ingested, theirs)
    finally:
        weed.stop(server)
    say("memory")
    rows += memory.rows(sizes, folder)
    say("planning")
    return [*rows, *planning.rows(sizes)]


def _peers(
    python: Path | None,
    sizes: Sizes,
    folder: Path,
    pictures: dict[str, Pictures],
    datasets: dict[str, Stored],
    say: Say,
) -> dict[str, Rate]:
    """The peers' figures, none where there is no environment for them."""
    if python is None:
        say("no peers: give --peers PYTHON")
        return {}
    say("peers")
    work = folder / "peers"
    work.mkdir()
    grey28 = pictures["28x28"]
    data = prepared.for_peers(pictures, datasets)
    request = Request(sizes.rule, sizes.batch_size, str(work), data, str(grey28.raw), str(grey28.files))
    return ask(python, request, folder)


if __name__ == "__main__":
    typer.run(main)
