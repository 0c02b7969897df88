"""Two workers against one, a thread each: how near they come to what their arithmetic and gloo allow.

The limit is measured by the same two processes, at the same time as they would train: the bare loop on half the batch,
and then all-reduces of as many numbers as the model has parameters.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tests.bench.rows import Against, Limit, Row, row
from tests.bench.training import bare, whole
from tests.bench.training.cases import Case, random_images
from tests.bench.training.clock import Clock
from tests.bench.training.compare import Effort
from tests.bench.training.processes import Figures, measured_by
from tests.bench.training.whole import Data, Plan
from trainers.task import Place

REDUCED_TIMES = 20
BARE_IMAGES = 4096


def rows(cases: Sequence[Case], data: Data, folder: Path, effort: Effort) -> list[Row]:
    """For each case, its rate on two workers against the limit, and against one worker."""
    found = []
    for case in cases:
        alone = _best(case, data, folder, effort, workers=1)
        both = _best(case, data, folder, effort, workers=2)
        rate = case.batch_size / both["whole"]
        at_best = case.batch_size / (both["compute"] + both["gloo"])
        theirs = Against("compute on half the batch, then gloo", at_best)
        one = Against("the same on 1 worker", case.batch_size / alone["whole"])
        limit = Limit(f"{1e3 * both['compute']:.3g} ms of compute, {1e3 * both['gloo']:.3g} ms of gloo a step", at_best)
        figure = f"train {case.name} on 2 workers"
        found += [
            row(figure, rate, "images/s", theirs, ">= 0.9", limit),
            row(figure, rate, "images/s", one, None, limit),
        ]
    return found


def _best(case: Case, data: Data, folder: Path, effort: Effort, workers: int) -> Figures:
    """The least of each figure over the rounds, in seconds a step."""
    rounds = [measured_by(workers, folder, _work, case, data, effort, whole.new_run()) for _ in range(effort.rounds)]
    return {name: min(one[name] for one in rounds) for name in rounds[0]}


def _work(rank: int, world: int, case: Case, data: Data, effort: Effort, run: str) -> Figures:
    images_NCHW = random_images(max(BARE_IMAGES, case.batch_size), seed=rank)
    part = replace(case, batch_size=case.batch_size // world)
    dist.barrier()
    steps = _agreed(max(effort.least_steps, round(effort.seconds / _seconds(part, images_NCHW, 3))))
    warmup = max(1, steps // 8)
    dist.barrier()
    compute = _seconds(part, images_NCHW, steps)
    gloo = _reduce_seconds(sum(p.numel() for network in case.build().networks.values() for p in network.parameters()))
    dist.barrier()
    seconds = whole.train(case, data, "torch", Plan(steps), run, Place(rank, world, whole.CPU)).seconds_per_step(warmup)
    return {"compute": compute, "gloo": gloo, "whole": seconds}


def _seconds(case: Case, images_NCHW: Tensor, steps: int) -> float:
    clock = Clock()
    bare.run(case, images_NCHW, steps, clock.tick)
    return clock.seconds_per_step(max(1, steps // 8))


def _agreed(steps: int) -> int:
    """The first worker's number for all."""
    number = torch.tensor([steps])
    dist.broadcast(number, 0)
    return int(number)


def _reduce_seconds(numbers: int) -> float:
    """An all-reduce of so many float32."""
    flat, clock = torch.zeros(numbers), Clock()
    for _ in range(REDUCED_TIMES):
        dist.all_reduce(flat)
        clock.tick()
    return clock.seconds_per_step(REDUCED_TIMES // 4)
