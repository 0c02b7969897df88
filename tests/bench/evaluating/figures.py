"""Figures of two sets of features, ours against torchmetrics and prdc: same values, CPU time, memory.

    python -m tests.bench.evaluating.figures REQUEST

Each is computed in a process of its own, whose peak memory is then that figure's: request and answer are one line of
JSON each. Threads are one for all, so that CPU time compares arithmetic and not how threads wait for each other.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.settings import child_environment
from tests.bench.asked import ROOT
from tests.bench.measure import MIB, cpu_seconds, memory_now, peak_memory
from tests.bench.rows import Against, Limit, Row, row

TWICE = "<= 0.5"  # of the peer's CPU time
SAME = "<= 0.0001"
LEAN = "<= 2048"
NEIGHBOURS = 5  # for all four figures, as prdc takes one number
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Who = Literal["ours", "peer"]
Features = Any  # torch float32 (N, D)


@dataclass(frozen=True)
class Request:
    """Which figure of the two files of features, by whom."""

    figure: str
    who: Who
    real: str
    fake: str


@dataclass(frozen=True)
class Answer:
    """Values by name; bytes that the process held of its own at most, and before the work."""

    values: dict[str, float]
    cpu_seconds: float
    wall_seconds: float
    own: int
    before: int


def rows(num: int, width: int, rounds: int, folder: Path) -> list[Row]:
    """Time, agreement and memory of each figure."""
    paths = write_features(num, width, folder)
    found: list[Row] = []
    for figure, compared in FIGURES.items():
        answers: dict[Who, Answer] = {}
        for _ in range(rounds):
            for who in ("ours", "peer"):
                answer = _in_a_process(Request(figure, who, *paths))
                if who not in answers or answer.cpu_seconds < answers[who].cpu_seconds:
                    answers[who] = answer
        found += _rows_of(
            f"{figure} of {num:,} x {num:,} x {width:,}", compared.peer, answers["ours"], answers["peer"], paths
        )
    return found


def _rows_of(title: str, peer: str, ours: Answer, theirs: Answer, paths: tuple[str, str]) -> list[Row]:
    apart = max(abs(ours.values[name] - value) / abs(value) for name, value in theirs.values.items())
    read = Limit("the features in float64", 2 * sum(Path(path).stat().st_size for path in paths) / MIB)
    return [
        row(title, ours.cpu_seconds, "CPU-s", Against(peer, theirs.cpu_seconds), TWICE),
        row(f"{title}: apart from {peer}", apart, "relative", bar=SAME),
        row(f"{title}: peak memory", ours.own / MIB, "MiB", bar=LEAN, limit=read),
        row(f"{title}: peak memory of {peer}", theirs.own / MIB, "MiB", limit=read),
    ]


def write_features(num: int, width: int, folder: Path) -> tuple[str, str]:
    """Features like a network's: not negative, correlated, float32; the generated ones a little off."""
    random = np.random.default_rng(0)
    mix = random.standard_normal((width, width), np.float32) / np.float32(width**0.5)
    real = np.maximum(random.standard_normal((num, width), np.float32) @ mix, 0)
    fake = np.maximum(np.float32(0.1) + np.float32(0.9) * (random.standard_normal((num, width), np.float32) @ mix), 0)
    paths = str(folder / "real.npy"), str(folder / "fake.npy")
    for path, features in zip(paths, (real, fake), strict=True):
        np.save(path, features)
    return paths


def _in_a_process(request: Request) -> Answer:
    command = [sys.executable, "-m", "tests.bench.evaluating.figures", json.dumps(asdict(request))]
    environment = child_environment(**ONE_THREAD)
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Answer(**json.loads(done.stdout.strip().splitlines()[-1]))


def measure(request: Request) -> Answer:
    """Compute it here, watched; imports and reading the files are not counted."""
    import torch

    torch.set_num_threads(1)
    compared = FIGURES[request.figure]
    of = compared.ours if request.who == "ours" else compared.theirs
    real, fake = (torch.from_numpy(np.load(path)) for path in (request.real, request.fake))
    few = min(len(real), 40)
    of(real[:few], fake[:few])  # imports, thread pools
    before = memory_now()
    with peak_memory() as memory:
        cpu, wall = cpu_seconds(), time.perf_counter()
        values = of(real, fake)
        cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return Answer(values, cpu, wall, memory.own, before.own)


def _our_frechet(real: Features, fake: Features) -> dict[str, float]:
    from trainers.metrics.frechet import frechet_distance

    return {"distance": frechet_distance(real, fake)}


def _their_frechet(real: Features, fake: Features) -> dict[str, float]:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = FrechetInceptionDistance(feature=_flat(real.shape[1]), normalize=True, input_img_size=(3, 8, 8))
    theirs.set_dtype(torch.float64)
    return {"distance": _of_images(theirs, real, fake)}


def _our_kernel(real: Features, fake: Features) -> dict[str, float]:
    from trainers.metrics.kernel import kernel_distance

    return {"distance": kernel_distance(real, fake)}


def _their_kernel(real: Features, fake: Features) -> dict[str, float]:
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    theirs = KernelInceptionDistance(feature=_flat(real.shape[1]), normalize=True, subsets=1, subset_size=len(real))
    theirs.set_dtype(torch.float64)
    return {"distance": _of_images(theirs, real.double(), fake.double(), first=True)}


def _flat(width: int) -> Any:
    """An extractor whose images are features already."""
    from torch import nn

    class Flat(nn.Module):
        num_features = width

        def forward(self, images_BCHW: Any) -> Any:
            return images_BCHW.flatten(1)

    return Flat()


def _of_images(theirs: Any, real: Features, fake: Features, first: bool = False) -> float:
    """A torchmetrics figure, updated by batches as it is used."""
    for features, is_real in ((real, True), (fake, False)):
        for batch in features.split(1000):
            theirs.update(batch[:, :, None, None], real=is_real)
    found = theirs.compute()
    return float(found[0] if first else found)


def _our_neighbours(real: Features, fake: Features) -> dict[str, float]:
    from trainers.metrics.neighbours import neighbourhoods

    return asdict(neighbourhoods(real, fake, k=NEIGHBOURS, density_k=NEIGHBOURS))


def _their_neighbours(real: Features, fake: Features) -> dict[str, float]:
    from prdc import compute_prdc

    found = compute_prdc(real_features=real.numpy(), fake_features=fake.numpy(), nearest_k=NEIGHBOURS)
    return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True)
class Compared:
    """How we compute a figure, and how a library does."""

    peer: str
    ours: Callable[[Features, Features], dict[str, float]]
    theirs: Callable[[Features, Features], dict[str, float]]


FIGURES = {
    "Frechet distance": Compared("torchmetrics", _our_frechet, _their_frechet),
    "kernel distance": Compared("torchmetrics in float64", _our_kernel, _their_kernel),
    "precision, recall, density, coverage": Compared("prdc", _our_neighbours, _their_neighbours),
}


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Request(**json.loads(sys.argv[1]))))))
