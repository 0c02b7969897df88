"""`make bench-train`: how fast the trainer trains, against loops by hand and its peers, and what it costs beside.

    python -m tests.bench.train [--peers PYTHON] [--quick] [--out FILE]

Prints one table and writes it as JSON to tests/bench/out/bench-train.json. The peers run in the same run by a Python of
their own (`make .venv-peers/done`); without `--peers` their rows are left out. A full run takes some ten minutes on two
cores, which should be quiet, and 5 GB of disk, freed at the end.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from pipeline.errors import AtelierError
from tests.bench.asked import ROOT
from tests.bench.rows import Row, print_table, write_json
from tests.bench.training import compare, gpu, scaling, stall, whole, zero
from tests.bench.training.cases import SIDE, Case, random_images
from tests.bench.training.compare import Comparison, Effort
from tests.bench.training.peaks import flops_per_second
from tests.bench.training.peers_asked import Peers

OUT = ROOT / "tests" / "bench" / "out" / "bench-train.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """How large a run of this benchmark is."""

    images: int
    effort: Effort
    compared: tuple[Comparison, ...]
    scaled: tuple[Case, ...]
    scaling_rounds: int
    stalled: Case
    stall_rounds: int
    steps_around_checkpoint: int
    width: int  # of the dense layers whose memory is measured


FULL = Sizes(
    images=60_000,
    effort=Effort(seconds=3.0, rounds=4, least_steps=8),
    compared=tuple(compare.comparisons()),
    scaled=(Case("VAE tiny", "vae", 128), Case("VAE base", "vae", 32, {"preset": "base"})),
    scaling_rounds=2,
    stalled=Case("VAE large", "vae", 2, {"preset": "large"}),
    stall_rounds=2,
    steps_around_checkpoint=25,
    width=1024,
)
SMALL = Sizes(
    images=400,
    effort=Effort(seconds=0.02, rounds=1, least_steps=4),
    compared=tuple(compare.comparisons(base=False)),
    scaled=(Case("VAE tiny", "vae", 16),),
    scaling_rounds=1,
    stalled=Case("VAE tiny", "vae", 2),
    stall_rounds=1,
    steps_around_checkpoint=4,
    width=64,
)


def main(
    peers: Annotated[Path | None, typer.Option(help="the Python of the peers' environment")] = None,
    quick: Annotated[bool, typer.Option(help="a moment of each: whether it runs, not how fast")] = False,
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = OUT,
) -> None:
    """Measure the trainer against loops by hand and its peers."""
    console = Console(stderr=True)
    load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        rows = measured(SMALL if quick else FULL, Path(folder), peers, lambda text: console.print(text, style="dim"))
    write_json(out, rows)
    width = None if console.is_terminal else 200
    print_table(f"make bench-train, {_machine(load)}", rows, Console(width=width))


def _machine(load: float) -> str:
    """What the figures were taken on: other work slows down everything here."""
    return f"{os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[1]:.1f} at the end (1 is this run)"


def measured(sizes: Sizes, folder: Path, python: Path | None, say: Say) -> list[Row]:
    """All rows of the table."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"  # a launcher's duty; DeepSpeed insists on it
    images_NCHW = random_images(sizes.images)
    data = whole.make_data(images_NCHW, folder / "data")
    peak = flops_per_second()
    rows = []
    with whole.process_group(folder), _peers(python, images_NCHW, folder, say) as peers:
        for comparison in sizes.compared:
            say(comparison.case.name)
            rows += compare.rows(comparison, images_NCHW, data, peers, sizes.effort, peak)
        say("a trivial network")
        rows += compare.overhead_rows(images_NCHW, data, sizes.effort)
    say("two workers")
    rows += scaling.rows(sizes.scaled, data, folder / "scaling", replace(sizes.effort, rounds=sizes.scaling_rounds))
    say("checkpoints")
    rows += stall.rows(sizes.stalled, data, sizes.steps_around_checkpoint, sizes.stall_rounds)
    say("ZeRO")
    rows += zero.rows(sizes.width, folder / "zero")
    return rows + (_gpu_rows(folder, say) if torch.cuda.is_available() else [])


def _gpu_rows(folder: Path, say: Say) -> list[Row]:
    device = torch.device("cuda")
    peak, rows = gpu.product_peak(device), []
    for side, batch_size in gpu.BATCH_SIZES.items():
        channels = 1 if side == SIDE else 3
        data = whole.make_data(random_images(8 * batch_size, 0, side, channels), folder / f"gpu-{side}")
        for case in gpu.cases(batch_size):
            say(f"{case.name} at {side} pixels on {torch.cuda.get_device_name()}")
            rows += gpu.rows(case, data, device, peak)
    return rows


def _peers(python: Path | None, images_NCHW: torch.Tensor, folder: Path, say: Say) -> Peers | nullcontext[None]:
    """The peers' process, none where there is no environment for them."""
    if python is None:
        say("no peers: give --peers PYTHON")
        return nullcontext()
    path = folder / "images.pt"
    torch.save(images_NCHW, path)
    return Peers(python, path, folder)


if __name__ == "__main__":
    try:
        typer.run(main)
    except AtelierError as error:
        raise SystemExit(f"error: {error}") from None
