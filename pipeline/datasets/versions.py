"""The versions of a dataset: which one is the newest, for which state of its source, and what was taken down.

    datasets/<name>/heads/<line>.json    the newest version of a line, and the listing that it stands for
    datasets/<name>/takedowns.json       source images that no version of this name may hold any more

A line is the versions of one name, specification and code: each is the parent of the next and shares shards with it.
Both files change by compare-and-swap.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from pipeline import __version__
from pipeline.artifacts import Dataset, Rejected, Strict, digest_of
from pipeline.errors import AlreadyExists, Changed, IntegrityError, NotFound
from pipeline.recipe import Recipe
from pipeline.records import load, parse_model
from pipeline.sections import DatasetSpec
from pipeline.sources import Piece
from pipeline.store import Store

COPY_BYTES = 16 << 20


class Head(Strict):
    """The newest version of a line. Its index is of the listing, and it minds the takedowns (source digests), both of
    which may be newer than the version: the same samples are the same version."""

    dataset: str  # ref
    listing: str  # digest
    index: str  # key
    index_sha256: str
    dropped: tuple[str, ...]


class Takedown(Strict):
    """One source image that must not be in any version from now on; by its bytes, and by the pixels it became."""

    source_sha256: str
    pixel: str
    name: str
    at: str  # UTC, ISO 8601
    who: str
    why: str


class Takedowns(Strict):
    """All of them, the newest last."""

    schema_number: int = 1
    taken_down: tuple[Takedown, ...] = ()


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digesting(entries: Iterable[Piece | Rejected], digest: _Hash) -> Iterator[Piece | Rejected]:
    """The entries of a listing, which are added to the digest as they pass."""
    for entry in entries:
        what = entry.mark if isinstance(entry, Piece) else f"rejected: {entry.reason}"
        digest.update(f"{entry.name}\0{what}\n".encode())
        yield entry


def listing_digest(recipe: Recipe) -> str:
    """The digest of the source's listing now. Raises SourceError."""
    digest = hashlib.sha256()
    for _ in digesting(recipe.source.pieces(), digest):
        pass
    return digest.hexdigest()


def line_of(name: str, spec: DatasetSpec) -> str:
    """The line of a specification."""
    return digest_of({"name": name, "spec": spec.model_dump(mode="json"), "code": __version__})


def find_head(store: Store, name: str, spec: DatasetSpec) -> tuple[Head | None, str]:
    """The head of a line and its etag; None and "" where there is none yet."""
    key = _head_key(name, spec)
    try:
        data, etag = store.get_with_etag(key)
    except NotFound:
        return None, ""
    return parse_model(data, Head, f"{store.uri}/{key}"), etag


def move_head(store: Store, name: str, spec: DatasetSpec, head: Head, etag: str) -> None:
    """Let the line's head be this one, unless another ingest moved it meanwhile: then theirs stays."""
    key, data = _head_key(name, spec), _bytes(head)
    try:
        if etag:
            store.replace(key, data, etag)
        else:
            store.create(key, data)
    except (AlreadyExists, Changed):
        pass  # its author saw a listing as new as ours; the next ingest goes on from there


def find_finished(store: Store, recipe: Recipe, listing: str) -> Dataset | None:
    """The finished dataset of this state of the source, else None."""
    head, _ = find_head(store, recipe.name, recipe.dataset)
    if head is None or head.listing != listing or set(head.dropped) != dropped_sources(takedowns(store, recipe.name)):
        return None
    return load(store, head.dataset, Dataset)


def takedowns(store: Store, name: str) -> Takedowns:
    """What was taken down from the datasets of this name."""
    try:
        key = _takedowns_key(name)
        return parse_model(store.get(key), Takedowns, f"{store.uri}/{key}")
    except NotFound:
        return Takedowns()


def dropped_sources(taken: Takedowns) -> set[str]:
    """The digests of the source images that were taken down."""
    return {one.source_sha256 for one in taken.taken_down}


def take_down(store: Store, name: str, more: Iterable[Takedown]) -> Takedowns:
    """Add to the list of what was taken down; what stands there stays."""
    key, added = _takedowns_key(name), list(more)
    while True:
        try:
            data, etag = store.get_with_etag(key)
            before = parse_model(data, Takedowns, f"{store.uri}/{key}")
        except NotFound:
            before, etag = Takedowns(), ""
        there = dropped_sources(before)
        after = Takedowns(taken_down=(*before.taken_down, *(one for one in added if one.source_sha256 not in there)))
        try:
            if etag:
                store.replace(key, _bytes(after), etag)
            else:
                store.create(key, _bytes(after))
            return after
        except (AlreadyExists, Changed):
            continue  # somebody else took something down: add to theirs


def versions(store: Store, name: str) -> Iterator[Dataset]:
    """Every finished version of this name, of all lines."""
    for entry in store.list(f"datasets/{name}/"):
        if entry.key.endswith(f"/{Dataset.file_name}") and entry.key.count("/") == 3:
            yield load(store, entry.key.rpartition("/")[0], Dataset)


def fetch_index(store: Store, key: str, sha256: str, path: Path) -> Path:
    """An index as a local file, some of it in memory at a time. Raises IntegrityError."""
    digest, start = hashlib.sha256(), 0
    with path.open("wb") as file:
        while data := store.get_range(key, start, COPY_BYTES):
            digest.update(data)
            file.write(data)
            start += len(data)
    if digest.hexdigest() != sha256:
        raise IntegrityError(
            f"{store.uri}/{key}: expected SHA-256 {sha256}, got other bytes; delete "
            f"{store.uri}/{key.rpartition('/')[0]} and ingest again"
        )
    return path


def ingested_lines(dataset: Dataset) -> Iterator[str]:
    """What an ingest did, in words."""
    splits = ", ".join(f"{count:,} {split}" for split, count in dataset.splits.items())
    near = f", {dataset.num_near_duplicates:,} near duplicates" if dataset.num_near_duplicates else ""
    yield (
        f"{splits}; {dataset.num_duplicates:,} duplicates{near}, {dataset.num_rejected:,} of "
        f"{dataset.num_inputs:,} inputs rejected"
    )
    changes = dataset.changes
    if dataset.parent:
        yield (
            f"since {dataset.parent}: {changes.added:,} added, {changes.removed:,} removed; "
            f"{changes.decoded_images:,} images decoded, {changes.reused_shards:,} shards used again, "
            f"{changes.new_shards:,} written"
        )
    for rejected in dataset.rejected[:5]:
        yield f"rejected {rejected.name}: {rejected.reason}"


def _head_key(name: str, spec: DatasetSpec) -> str:
    return f"datasets/{name}/heads/{line_of(name, spec)}.json"


def _takedowns_key(name: str) -> str:
    return f"datasets/{name}/takedowns.json"


def _bytes(model: Strict) -> bytes:
    return (model.model_dump_json(indent=1) + "\n").encode()
