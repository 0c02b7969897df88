"""TensorBoard's event file of a run, made in memory from the lines of its logs.

Object storage takes whole objects, so the file is put again as it grows: `runs/<id>/tensorboard/events.out...`.
It holds what metrics.jsonl and timing.jsonl hold. Needs the package `tensorboard`, atelier's extra of that name:

    tensorboard --logdir s3://bucket/runs/<id>/tensorboard       (or a folder)
"""

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

Line = Mapping[str, float]


def available() -> bool:
    """Whether the package is installed."""
    return find_spec("tensorboard") is not None


class EventFile:
    """An event file that grows."""

    def __init__(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._bytes = io.BytesIO()
        self._writer = RecordWriter(self._bytes)
        self._writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
        self._step = 0.0

    def add(self, metrics: Sequence[Line], timing: Sequence[Line]) -> None:
        """Take the lines of steps that are not in it yet. `at` of `timing` says when each step was."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        by_step = {line["step"]: line for line in timing}
        for line in metrics:
            if line["step"] <= self._step:
                continue
            self._step = line["step"]
            timed = by_step.get(self._step, {})
            values = {name: value for name, value in line.items() if name != "step"}
            values |= {f"timing/{name}": value for name, value in timed.items() if name not in ("step", "at")}
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
            event = Event(wall_time=timed.get("at", 0.0), step=int(self._step), summary=summary)
            self._writer.write(event.SerializeToString())

    @property
    def data(self) -> bytes:
        """The file as it is now."""
        return self._bytes.getvalue()
