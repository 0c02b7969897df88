"""`atelier gc`: which records of a store nobody needs, and their removal.

Needed is, with all that it refers to:

    every release, so what every alias names
    what a running job was given (`needed`: the housekeeping DAG reads it off Ray's live jobs)
    the newest version of each line of each dataset
    whatever was written to in the last `days`: a run on its way writes its log and checkpoints all the time

A run that is needed keeps all its files, its evaluations and its sample sets; a version of a dataset keeps its parents.
Garbage are the other runs, finished or given up, the other versions, and the shards that no version has any longer.
Nothing is deleted without `delete`; then a record goes before its bytes, so that what is left of a sweep that was cut
short is no record.
"""

import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.artifacts import Dataset, Strict
from pipeline.datasets.versions import Head
from pipeline.errors import NotFound
from pipeline.objects import Entry
from pipeline.records import load, parse_model
from pipeline.store import Store

DAY_SECONDS = 86_400.0
RECORDS = {"runs": "run.json", "evaluations": "evaluation.json", "samples": "samples.json"}
BESIDE_VERSIONS = {"shards", "heads", "staging"}  # of datasets/<name>/, where versions lie too
# What refers to what is read off the records' text: a field that a later version adds is minded, too.
_REF = re.compile(r"\b(?:datasets|releases)/[a-z0-9_-]+/[a-z0-9]+|\b(?:runs|evaluations|samples)/[a-z0-9-]+")


class Garbage(Strict):
    """One folder (or shard) that nobody needs."""

    ref: str
    objects: int
    bytes: int


@dataclass
class _Found:
    """What a store holds, from one listing: the objects of each folder, by its ref."""

    folders: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    shards: dict[str, Entry] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)


def refs_in(text: str) -> set[str]:
    """The refs of records that a text names: a record's JSON, or the command line of a job."""
    return set(_REF.findall(text))


def find_garbage(store: Store, days: float, needed: Iterable[str] = ()) -> list[Garbage]:
    """What `collect` would delete, from a look at the store now. Raises StoreError."""
    found = _listed(store)
    young = time.time() - days * DAY_SECONDS
    kept = _reached(store, found, {*_roots(store, found, young), *needed})
    kept |= _reached(store, found, _measures(store, found, kept))
    garbage = [_garbage(ref, entries) for ref, entries in sorted(found.folders.items()) if ref not in kept]
    used = {shard for ref in kept if ref.startswith("datasets/") for shard in _shards_of(store, ref)}
    unused = (entry for key, entry in sorted(found.shards.items()) if key not in used and entry.modified < young)
    return [*garbage, *(_garbage(entry.key, [entry]) for entry in unused)]


def collect(store: Store, days: float, needed: Collection[str] = (), *, delete: bool = False) -> list[Garbage]:
    """Find what nobody needs and, with `delete`, remove it; gives what it was."""
    garbage = find_garbage(store, days, needed)
    if delete:
        # What came to be needed since the first look, by a publisher of an old run say, is left.
        again = {one.ref for one in find_garbage(store, days, needed)}
        garbage = [one for one in garbage if one.ref in again]
        for one in garbage:
            _delete(store, one.ref)
    return garbage


def _listed(store: Store) -> _Found:
    found = _Found()
    for folder in (*RECORDS, "releases"):
        for entry in store.list(f"{folder}/"):
            depth = 3 if folder == "releases" else 2
            found.folders["/".join(entry.key.split("/")[:depth])].append(entry)
    for entry in store.list("datasets/"):
        parts = entry.key.split("/")
        if len(parts) < 4:  # takedowns.json
            continue
        if parts[2] == "shards":
            found.shards[entry.key] = entry
        elif parts[2] == "heads":
            found.heads.append(entry.key)
        elif parts[2] not in BESIDE_VERSIONS:
            found.folders["/".join(parts[:3])].append(entry)
    return found


def _roots(store: Store, found: _Found, young: float) -> set[str]:
    """What is needed by itself."""
    roots = {ref for ref in found.folders if ref.startswith("releases/")}
    roots |= {ref for ref, entries in found.folders.items() if max(entry.modified for entry in entries) >= young}
    for key in found.heads:
        try:
            head = parse_model(store.get(key), Head, f"{store.uri}/{key}")
        except NotFound:
            continue
        roots |= {head.dataset, *refs_in(head.index)}
    return roots


def _reached(store: Store, found: _Found, roots: set[str]) -> set[str]:
    """The roots and all that they refer to, over any number of steps."""
    reached: set[str] = set()
    todo = [ref for ref in roots if ref in found.folders]
    while todo:
        ref = todo.pop()
        if ref in reached:
            continue
        reached.add(ref)
        todo += [other for other in _refers_to(store, found.folders[ref]) if other in found.folders]
    return reached


def _measures(store: Store, found: _Found, kept: Collection[str]) -> set[str]:
    """The evaluations and sample sets of runs that are kept."""
    others = [ref for ref in found.folders if ref.startswith(("evaluations/", "samples/")) and ref not in kept]
    runs = {ref for ref in kept if ref.startswith("runs/")}
    return {ref for ref in others if runs & _refers_to(store, found.folders[ref])}


def _refers_to(store: Store, entries: Iterable[Entry]) -> set[str]:
    """The refs that stand in the records of a folder: in its own JSON files, not in those of folders below."""
    refs: set[str] = set()
    for entry in entries:
        if entry.key.endswith(".json") and entry.key.count("/") <= 3 and "/checkpoints/" not in entry.key:
            try:
                refs |= refs_in(store.get(entry.key).decode("utf-8", errors="replace"))
            except NotFound:
                continue
    return refs


def _shards_of(store: Store, ref: str) -> set[str]:
    """The keys of a version's shards; none where the version is not finished."""
    try:
        dataset = load(store, ref, Dataset)
    except NotFound:
        return set()
    return {dataset.key_of(shard) for shard in dataset.shards}


def _garbage(ref: str, entries: list[Entry]) -> Garbage:
    return Garbage(ref=ref, objects=len(entries), bytes=sum(entry.bytes for entry in entries))


def _delete(store: Store, ref: str) -> None:
    """Remove a folder, its record first, or a shard."""
    if "/shards/" in ref:
        store.delete(ref)
        return
    for name in (*RECORDS.values(), Dataset.file_name):
        store.delete(f"{ref}/{name}")
    for entry in list(store.list(f"{ref}/")):
        store.delete(entry.key)


def total(garbage: Iterable[Garbage]) -> Mapping[str, int]:
    """How much it is: folders and shards, objects, bytes."""
    listed = list(garbage)
    return {
        "folders": len(listed),
        "objects": sum(one.objects for one in listed),
        "bytes": sum(one.bytes for one in listed),
    }
