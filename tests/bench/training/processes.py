"""Workers of one measurement: processes with a thread each, in a gloo group; the first one's answer comes back."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tests.bench.training.whole import process_group

Figures = dict[str, float]
Work = Callable[..., Figures]  # (rank, world, *arguments) -> figures


def measured_by(world: int, folder: Path, work: Work, *arguments: Any) -> Figures:
    """Run `work`, a function of a module, on every worker; what all give, the largest of each figure."""
    folder.mkdir(parents=True, exist_ok=True)
    answer = folder / "answer.json"
    spawn(_worker, (world, folder, answer, work, arguments), nprocs=world)  # type: ignore[no-untyped-call]
    found: Figures = json.loads(answer.read_text())
    answer.unlink()
    (folder / f"group-{world}").unlink(missing_ok=True)
    return found


def _worker(rank: int, world: int, folder: Path, answer: Path, work: Work, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # a launcher's duty; DeepSpeed insists on it
    with process_group(folder, rank, world):
        figures = work(rank, world, *arguments)
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        if rank == 0:
            answer.write_text(json.dumps(dict(zip(figures, values.tolist(), strict=True))))
        dist.barrier()
