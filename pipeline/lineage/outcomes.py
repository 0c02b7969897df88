"""Downstream: what came of a record or of a source image, up to the aliases that name a release of it."""

from collections.abc import Iterator, Sequence
from functools import cached_property

from pipeline.artifacts import AnyRecord, Dataset, Evaluation, Record, Release, Run, SampleSet, file_entry
from pipeline.datasets.seen import Sighting
from pipeline.lineage.nodes import Node
from pipeline.listing import about
from pipeline.records import every, parse_model
from pipeline.release.numbers import retraction_of
from pipeline.release.records import Alias
from pipeline.store import Store


class Outcomes:
    """What came of records. The store has no list of a record's children, so each kind is read whole, once."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @cached_property
    def datasets(self) -> list[Dataset]:
        """All versions of all datasets."""
        return list(every(self.store, Dataset))

    @cached_property
    def _runs(self) -> list[Run]:
        return list(every(self.store, Run))

    @cached_property
    def _of_runs(self) -> list[Evaluation | SampleSet]:
        return [*every(self.store, Evaluation), *every(self.store, SampleSet)]

    @cached_property
    def _releases(self) -> list[Release]:
        return sorted(every(self.store, Release), key=lambda release: (release.name, release.number))

    @cached_property
    def _aliases(self) -> list[Alias]:
        keys = [entry.key for entry in self.store.list("aliases/")]
        return [parse_model(self.store.get(key), Alias, f"{self.store.uri}/{key}") for key in keys]

    def of(self, record: AnyRecord) -> tuple[Node, ...]:
        """What names this record as its parent."""
        match record:
            case Dataset():
                return tuple(self._of_dataset(record))
            case Run():
                made = [_node(one) for one in self._of_runs if one.run == record.ref]
                return (*made, *self._published_from(record))
            case Evaluation() | SampleSet():
                return tuple(self._published_from(record))
            case Release():
                return tuple(self._of_release(record))

    def of_image(self, dataset: Dataset, inputs: Sequence[Sighting]) -> Node:
        """A version that had the image among its inputs, and the runs on it where it became a sample."""
        said = "; ".join(dict.fromkeys(_fate(one) for one in inputs))
        splits = {one.split for one in inputs if one.status == "sample"}
        saw = "was trained on it" if "train" in splits else "was not trained on it, which is held out"
        runs = [
            _node(run, self.of(run), f"{saw}; {about(run)}")
            for run in self._runs
            if splits and run.dataset == dataset.ref
        ]
        return _node(dataset, tuple(runs), said)

    def _of_dataset(self, dataset: Dataset) -> Iterator[Node]:
        for later in self.datasets:
            if later.parent == dataset.ref:
                said = f"{later.changes.added:,} images added, {later.changes.removed:,} removed"
                yield Node(kind="version after", name=later.ref, about=said)
        own = {run.ref: run for run in self._runs if run.dataset == dataset.ref}
        for run in own.values():
            yield _node(run, self.of(run))
        for one in self._of_runs:
            if isinstance(one, Evaluation) and one.dataset == dataset.ref and one.run not in own:
                yield _node(one, said=f"of a run on other images: {about(one)}")

    def _published_from(self, record: Record) -> Iterator[Node]:
        """The releases that name this record, with whether it is still what they name."""
        for release in self._releases:
            stated = next((parent.sha256 for parent in release.parents if parent.ref == record.ref), None)
            if stated is None:
                continue
            key = f"{record.ref}/{record.file_name}"
            found = file_entry(key, self.store.get(key)).sha256
            said = about(release) if found == stated else f"made of {key} with SHA-256 {stated}, which has {found} now"
            state = "intact" if found == stated else "changed"
            yield Node(kind="release", name=release.ref, about=said, state=state, behind=self.of(release))

    def _of_release(self, release: Release) -> Iterator[Node]:
        name = f"{release.name}@{release.number}"
        if retraction := retraction_of(self.store, release.name, release.number):
            said = f"on {retraction.at} by {retraction.who}: {retraction.why}"
            yield Node(kind="retracted", name=name, about=said)
        for alias in self._aliases:
            moves = [move for move in alias.history if move.number == release.number]
            if alias.name == release.name and moves:
                when = "since" if alias.number == release.number else "no more; from"
                why = moves[-1].verdict.reason if moves[-1].verdict else moves[-1].why
                said = f"{when} {moves[-1].at}, by {moves[-1].who}: {why}"
                yield Node(kind="alias", name=f"{alias.name}@{alias.alias}", about=said)


def _node(record: AnyRecord, behind: tuple[Node, ...] = (), said: str | None = None) -> Node:
    return Node(kind=record.kind, name=record.ref, about=about(record) if said is None else said, behind=behind)


def _fate(one: Sighting) -> str:
    """What became of an input, in words."""
    if one.status == "sample":
        return f"sample {one.key} of {one.split}, number {one.pos} in {one.shard}"
    return f"{one.name}: {one.status}" + (f", {one.reason}" if one.reason else "")
