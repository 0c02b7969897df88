"""`warm_start: champion`: a run begins with the weights of the release that has the recipe's alias.

    runs/<id>/start.json     which release that is, written by create before the first step: the first writer wins

So a run that was cut short, or that is asked for again after it has become the champion itself, began where it began.
The file is among those of the run's record. The sampling network takes the release's weights, which are an average;
the other networks, which a release has none of, take those of its run's last checkpoint while that is kept. Adam's
moments start at zero.
"""

from collections.abc import Mapping

from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.artifacts import Release, Strict
from pipeline.errors import AlreadyExists, NotFound, UserError
from pipeline.records import load, parse_model, read_file
from pipeline.release.aliases import alias_of, champion_of
from trainers import checkpoints
from trainers.export import WEIGHTS
from trainers.state import State
from trainers.task import Say, Task

FILE = "start.json"


class Start(Strict):
    """Where a run began: the ref of a release, None where there was no champion."""

    release: str | None


def choose(task: Task, say: Say) -> None:
    """Settle, once for all attempts, which release the run begins with. Called where a run is started."""
    if task.spec.warm_start is None:
        return
    name, alias = task.recipe.release_name(task.model), task.recipe.release.alias
    champion = champion_of(task.store, alias_of(task.store, name, alias))
    if champion is None:
        say(f"train {task.model}: starts anew, {name}@{alias} names no release yet")
    start = Start(release=champion.ref if champion else None)
    try:
        task.store.create(f"{task.run_ref}/{FILE}", start.to_bytes())
    except AlreadyExists:
        return  # an earlier attempt's


def begin(task: Task, state: State, say: Say) -> None:
    """Give the networks the chosen release's weights where they fit; else say so. Collective."""
    if task.spec.warm_start is None:
        return
    ref = _chosen(task).release
    if ref is None:
        return
    release = load(task.store, ref, Release)
    what = f"{release.name} {release.number}"
    try:
        weights, kept = _weights(task, state, release)
        state.begin_with(weights)
    except UserError as error:
        say(f"train {task.model}: starts anew, {what} does not fit: {error}")
        return
    others = [name for name in state.engines if name not in weights]
    anew = f"; {', '.join(others)} anew: the checkpoints of its run are gone" if others and not kept else ""
    say(f"train {task.model}: starts with the weights of {what}{anew}")


def record(task: Task) -> dict[str, bytes]:
    """The run's own file about it, by name."""
    if task.spec.warm_start is None:
        return {}
    return {FILE: _chosen(task).to_bytes()}


def _chosen(task: Task) -> Start:
    key = f"{task.run_ref}/{FILE}"
    try:
        return parse_model(task.store.get(key), Start, f"{task.store.uri}/{key}")
    except NotFound:  # a loop that nobody chose for, as in a benchmark
        return Start(release=None)


def _weights(task: Task, state: State, release: Release) -> tuple[Mapping[str, dict[str, Tensor]], bool]:
    """Whole weights by network, and whether a checkpoint of the release's run was there for the others."""
    if release.family != task.spec.family:
        raise UserError(f"expected family {task.spec.family}, got {release.family}")
    [entry] = [entry for entry in release.files if entry.name == WEIGHTS]
    weights = {state.model.sampler: load_safetensors(read_file(task.store, release, entry))}
    others = [name for name in state.engines if name != state.model.sampler]
    saved = checkpoints.newest(task.store, release.run) if others else None
    if saved:
        weights |= {name: saved.part(name) for name in others}
    return weights, saved is not None
