"""Memory of a rank at each of DeepSpeed's ZeRO stages, on two workers, against what the stage promises.

Of dense layers, whose weights are all that counts: anonymous memory of the process beyond what it held before. Held is
what is there after a step, and most is the peak while steps are taken, with buffers and Adam's temporaries.
"""

import gc
import typing
from pathlib import Path

import torch
from torch import nn

from pipeline.sections import ClusterSpec
from tests.bench.measure import MIB, memory_now, peak_memory
from tests.bench.rows import Against, Limit, Row, row
from tests.bench.training.processes import Figures, measured_by
from tests.bench.training.whole import engine_of
from trainers.engine import Engine
from trainers.families import Adam
from trainers.summary import network_cost

WORKERS = 2
LAYERS = 32
STEPS = 3
BATCH = 4
SETTINGS = Adam(lr=1e-4)


def stages() -> list[int]:
    """The ZeRO stages that a recipe may ask for, but 0, which shares nothing."""
    return [stage for stage in typing.get_args(ClusterSpec.model_fields["zero"].annotation) if stage > 0]


def rows(width: int, folder: Path) -> list[Row]:
    """Two rows a stage."""
    found = []
    for stage in stages():
        measured = measured_by(WORKERS, folder, _work, stage, width)
        promised = network_cost("dense", _network(width), False, WORKERS, stage).total / MIB
        plain = network_cost("dense", _network(width), False).total / MIB
        limit = Limit("weights, gradients, Adam's state, its fp32 copy, each shared as the stage says", promised)
        against = Against(f"theory, of {plain:,.0f} MiB without ZeRO", promised)
        name = f"ZeRO {stage}, {WORKERS} ranks: memory of a rank"
        found += [
            row(f"{name}, held", measured["held"] / MIB, "MiB", against, "<= 1.1", limit),
            row(f"{name}, peak in a step", measured["peak"] / MIB, "MiB", against, None, limit),
        ]
    return found


def _network(width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))


def _work(rank: int, world: int, stage: int, width: int) -> Figures:
    _take_steps(engine_of("deepspeed", _network(8), SETTINGS, stage), 8)  # imports, pools, threads
    gc.collect()
    before = memory_now().own
    with peak_memory() as peak:
        engine = engine_of("deepspeed", _network(width), SETTINGS, stage)
        _take_steps(engine, width)
    return {"held": memory_now().own - before, "peak": peak.own - before}


def _take_steps(engine: Engine, width: int) -> None:
    for _ in range(STEPS):
        engine.step(engine.module(torch.rand(BATCH, width)).square().mean(), SETTINGS.lr)
