"""Upstream: what a record was made of, down to the source of its images, with the digests that name them."""

from collections.abc import Iterator

from pydantic import BaseModel

from pipeline.artifacts import AnyRecord, Dataset, Evaluation, FileEntry, Record, Release, Run, SampleSet, file_entry
from pipeline.datasets import seen
from pipeline.errors import NotFound
from pipeline.lineage.nodes import Node
from pipeline.listing import about
from pipeline.records import parse, record_kind
from pipeline.store import Store

EXTRACTOR = "extractor.json"


class Origins:
    """What records are made of; each parent is shown once in a lineage, where it is met first."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stated: dict[str, str] = {}  # ref -> SHA-256 of that record, as a release names it
        self.shown: set[str] = set()

    def of(self, record: AnyRecord) -> tuple[Node, ...]:
        """What this record names as its parents."""
        self.shown.add(record.ref)
        match record:
            case Release():
                self.stated |= {parent.ref: parent.sha256 for parent in record.parents}
                return self._new(*(parent.ref for parent in record.parents))
            case Run():
                return self._new(record.dataset)
            case SampleSet():
                return self._new(record.run)
            case Evaluation():
                return (*self._new(record.run, record.dataset), *self._eyes(record))
            case Dataset():
                return tuple(self._inputs(record))

    def _new(self, *refs: str) -> tuple[Node, ...]:
        """Those of the parents that were not shown yet; the first may show the others."""
        return tuple(self._parent(ref) for ref in refs if ref not in self.shown)

    def _parent(self, ref: str) -> Node:
        self.shown.add(ref)
        kind = record_kind(ref)
        key, said = f"{ref}/{kind.file_name}", kind.model_fields["kind"].default
        try:
            data = self.store.get(key)
        except NotFound:
            return Node(kind=said, name=ref, about="not in this store", state="gone")
        found, stated = file_entry(key, data).sha256, self.stated.get(ref)
        if stated and found != stated:
            return Node(kind=said, name=ref, about=f"expected SHA-256 {stated}, got {found}", state="changed")
        record = parse(data, kind, f"{self.store.uri}/{key}")
        state = "intact" if stated else "unchecked"
        return Node(kind=said, name=ref, about=about(record), state=state, behind=self.of(record))

    def _inputs(self, dataset: Dataset) -> Iterator[Node]:
        yield _shards(self.store, dataset)
        index = next((entry for entry in dataset.files if entry.name == seen.INDEX), None)
        listed = (_file(self.store, dataset, index),) if index else ()
        told = ", ".join(f"{key}: {value}" for key, value in dataset.source.items() if value is not None)
        duplicates = dataset.num_duplicates + dataset.num_near_duplicates
        said = (
            f"{dataset.num_inputs:,} inputs, of which {duplicates:,} duplicates and {dataset.num_rejected:,} rejected; "
            f"fingerprint {dataset.source_fingerprint}"
        )
        yield Node(kind="source", name=told, about=said, behind=listed)
        if listed and listed[0].state == "intact":
            for one in seen.taken_down_since(self.store, dataset):
                yield Node(kind="taken down since", name=one.name, about=f"on {one.at} by {one.who}: {one.why}")
        if dataset.parent:
            there = any(True for _ in self.store.list(f"{dataset.parent}/"))
            said = f"{dataset.changes.added:,} images added since, {dataset.changes.removed:,} removed"
            yield Node(kind="version before", name=dataset.parent, about=said, state="unchecked" if there else "gone")

    def _eyes(self, evaluation: Evaluation) -> Iterator[Node]:
        """The networks that looked at the images, whose weights the protocol names with a digest."""
        protocol = evaluation.protocol
        named = {"extractor": (protocol.extractor, protocol.extractor_sha256)}
        if protocol.classifier and protocol.classifier_sha256 and protocol.classifier != protocol.extractor:
            named["classifier"] = (protocol.classifier, protocol.classifier_sha256)
        for kind, (name, sha256) in named.items():
            if name.startswith("datasets/"):
                yield _weights(self.store, kind, name, sha256)
            else:
                yield Node(kind=kind, name=name, about=f"from outside this store, SHA-256 {sha256}")


class _Extractor(BaseModel):
    """What is read here of an extractor's record, which is another room's."""

    weights: FileEntry


def _weights(store: Store, kind: str, ref: str, sha256: str) -> Node:
    try:
        entry = _Extractor.model_validate_json(store.get(f"{ref}/{EXTRACTOR}")).weights
        found = file_entry(entry.name, store.get(f"{ref}/{entry.name}")).sha256
    except NotFound:
        return Node(kind=kind, name=ref, about="not in this store", state="gone")
    if found != sha256:
        return Node(kind=kind, name=ref, about=f"expected weights of SHA-256 {sha256}, got {found}", state="changed")
    return Node(kind=kind, name=ref, about=f"weights of {entry.bytes:,} bytes", state="intact")


def _file(store: Store, record: Record, entry: FileEntry) -> Node:
    """The list of a dataset's inputs, held against its digest."""
    key = record.key_of(entry)
    try:
        found = file_entry(entry.name, store.get(key))
    except NotFound:
        return Node(kind="index", name=key, about="not in this store", state="gone")
    if found != entry:
        said = f"expected SHA-256 {entry.sha256}, got {found.sha256}"
        return Node(kind="index", name=key, about=said, state="changed")
    return Node(kind="index", name=key, about="every input by name, and what it became", state="intact")


def _shards(store: Store, dataset: Dataset) -> Node:
    """A dataset's shards as one node: are they there, with the sizes that the record states?

    Their digests are `atelier repair`'s to check, which reads them all.
    """
    folder = f"datasets/{dataset.name}/shards/"
    sizes = {entry.key.removeprefix(folder): entry.bytes for entry in store.list(folder)}
    wrong = [shard.name for shard in dataset.shards if sizes.get(shard.name) != shard.bytes]
    if wrong:
        said = (
            f"{len(wrong):,} of {len(dataset.shards):,} are gone or of another size, the first {wrong[0]}; "
            f"`atelier repair {store.uri}/{dataset.ref}` makes them again"
        )
        return Node(kind="shards", name=folder, about=said, state="changed")
    total = sum(shard.bytes for shard in dataset.shards)
    said = f"{len(dataset.shards):,} shards of {sum(dataset.splits.values()):,} samples, {total:,} bytes"
    return Node(kind="shards", name=folder, about=said)
