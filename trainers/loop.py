"""The one training loop, for every family, either engine and any number of workers.

It runs inside each worker. A step runs the family's phases in order; each trains one network and holds the others
fixed. What leaves the loop is in the store: checkpoints, logs and previews on the way, and at the end the exported
sampling network and the run's record, which the first worker commits.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import NoReturn

import torch.distributed as dist

from pipeline import __version__
from pipeline.artifacts import Run, file_entry
from pipeline.errors import TrainingError
from pipeline.records import commit
from trainers import checkpoints, export, stream, summary, warmstart
from trainers.alarms import Alarms
from trainers.checkpoints import Checkpoint
from trainers.interruption import QUIET, UNINTERRUPTED, Agreement, Interruption, stopped
from trainers.meter import Meter, diverged_advice
from trainers.precision import peak_flops
from trainers.previews import Previews
from trainers.saving import Saver
from trainers.state import MakeEngine, State, take_step
from trainers.summary import Summary
from trainers.task import Place, Say, Task
from trainers.watchdog import Watchdog


def train(
    task: Task, place: Place, make_engine: MakeEngine, say: Say, interruption: Interruption = UNINTERRUPTED
) -> None:
    """Train from the newest complete checkpoint to the last step, and commit the run.

    Raises TrainingError where it cannot go on, Stopped where `interruption` ended it.
    """
    spec = task.spec
    tell = say if place.rank == 0 else _silent
    cost, peak = _cost(task, place)

    # --- Where the data comes from: whole on the device where it fits.
    shards = stream.split_shards(task.dataset, "train")
    tell(f"train {task.model}: {task.dataset.splits['train']:,} images in {len(shards):,} shards")
    tell(f"train {task.model}: {summary.line(cost)}")
    reader = stream.open_split(task.cache, task.store, task.dataset, "train", place.device, place.world)
    order = stream.order_of(reader.shard_sizes, spec.batch_size, spec.seed, reader.image_bytes)

    # --- State: new, or where an earlier attempt left off.
    state = State(task, place, make_engine)
    saved = checkpoints.newest(task.store, task.run_ref)
    if saved:
        state.restore(saved)
        tell(f"train {task.model}: resumed at step {saved.step:,}/{spec.steps:,}{_on(place.world)}")
    else:
        warmstart.begin(task, state, tell)
    meter = Meter(task, place, say, state.metrics, cost.flops_per_step, peak)
    if saved:
        meter.restore(saved.part("meter"))

    # --- Steps.
    with Saver(task, place) as saver, _explained(task, saver):
        due = Due(task, place, say, state, meter, saver, interruption)
        if place.rank == 0:
            meter.timing = saver.earlier_timing(state.step)
        with (
            Watchdog(task, place, say, lambda: meter.doing) as watchdog,
            closing(stream.batches(order, reader, place.rank, place.world, state.step, state.augment)) as batches,
        ):
            while state.step < spec.steps:
                take_step(state, meter.next_batch(batches), spec, place, meter)
                state.step += 1
                state.update_ema(spec.batch_size, spec.ema_half_life_images)
                due.after_step()
                watchdog.step_done(state.step)
            saver.log(meter.lines, meter.timing, now=True)
            saver.settle()

    # --- The run's files, then its record.
    if place.rank == 0:
        finish(task, state, due.warnings)


class Due:
    """What is due after a step, in the order in which it must come: logs, a preview, a checkpoint, the end."""

    def __init__(
        self,
        task: Task,
        place: Place,
        say: Say,
        state: State,
        meter: Meter,
        saver: Saver,
        interruption: Interruption,
    ) -> None:
        self._task, self._place, self._say = task, place, say
        self._state, self._meter, self._saver = state, meter, saver
        self._agreement = Agreement(place, interruption, state.step)
        self._previews = Previews(task, place, state)
        self._alarms = Alarms(task, state.model.alarms(), meter.lines, say)

    @property
    def warnings(self) -> Sequence[Mapping[str, str | float]]:
        """What the alarms have said so far."""
        return self._alarms.warnings

    def after_step(self) -> None:
        """Collective. Raises TrainingError where the run cannot go on, Stopped once it is committed."""
        state, meter, saver, spec = self._state, self._meter, self._saver, self._task.spec
        if meter.due(state.step):
            self._log()
        if self._previews.due(state.step):
            self._preview()
        news = QUIET
        if self._agreement.due(state.step):
            news = self._agreement.reach(state.step, saver.idle, self._say)
        if state.step % spec.checkpoint_every_steps == 0 or state.step == spec.steps or news.hurry:
            saver.checkpoint(_checkpoint(state, meter))
        if news.signal_number and state.step < spec.steps:
            saver.log(meter.lines, meter.timing, now=True)
            _stop(self._task, self._place, saver, state.step, news.signal_number)

    def _log(self) -> None:
        meter, saver = self._meter, self._saver
        meter.read(self._state.step)
        if self._place.rank == 0 and self._alarms.check(meter.lines):
            saver.note("warnings.jsonl", self.warnings)
        saver.log(meter.lines, meter.timing)

    def _preview(self) -> None:
        """Draw with the average as it is now. Collective, for ZeRO-3."""
        average = self._state.average()
        if self._place.rank == 0:
            png = partial(self._previews.png, self._previews.draw(average))
            self._saver.preview(self._state.step, png)


def _silent(line: str) -> None:
    """What the other workers say."""


def _on(workers: int) -> str:
    return f" on {workers} workers" if workers > 1 else " on 1 worker"


def _cost(task: Task, place: Place) -> tuple[Summary, float | None]:
    """What a step costs, and the FLOPs a second that all devices have for it, where that is known."""
    spec, cluster = task.spec, task.recipe.cluster
    shape = stream.data_shape(task.dataset)
    cost = summary.summarise(spec.family, spec.options, shape, spec.batch_size, place.world, cluster.zero)
    peak = peak_flops(cluster.precision, place.device)
    return cost, peak and peak * place.world


def _checkpoint(state: State, meter: Meter) -> Checkpoint:
    """All that a run needs to go on. Collective. Raises TrainingError: a loss that is not finite never gets there."""
    window = meter.window(state.step)
    whole = state.checkpoint()
    return replace(whole, tensors=whole.tensors | window)


def _stop(task: Task, place: Place, saver: Saver, step: int, number: int) -> NoReturn:
    """End the run once its checkpoint is committed: no worker leaves before, or Ray would end the one that writes."""
    saver.settle()
    if place.world > 1:
        dist.barrier()
    raise stopped(number, f"train {task.model}: stopped at step {step:,}/{task.spec.steps:,}, which is committed")


@contextmanager
def _explained(task: Task, saver: Saver) -> Iterator[None]:
    """Add to a TrainingError which run it was, from where it can go on and what to change."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(
            f"train {task.model}: {error}; {saver.last_good()}; {diverged_advice(task.model)}"
        ) from None


def finish(task: Task, state: State, warnings: Sequence[Mapping[str, str | float]]) -> Run:
    """Write the exported network and the logs, then commit the run's record."""
    spec = task.spec
    files = export.export(spec.family, spec.options, task.dataset, state.ema)
    files["metrics.jsonl"] = checkpoints.json_lines(state.metrics)
    if warnings:
        files["warnings.jsonl"] = checkpoints.json_lines(warnings)
    files |= warmstart.record(task)
    for name, data in files.items():
        task.store.put(f"{task.run_ref}/{name}", data)
    last = {key: value for key, value in state.metrics[-1].items() if key != "step"}
    return commit(
        task.store,
        Run(
            code_version=__version__,
            id=task.run_id,
            recipe=task.recipe.name,
            model=task.model,
            family=spec.family,
            config=spec.model_dump(mode="json"),
            dataset=task.dataset.ref,
            steps=spec.steps,
            images_seen=spec.steps * spec.batch_size,
            files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
            metrics=last,
        ),
    )
