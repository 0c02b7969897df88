"""What a run says of itself while it trains: means of metrics, how fast it is, and a line of progress.

metrics.jsonl    losses and what else the phases give: means over the steps since the line before; no times in it,
                 so that a rerun writes the same bytes
timing.jsonl     of the same steps: images a second, the share of time that the steps waited for data, memory, and
                 where the work of a step is known FLOPs a second and their share of the device's peak (MFU)
"""

import math
import time
from collections.abc import Iterator

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import TrainingError
from trainers.families import Batch
from trainers.task import Place, Say, Task

STEPS = "steps"  # in a checkpoint: how many steps the sums beside it are over
SAY_SECONDS = 1.0  # between lines of progress: small networks take thousands of steps in it


def diverged_advice(model: str) -> str:
    """What to change where numbers are no longer finite."""
    section = f"models.{model}"
    return f"lower the learning rate ({section}.lr), clip the gradients ({section}.clip_norm) or change the seed"


def memory_bytes(device: torch.device) -> int:
    """The most that torch has held on the GPU so far; on the host what the process holds now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


class Meter:
    """Sums metrics on the device and reads them only when they are due."""

    def __init__(
        self,
        task: Task,
        place: Place,
        say: Say,
        lines: list[dict[str, float]],
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        """`lines` are what was logged so far; new ones are added to it. `peak_flops`: a second, of all devices."""
        self.task, self.place, self.say, self.lines = task, place, say, lines
        self.timing: list[dict[str, float]] = []
        self.flops_per_step, self.peak_flops = flops_per_step, peak_flops
        self._waited = 0.0
        self.doing = "before its first phase"  # for the watchdog
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._since = self._said = time.perf_counter()
        self._steps_here = 0  # of those, taken by this process

    def add(self, phase: str, loss: Tensor, metrics: dict[str, Tensor], weight: float) -> None:
        """Count one phase's metrics with this worker's share of the global batch."""
        self.doing = f"in phase {phase}"
        for name, value in {"loss": loss.detach(), **metrics}.items():
            key = f"{phase}/{name}"
            weighted = value * weight
            self._sums[key] = self._sums[key] + weighted if key in self._sums else weighted

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, with the time that it takes to come."""
        self.doing, since = "waiting for data", time.perf_counter()
        batch = next(batches)
        self.doing = "before its first phase"
        self._waited += time.perf_counter() - since
        return batch

    def due(self, step: int) -> bool:
        """Count a step, the `step`th of the run; true at every `log_every_steps`th and the last."""
        self._steps += 1
        self._steps_here += 1
        return step % self.task.spec.log_every_steps == 0 or step == self.task.spec.steps

    def read(self, step: int) -> None:
        """Log the means since the last reading, over all workers. Collective.

        Raises TrainingError where one is not finite.
        """
        sums = torch.stack(list(self._sums.values())) / self._steps
        if self.place.world > 1:
            dist.all_reduce(sums)
        values = dict(zip(self._sums, sums.tolist(), strict=True))
        self._check(step, values)
        self.lines.append({"step": step, **values})
        timing = self._timed(step)
        self.timing.append(timing)
        self._sums, self._steps, self._steps_here, self._waited = {}, 0, 0, 0.0
        self._since = time.perf_counter()
        if self.place.rank == 0:
            self._print(step, values, timing["images_per_second"])

    def _timed(self, step: int) -> dict[str, float]:
        """The line of timing.jsonl for the steps since the last one."""
        seconds = time.perf_counter() - self._since
        timed = {
            "step": step,
            "at": time.time(),
            "images_per_second": self._steps_here * self.task.spec.batch_size / seconds,
            "data_wait": self._waited / seconds,
            "memory_bytes": memory_bytes(self.place.device),
        }
        if self.flops_per_step:
            timed["flops_per_second"] = self._steps_here * self.flops_per_step / seconds
            if self.peak_flops:
                timed["mfu"] = timed["flops_per_second"] / self.peak_flops
        return timed

    def window(self, step: int) -> dict[str, Tensor]:
        """The sums since the last reading, for a checkpoint between two of them: each worker's, (world,). Collective.

        A run that goes on from there logs the same bytes. Raises TrainingError where one is not finite.
        """
        if not self._steps:
            return {}
        own = torch.stack(list(self._sums.values()))
        each_W = [torch.empty_like(own) for _ in range(self.place.world)]
        if self.place.world > 1:
            dist.all_gather(each_W, own)
        else:
            each_W = [own]
        by_worker = torch.stack(each_W).cpu()
        self._check(step, dict(zip(self._sums, by_worker.sum(0).tolist(), strict=True)))
        sums = {name: by_worker[:, index] for index, name in enumerate(self._sums)}
        return {**{f"meter/{name}": sum_W for name, sum_W in sums.items()}, f"meter/{STEPS}": torch.tensor(self._steps)}

    def restore(self, window: dict[str, Tensor]) -> None:
        """Go on from what `window` gave. For another number of workers the first one takes the sum."""
        for name, sum_W in sorted(window.items()):  # a file gives them in any order; workers add up in one
            if name == STEPS:
                self._steps = int(sum_W)
            elif len(sum_W) == self.place.world:
                self._sums[name] = sum_W[self.place.rank].to(self.place.device)
            else:
                mine = sum_W.sum() if self.place.rank == 0 else torch.zeros(())
                self._sums[name] = mine.to(self.place.device)

    def _print(self, step: int, values: dict[str, float], rate: float) -> None:
        spec, now = self.task.spec, time.perf_counter()
        if now - self._said < SAY_SECONDS and step < spec.steps:
            return
        self._said = now
        losses = "  ".join(f"{key.replace('/loss', '')} {value:.3f}" for key, value in values.items() if "/loss" in key)
        left = (spec.steps - step) * spec.batch_size / rate
        self.say(
            f"train {self.task.model} step {step:,}/{spec.steps:,}  {rate:,.0f} images/s  {losses}  {left:.0f} s left"
        )

    def _check(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            if not math.isfinite(value):
                phase, _, metric = key.partition("/")
                raise TrainingError(f"{metric} of phase {phase} became {value} by step {step:,}")
