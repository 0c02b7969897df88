"""What a run writes while it trains, off the path of its steps: checkpoints, logs and previews.

The first worker has one thread for all of it. A checkpoint is copied to the host's memory and the steps go on while the
thread checks, writes, commits and prunes. One is under way at most: the next waits for it. An error of the thread ends
the run at the next checkpoint or log; `settle` waits for all that was handed over.

    with Saver(task, place) as saver:
        saver.checkpoint(checkpoint)      # returns once it is copied
        saver.settle()                    # returns once it is committed
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from pipeline.errors import RecipeError
from trainers import checkpoints
from trainers.checkpoints import Checkpoint
from trainers.task import Place, Task


class Saver:
    """The first worker's writer. On the others nothing is written, and every method returns at once."""

    def __init__(self, task: Task, place: Place) -> None:
        self.task = task
        self._writes = place.rank == 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._under_way: list[Future[None]] = []
        self._host: dict[str, Tensor] = {}

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
