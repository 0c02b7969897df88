"""How a step's time is taken: a mark at the end of each step, in whatever runs the steps.

The standard library only: the peers run this file in an environment of their own.
"""

import statistics
import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Marks of one loop, in seconds."""

    marks: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A step has ended."""
        self.marks.append(time.perf_counter())

    def seconds_per_step(self, warmup: int) -> float:
        """The mean over the steps after the first `warmup`, everything between them included."""
        measured = self.marks[warmup:]
        return (measured[-1] - measured[0]) / (len(measured) - 1)

    def seconds_per_step_with_checkpoints(self, warmup: int, checkpoint: int, each_seconds: float) -> float:
        """The same, had the checkpoint after step `checkpoint`, which this run has, come every `each_seconds`.

        The steps before it tell the usual step, those after it what it costs: a round is far shorter than the time
        between two checkpoints, and its own would weigh too much.
        """
        usual = Clock(self.marks[:checkpoint]).seconds_per_step(warmup)
        stall = max(0.0, self.beyond_median(checkpoint - 1, len(self.marks) - 1))
        return usual * (1 + stall / each_seconds)

    def durations(self) -> list[float]:
        """Of each step but the first."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]

    def beyond_median(self, first: int, last: int) -> float:
        """Seconds that the steps from mark `first` to mark `last` took beyond the median step before `first`."""
        usual = statistics.median(self.durations()[:first])
        return self.marks[last] - self.marks[first] - usual * (last - first)
