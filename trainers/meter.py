"""What a run says of itself while it trains: means of metrics, and a line of progress."""

import math
import time

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import TrainingError
from trainers import checkpoints
from trainers.task import Place, Say, Task


class Meter:
    """Sums metrics on the device and reads them only when they are due."""

    def __init__(self, task: Task, place: Place, say: Say, lines: list[dict[str, float]]) -> None:
        """`lines` are what was logged so far; new ones are added to it."""
        self.task, self.place, self.say, self.lines = task, place, say, lines
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._since = time.perf_counter()

    def add(self, phase: str, loss: Tensor, metrics: dict[str, Tensor], weight: float) -> None:
        """Count one phase's metrics with this worker's share of the global batch."""
        for name, value in {"loss": loss.detach(), **metrics}.items():
            key = f"{phase}/{name}"
            weighted = value * weight
            self._sums[key] = self._sums[key] + weighted if key in self._sums else weighted

    def due(self, step: int) -> bool:
        """Count a step, the `step`th of the run; true at every `log_every_steps`th."""
        self._steps += 1
        return step % self.task.spec.log_every_steps == 0

    def read(self, step: int) -> None:
        """Log the means since the last reading, over all workers. Raises TrainingError where one is not finite."""
        if not self._steps:
            return
        sums = torch.stack(list(self._sums.values())) / self._steps
        if self.place.world > 1:
            dist.all_reduce(sums)
        values = dict(zip(self._sums, sums.tolist(), strict=True))
        seconds = time.perf_counter() - self._since
        rate = self._steps * self.task.spec.batch_size / seconds
        self._sums, self._steps, self._since = {}, 0, time.perf_counter()
        for key, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(self._not_finite(step, key, value))
        self.lines.append({"step": step, **values})  # no times: a rerun logs the same bytes
        if self.place.rank == 0:
            self._print(step, values, rate)

    def _print(self, step: int, values: dict[str, float], rate: float) -> None:
        spec = self.task.spec
        losses = "  ".join(f"{key.replace('/loss', '')} {value:.3f}" for key, value in values.items() if "/loss" in key)
        left = (spec.steps - step) * spec.batch_size / rate
        self.say(
            f"train {self.task.model} step {step:,}/{spec.steps:,}  {rate:,.0f} images/s  {losses}  {left:.0f} s left"
        )

    def _not_finite(self, step: int, key: str, value: float) -> str:
        phase, _, metric = key.partition("/")
        steps = checkpoints.committed_steps(self.task.store, self.task.run_ref)
        good = f"the last good checkpoint is step {steps[-1]:,}" if steps else "there is no checkpoint yet"
        return (
            f"train {self.task.model}: {metric} of phase {phase} became {value} by step {step:,}; {good}; "
            "lower the learning rate (models." + self.task.model + ".lr) or change the seed"
        )
