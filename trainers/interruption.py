"""What may ask a run to stop before its last step, and how its workers agree on the step at which they do.

    SIGTERM, SIGINT       finish the step, commit a checkpoint, end with exit status 128 + signal; a rerun goes on
    a node that drains    commit checkpoints as fast as they are written, and train on until the node goes

A signal reaches each worker at another moment. Every two seconds or so the workers reduce one small tensor, which also
says after how many steps they meet again: so all stop at one step, and no other step waits for the host.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist

from pipeline.errors import Interrupted, Stopped
from trainers.task import Place, Say

CAUGHT = (signal.SIGTERM, signal.SIGINT)
# `timeout` passes on a signal that its process group has had already. A person who means it sends a second one later.
REPEAT_SECONDS = 1.0
AGREE_SECONDS = 2.0


class Interruption:
    """Asks for nothing; those that may ask derive from it."""

    def signal_number(self) -> int:
        """The signal that asks this worker to stop; 0: none."""
        return 0

    def draining(self) -> bool:
        """Whether a node of this run is about to go. Collective: every worker calls it at the same step."""
        return False


UNINTERRUPTED = Interruption()


class Signals(Interruption):
    """The first signal that this process caught."""

    def __init__(self) -> None:
        self.number = 0

    def signal_number(self) -> int:
        return self.number


@contextmanager
def caught() -> Iterator[Signals]:
    """Note SIGTERM and SIGINT instead of dying of them. The second one does what it would have done.

    Outside the main thread, where Python takes no handlers, nothing is caught.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    first = 0.0
    before = {number: signal.getsignal(number) for number in CAUGHT}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not signals.number:
            signals.number, first = number, time.monotonic()
        elif time.monotonic() - first >= REPEAT_SECONDS:
            restore()
            signal.raise_signal(number)

    for number in CAUGHT:
        signal.signal(number, note)
    try:
        yield signals
    finally:
        restore()


def stopped(number: int, what: str) -> Stopped:
    """The error by which a run ends after a signal; `what` says how far it came."""
    return stopped_kind(number)(f"{what}, on {signal.Signals(number).name}; the same command goes on from there")


def stopped_kind(number: int) -> type[Stopped]:
    """The class whose exit status is the signal's."""
    return Interrupted if number == signal.SIGINT else Stopped


@dataclass(frozen=True)
class News:
    """What the workers agreed on. `hurry`: commit a checkpoint now."""

    signal_number: int = 0
    hurry: bool = False


QUIET = News()


class Agreement:
    """Lets the workers of a run hear of an interruption at the same step."""

    def __init__(self, place: Place, interruption: Interruption, step: int) -> None:
        self.place, self.interruption = place, interruption
        self._last, self._next = step, step + 1
        self._since = time.perf_counter()
        self._told = False

    def due(self, step: int) -> bool:
        """Whether to call `reach` at this step: the same answer on every worker. A single one need not wait for it."""
        return step >= self._next or (self.place.world == 1 and self.interruption.signal_number() != 0)

    def reach(self, step: int, idle: bool, say: Say) -> News:
        """Agree. `idle`: the first worker has no checkpoint under way. Collective."""
        seconds = (time.perf_counter() - self._since) / max(1, step - self._last)
        first = self.place.rank == 0
        own = [float(self.interruption.signal_number()), seconds if first else 0.0, float(first and idle)]
        if self.place.world > 1:
            shared = torch.tensor(own, dtype=torch.float64, device=self.place.device)
            dist.all_reduce(shared, dist.ReduceOp.MAX)
            own = shared.tolist()
        number, seconds, can_write = own
        self._last, self._since = step, time.perf_counter()
        self._next = step + max(1, int(AGREE_SECONDS / max(seconds, 1e-9)))
        draining = self.interruption.draining()
        if draining and not self._told and first:
            self._told = True
            say("a node of this run is about to go: checkpoints are committed as fast as they are written")
        return News(int(number), bool(number) or (draining and bool(can_write)))
