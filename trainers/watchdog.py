"""Finds a step that does not end, and says of which worker, in which phase, and where its thread stands.

Collectives end by themselves after their time-out (`trainers.launch`); this says what they wait for, minutes before.
"""

import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from trainers.task import Place, Say, Task

LEAST_SECONDS = 60.0
FIRST_SECONDS = 600.0  # for the first steps, in which kernels are compiled and nothing says how long a step is
MEDIANS = 20.0  # steps that a single one may last
REMEMBERED = 64
CHECK_SECONDS = 1.0
FRAMES = 4


class Watchdog:
    """Watches the thread that makes it."""

    def __init__(self, task: Task, place: Place, say: Say, doing: Callable[[], str]) -> None:
        """`doing` says what the step is at, in words."""
        self.task, self.place, self.say, self.doing = task, place, say, doing
        self._thread = threading.get_ident()
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._step, self._since = 0, time.monotonic()
        self._end = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._watcher.join()

    def step_done(self, step: int) -> None:
        """`step` steps of the run are done; the next begins."""
        now = time.monotonic()
        self._seconds.append(now - self._since)
        self._step, self._since = step, now

    def _watch(self) -> None:
        while not self._end.wait(CHECK_SECONDS):
            seconds = time.monotonic() - self._since
            if seconds > self._limit():
                self.say(self._found(seconds))
                return  # once: what hangs goes on hanging

    def _limit(self) -> float:
        if len(self._seconds) < REMEMBERED // 8:
            return FIRST_SECONDS
        return max(LEAST_SECONDS, MEDIANS * statistics.median(list(self._seconds)))

    def _found(self, seconds: float) -> str:
        place = self.place
        usual = f"{statistics.median(list(self._seconds)):.3g} s" if self._seconds else "unknown"
        return (
            f"warning: train {self.task.model}: rank {place.rank} of {place.world} is at step {self._step + 1:,} for "
            f"{seconds:.0f} s (usual: {usual}), {self.doing()}, in {self._stands()}"
        )

    def _stands(self) -> str:
        """The innermost calls of the watched thread, the last one first."""
        frames = traceback.extract_stack(sys._current_frames()[self._thread])[-FRAMES:]
        return " < ".join(f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in reversed(frames))
