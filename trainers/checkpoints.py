"""Checkpoints: everything a run needs to go on, committed by a record.

    runs/<id>/checkpoints/000001500/state.safetensors   networks, EMA, Adam's moments: tensors only, nothing pickled
                                    metrics.jsonl       what was logged so far
                                    checkpoint.json     written last; without it the checkpoint does not exist

The tensors are whole and named by network and parameter, so a run continues on any number of workers and on either
engine. Random numbers and the stream's position follow from the seed and the step: there is no state of theirs to save.
The newest ones are kept, and beside them the best one by a metric where the recipe names it (`keep_best`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pipeline.artifacts import FileEntry, Strict, file_entry
from pipeline.errors import AlreadyExists, IntegrityError, NotFound, TrainingError
from pipeline.records import parse_model
from pipeline.store import Store

KEEP_LAST = 2  # where the recipe does not say
RECORD = "checkpoint.json"


class CheckpointRecord(Strict):
    """The statement that a checkpoint is whole: `step` steps are done."""

    schema_number: int = 1
    step: int
    score: float | None = None  # the value of the recipe's `keep_best`; the lowest is the best
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. `tensors`: `network/...`, `optimizer/network/...`, `ema/...`, `meter/...`."""

    step: int
    tensors: dict[str, Tensor]
    metrics: list[dict[str, float]]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix/`, with that cut off."""
        return {name.removeprefix(prefix + "/"): t for name, t in self.tensors.items() if name.startswith(prefix + "/")}


def json_lines(lines: Sequence[Mapping[str, str | float]]) -> bytes:
    """Logged lines, a JSON object each: the same bytes for the same lines."""
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()


def save(
    store: Store, run_ref: str, checkpoint: Checkpoint, keep_last: int = KEEP_LAST, score: float | None = None
) -> None:
    """Write a checkpoint and commit it, then drop all but the newest `keep_last` and the one of the lowest score.

    Raises TrainingError, and commits nothing, where a tensor is not finite.
    """
    for name, tensor in checkpoint.tensors.items():
        _check_finite(name, tensor, checkpoint.step)
    folder = folder_of(run_ref, checkpoint.step)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    files = {
        "state.safetensors": save_safetensors(tensors),
        "metrics.jsonl": json_lines(checkpoint.metrics),
    }
    for name, data in files.items():
        store.put(f"{folder}/{name}", data)
    entries = tuple(file_entry(name, data) for name, data in files.items())
    record = CheckpointRecord(step=checkpoint.step, files=entries, score=score)
    try:
        store.create(f"{folder}/{RECORD}", record.model_dump_json().encode())
    except AlreadyExists:
        # A worker group that was taken for dead committed the same step: the same bytes, or the record would not fit.
        store.put(f"{folder}/{RECORD}", record.model_dump_json().encode())
    _prune(store, run_ref, keep_last)


def folder_of(run_ref: str, step: int) -> str:
    """Where the checkpoint of a step lies."""
    return f"{run_ref}/checkpoints/{step:09d}"


def _check_finite(name: str, tensor: Tensor, step: int) -> None:
    """The loss of a step is computed before its update: weights may be lost already while it still looks well."""
    if tensor.numel() and tensor.is_floating_point():
        low, high = tensor.detach().aminmax()  # either is NaN where any value is
        if not (math.isfinite(low) and math.isfinite(high)):
            raise TrainingError(f"{name} became {low:g} to {high:g} by step {step:,}")


def _prune(store: Store, run_ref: str, keep_last: int) -> None:
    """Drop what need not be kept; the newest is always kept."""
    older = committed_steps(store, run_ref)[: -max(keep_last, 1)]
    if not older:
        return
    scores = {step: _score(store, run_ref, step) for step in committed_steps(store, run_ref)}
    known = {step: score for step, score in scores.items() if score is not None}
    best = min(known, key=lambda step: (known[step], step)) if known else None
    for step in older:
        if step != best:
            _drop(store, folder_of(run_ref, step))


def _score(store: Store, run_ref: str, step: int) -> float | None:
    key = f"{folder_of(run_ref, step)}/{RECORD}"
    try:
        return parse_model(store.get(key), CheckpointRecord, f"{store.uri}/{key}").score
    except NotFound:  # dropped by a worker group that is a checkpoint ahead
        return None


def committed_steps(store: Store, run_ref: str) -> list[int]:
    """The steps of the complete checkpoints, oldest first."""
    keys = [entry.key for entry in store.list(f"{run_ref}/checkpoints/")]
    return sorted(int(key.split("/")[-2]) for key in keys if key.endswith(f"/{RECORD}"))


def last_good(store: Store, run_ref: str) -> str:
    """What to say of the newest checkpoint where a run cannot go on."""
    steps = committed_steps(store, run_ref)
    return f"the last good checkpoint is step {steps[-1]:,}" if steps else "there is no checkpoint yet"


def newest(store: Store, run_ref: str) -> Checkpoint | None:
    """The newest complete checkpoint, None where there is none. Raises IntegrityError where its bytes are wrong."""
    for step in reversed(committed_steps(store, run_ref)):
        folder = folder_of(run_ref, step)
        try:
            key = f"{folder}/{RECORD}"
            record = parse_model(store.get(key), CheckpointRecord, f"{store.uri}/{key}")
            data = {entry.name: _checked(store, folder, entry) for entry in record.files}
        except NotFound:
            continue  # dropped by a worker group that is a checkpoint ahead
        metrics = [json.loads(line) for line in data["metrics.jsonl"].decode().splitlines()]
        return Checkpoint(record.step, load_safetensors(data["state.safetensors"]), metrics)
    return None


def _checked(store: Store, folder: str, entry: FileEntry) -> bytes:
    data = store.get(f"{folder}/{entry.name}")
    if file_entry(entry.name, data) != entry:
        raise IntegrityError(
            f"{store.uri}/{folder}/{entry.name}: expected {entry.bytes} bytes of SHA-256 {entry.sha256[:12]}..., got "
            f"others; delete the folder {folder} to go on from the checkpoint before it"
        )
    return data


def _drop(store: Store, folder: str) -> None:
    """Delete a checkpoint, its record first: what is left of a drop that was cut short is no checkpoint."""
    store.delete(f"{folder}/{RECORD}")
    for entry in list(store.list(f"{folder}/")):
        store.delete(entry.key)
