"""What a run writes while it trains, off the path of its steps: checkpoints, logs and previews.

The first worker has one thread for all of it. A checkpoint is copied to the host's memory and the steps go on while the
thread checks, writes, commits and prunes. One is under way at most: the next waits for it. An error of the thread ends
the run at the next checkpoint or log; `settle` waits for all that was handed over.

    with Saver(task, place) as saver:
        saver.checkpoint(checkpoint)      # returns once it is copied
        saver.settle()                    # returns once it is committed
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from pipeline.errors import NotFound, RecipeError
from trainers import checkpoints, tensorboard
from trainers.checkpoints import Checkpoint
from trainers.task import Place, Task

LOG_SECONDS = 10.0  # between two writings of the logs, which are whole files ...
LOG_SHARE = 0.02  # ... and at most this share of the time goes into them

Lines = list[dict[str, float]]


class Saver:
    """The first worker's writer. On the others nothing is written, and every method returns at once."""

    def __init__(self, task: Task, place: Place) -> None:
        self.task = task
        self._writes = place.rank == 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._under_way: list[Future[None]] = []
        self._host: dict[str, Tensor] = {}
        self._events = tensorboard.EventFile() if self._writes and tensorboard.available() else None
        self._next_log = time.monotonic() + LOG_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)  # what is under way is committed, whatever ended the run

    @property
    def idle(self) -> bool:
        """Whether all that was handed over is written. Raises what went wrong with it."""
        self._under_way = [future for future in self._under_way if not _finished(future)]
        return not self._under_way

    def settle(self) -> None:
        """Wait for all that was handed over. Raises what went wrong with it: StoreError, TrainingError."""
        while self._under_way:
            self._under_way.pop(0).result()

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint to the host and commit it in the background, once the one before it is."""
        if not self._writes:
            return
        spec = self.task.spec
        score = self._score(checkpoint)
        self.settle()  # the copies below overwrite what it reads
        copied = Checkpoint(checkpoint.step, self._to_host(checkpoint.tensors), checkpoint.metrics)
        store, run_ref = self.task.store, self.task.run_ref
        self._hand_over(lambda: checkpoints.save(store, run_ref, copied, spec.keep_last, score))

    def log(self, metrics: Lines, timing: Lines, now: bool = False) -> None:
        """Write the logs in the background, once every some seconds; or `now`."""
        if self._writes and (now or (self.idle and time.monotonic() >= self._next_log)):
            lines = list(metrics), list(timing)
            self._hand_over(lambda: self._write_logs(*lines))

    def preview(self, step: int, png: Callable[[], bytes]) -> None:
        """Make and write the picture of a step in the background."""
        self._hand_over(lambda: self._put(f"previews/{step:09d}.png", png()))

    def note(self, name: str, lines: Sequence[Mapping[str, str | float]]) -> None:
        """Write a small file of JSON lines in the background."""
        if self._writes:
            data = checkpoints.json_lines(lines)
            self._hand_over(lambda: self._put(name, data))

    def earlier_timing(self, step: int) -> Lines:
        """What earlier attempts wrote of the steps up to this one."""
        try:
            text = self.task.store.get(f"{self.task.run_ref}/timing.jsonl").decode()
        except NotFound:
            return []
        return [line for line in map(json.loads, text.splitlines()) if line["step"] <= step]

    def _write_logs(self, metrics: Lines, timing: Lines) -> None:
        since = time.monotonic()
        self._put("metrics.jsonl", checkpoints.json_lines(metrics))
        self._put("timing.jsonl", checkpoints.json_lines(timing))
        if self._events is not None:
            self._events.add(metrics, timing)
            self._put(f"tensorboard/events.out.tfevents.0.{self.task.run_id}", self._events.data)
        took = time.monotonic() - since
        self._next_log = time.monotonic() + max(LOG_SECONDS, took / LOG_SHARE)

    def _put(self, name: str, data: bytes) -> None:
        self.task.store.put(f"{self.task.run_ref}/{name}", data)

    def last_good(self) -> str:
        """What to say of the newest checkpoint, with the one under way waited for."""
        self._thread.shutdown(wait=True)
        return checkpoints.last_good(self.task.store, self.task.run_ref)

    def _hand_over(self, work: Callable[[], None]) -> None:
        self._under_way.append(self._thread.submit(work))

    def _score(self, checkpoint: Checkpoint) -> float | None:
        """The metric that says how good the checkpoint is, as it was logged last. Raises RecipeError."""
        name = self.task.spec.keep_best
        if name is None or not checkpoint.metrics:
            return None
        logged = checkpoint.metrics[-1]
        if name not in logged:
            known = ", ".join(key for key in logged if key != "step")
            raise RecipeError(f"models.{self.task.model}.keep_best: expected one of {known}; got {name!r}")
        return logged[name]

    def _to_host(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies in host memory that is kept from one checkpoint to the next: new pages cost more than the copy."""
        for name, tensor in tensors.items():
            own = self._host.get(name)
            if own is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
                pinned = tensor.is_cuda
                self._host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._host[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return {name: self._host[name] for name in tensors}


def _finished(future: Future[None]) -> bool:
    if future.done():
        future.result()
        return True
    return False
