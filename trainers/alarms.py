"""Ways in which training goes wrong while every number stays finite, told from the log and said once.

A family names those that it can meet (`Model.alarms`); what they look at are means over the lines of metrics.jsonl.
A warning is one line in the run's log and one of `warnings.jsonl`; the run goes on, since some recover.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trainers import checkpoints
from trainers.task import Say, Task

Line = Mapping[str, float]

WINDOW = 5  # lines over which a state must last: one line alone may be an unlucky batch
REFERENCE = 20  # lines at the run's start, whose median says what a gradient of this network is like
# A discriminator that is right 995 times of 1,000 leaves the generator what few mistakes remain; games that are even
# stay between 0.5 and 0.9 in the recipes that ship.
WON_ACCURACY = 0.995
# The gradient of a saturated logistic loss falls as exp(-margin): a hundredth of its start is a margin near 5.
LOST_GRADIENT = 0.01
# Nats an image. An eighth of a bit tells apart nothing that a picture shows; healthy digits carry 10 and more.
COLLAPSED_RATE = 0.1


@dataclass(frozen=True)
class Alarm:
    """`sounds` is asked with the first lines of the log and the newest ones, `WINDOW` of them."""

    name: str
    phase: str
    advice: str
    sounds: Callable[[Sequence[Line], Sequence[Line]], bool]


def mean(lines: Sequence[Line], key: str) -> float:
    """The mean of a metric over lines that all have it."""
    return statistics.fmean(line[key] for line in lines)


def discriminator_won(discriminator: str, generator: str, advice: str) -> Alarm:
    """Every accuracy of the discriminator's phase near 1, and hardly any gradient left in the generator's."""
    gradient = f"{generator}/grad_norm"

    def sounds(first: Sequence[Line], last: Sequence[Line]) -> bool:
        accuracies = [key for key in last[0] if key.startswith(f"{discriminator}/") and key.endswith("accuracy")]
        if not accuracies or not all(gradient in line for line in (*first, *last)):
            return False
        if min(mean(last, key) for key in accuracies) < WON_ACCURACY:
            return False
        return mean(last, gradient) < LOST_GRADIENT * statistics.median(line[gradient] for line in first)

    return Alarm("the discriminator has won", generator, advice, sounds)


def posterior_collapsed(phase: str, warmup_steps: int, advice: str) -> Alarm:
    """Latents that carry nothing once the rate has its full weight."""

    def sounds(first: Sequence[Line], last: Sequence[Line]) -> bool:
        return last[0]["step"] > warmup_steps and mean(last, f"{phase}/rate") < COLLAPSED_RATE

    return Alarm("the posterior has collapsed", phase, advice, sounds)


class Alarms:
    """The alarms of one run. Those that an earlier attempt said are not said again."""

    def __init__(self, task: Task, alarms: Sequence[Alarm], lines: Sequence[Line], say: Say) -> None:
        self.task, self.say = task, say
        self.warnings: list[dict[str, str | float]] = []
        self._waiting = list(alarms)
        for end in range(WINDOW, len(lines) + 1):
            self._take(lines[:REFERENCE], lines[end - WINDOW : end])

    def check(self, lines: Sequence[Line]) -> bool:
        """Say what the newest lines tell; true where that is something new."""
        if len(lines) < WINDOW:
            return False
        new = self._take(lines[:REFERENCE], lines[-WINDOW:])
        for alarm in new:
            task, step = self.task, int(lines[-1]["step"])
            good = checkpoints.last_good(task.store, task.run_ref)
            self.say(
                f"warning: train {task.model}: {alarm.name}, phase {alarm.phase}, step {step:,}; {good}; {alarm.advice}"
            )
        return bool(new)

    def _take(self, first: Sequence[Line], last: Sequence[Line]) -> list[Alarm]:
        new = [alarm for alarm in self._waiting if alarm.sounds(first, last)]
        for alarm in new:
            self._waiting.remove(alarm)
            step = last[-1]["step"]
            self.warnings.append({"step": step, "warning": alarm.name, "phase": alarm.phase, "advice": alarm.advice})
        return new
