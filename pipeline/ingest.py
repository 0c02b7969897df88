"""Ingest: a recipe's source becomes a Dataset, tar shards first and the record last.

    source --list--> ledger --partitions--> parts (tasks, staged in the store) --> choose, check --> shards --> record

What the parent version's index knows of unchanged pieces of the source is not read again, and its shards are used
again where they lost no sample. A rerun after a kill finds the parts that were staged. Two at once stage and write the
same bytes and end with one dataset.

Each image is brought to the recipe's shape (`parts`). Its pixels decide everything else: exact duplicates (same pixels,
same class) count once; the split is a hash of the pixels against `held_out`, so a sample keeps its split whatever else
is there; a shard's order is by digest, which shuffles what came next to each other. A sample's key is the head of its
digest. A dataset's id is the digest of its specification and of its shards: the same images give the same dataset,
wherever they lie.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__, tasks
from pipeline.artifacts import Changes, Dataset, FileEntry, Shard, Statistics, digest_of, file_entry
from pipeline.datasets import checks, choosing, ledger, parts, sheets, versions
from pipeline.datasets.croissant import croissant
from pipeline.datasets.ledger import Ledger
from pipeline.datasets.packing import Job, pack
from pipeline.datasets.versions import Head, Takedowns
from pipeline.errors import NotFound, SourceError
from pipeline.recipe import Recipe
from pipeline.records import commit, find, load
from pipeline.settings import Settings
from pipeline.shards import decode_shard, open_shard
from pipeline.sources import changed
from pipeline.store import Store

ATTEMPTS = 3
REPORT_EVERY_SECONDS = 0.2
STALE_SECONDS = 24 * 3600  # parts that a killed ingest of an earlier state left are removed after this
SHEET_SHARDS = 4  # are read for the contact sheet
SHEET_IMAGES = 8  # of a class
SECONDS_AN_IMAGE, SECONDS_A_BYTE = 5e-5, 3e-8  # about, of one core: in Python, and in the decoder of a JPEG
SAMPLES = "samples s JOIN inputs i ON s.input = i.rowid"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """How far an ingest is: inputs looked at, of how many that had to be read, and how many of them were rejected."""

    done: int
    total: int
    rejected: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Place:
    """What all steps share."""

    store: Store
    recipe: Recipe
    settings: Settings
    progress: Callable[[Progress], None]
    say: Say

    @property
    def staging(self) -> str:
        return parts.staging_folder(self.recipe.name, self.recipe.dataset, __version__)


def find_dataset(store: Store, recipe: Recipe) -> Dataset | None:
    """This recipe's dataset where it is finished, else None. Raises SourceError without the source."""
    return versions.find_finished(store, recipe, versions.listing_digest(recipe))


def ingest(
    store: Store,
    recipe: Recipe,
    progress: Callable[[Progress], None] | None = None,
    settings: Settings | None = None,
    say: Say = lambda _: None,
) -> Dataset:
    """Make the recipe's dataset, or return it untouched where it is finished.

    Raises SourceError where the images cannot be read as asked, or fail the recipe's checks: then nothing is published.
    """
    place = _Place(store, recipe, settings or Settings.from_environment(), progress or (lambda _: None), say)
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(NotFound):  # another ingest has ended meanwhile, and cleared shared parts away
            return _ingest(place)
    return _ingest(place)


def _ingest(place: _Place) -> Dataset:
    store, recipe = place.store, place.recipe
    with ledger.opened() as book:
        digest = hashlib.sha256()
        book.list_source(versions.digesting(recipe.source.pieces(), digest))
        listing = digest.hexdigest()
        finished = versions.find_finished(store, recipe, listing)
        if finished is None:
            return _make(place, book, listing)
    checks.refuse(finished, _parent(store, finished), recipe.checks)
    return finished


def _make(place: _Place, book: Ledger, listing: str) -> Dataset:
    """A version for this listing, as the child of the line's newest."""
    store, recipe = place.store, place.recipe
    head, etag = versions.find_head(store, recipe.name, recipe.dataset)
    parent = load(store, head.dataset, Dataset) if head else None
    if head:
        book.take_parent(versions.fetch_index(store, head.index, head.index_sha256, book.folder / "parent.parquet"))
    num_images, num_bytes = book.find_unknown()
    ours, libraries = num_images * SECONDS_AN_IMAGE, num_bytes * SECONDS_A_BYTE
    # For small local images one thread: to hand Python's lock over costs more than it gains.
    threads = (os.cpu_count() or 1) if libraries > ours or recipe.source.remote else 1
    with tasks.pool(recipe.cluster, ours + libraries, threads, place.settings, place.say) as run:
        made = _read(place, book, run, num_images)
        if not recipe.source.checks_marks and (name := book.changed_since(recipe.source.pieces())) is not None:
            raise changed(recipe.name, name)
        book.end_reading()
        taken = versions.takedowns(store, recipe.name)
        choosing.choose(book, recipe.dataset, [(one.source_sha256, one.pixel) for one in taken.taken_down])
        classes, pack_all = _classes(place, book, parent)
        choosing.plan_shards(book, recipe.dataset, pack_all=pack_all)
        draft = _draft(place, book, listing, classes, parent, taken)
        checks.refuse(draft, parent, recipe.checks)
        shards = _shards(place, book, run, classes, parent)
    draft = draft.model_copy(update={"shards": shards, "id": _id(recipe, classes, shards)})
    known = find(store, draft.ref, Dataset)
    index = book.folder / "index.parquet"
    book.write_index(index)
    entry = _file_entry(index)
    dataset = known or _commit(place, book, draft, index, entry)
    index_key = f"{dataset.ref}/{entry.name}"
    if entry not in dataset.files:  # the same samples in the same shards: only the listing is new
        index_key = f"datasets/{recipe.name}/heads/{listing}.parquet"
        store.put(index_key, index)
    versions.move_head(
        store,
        recipe.name,
        recipe.dataset,
        Head(dataset=dataset.ref, listing=listing, index=index_key, index_sha256=entry.sha256, dropped=draft.dropped),
        etag,
    )
    _clear(place, made)
    return dataset


def _id(recipe: Recipe, classes: tuple[str, ...], shards: Sequence[Shard]) -> str:
    return digest_of(
        {
            "stage": "dataset",
            "name": recipe.name,
            "dataset": recipe.dataset.model_dump(mode="json"),
            "classes": classes,
            "shards": [shard.sha256 for shard in shards],
            "code_version": __version__,
        }
    )


def _parent(store: Store, dataset: Dataset) -> Dataset | None:
    return find(store, dataset.parent, Dataset) if dataset.parent else None


# --- reading ---


def _read(place: _Place, book: Ledger, run: tasks.Run, total: int) -> list[str]:
    """Stage a part for each partition of what is not known yet, and take its rows; gives the parts' keys."""
    recipe, spec = place.recipe, place.recipe.dataset
    partitions = (
        parts.Partition(number, place.store.uri, place.staging, recipe.source, spec, pieces)
        for number, pieces in enumerate(parts.partitioned(book.unknown_pieces(), spec))
    )
    keys: list[str] = []
    done = rejected = num_bytes = 0
    begin, reported = time.monotonic(), 0.0
    for part in run(parts.stage, partitions):
        keys.append(part.key)
        book.add_part(part.number, parts.read_rows(place.store, part.key))
        done, rejected = done + part.num_images, rejected + part.num_rejected
        num_bytes += part.source_bytes
        if time.monotonic() - reported > REPORT_EVERY_SECONDS:
            reported = time.monotonic()
            place.progress(Progress(done, total, rejected, num_bytes, reported - begin))
    place.progress(Progress(done, total, rejected, num_bytes, time.monotonic() - begin))
    return keys


# --- deciding ---


def _classes(place: _Place, book: Ledger, parent: Dataset | None) -> tuple[tuple[str, ...], bool]:
    """The classes in order, and whether the indices of the parent's have moved.

    The parent's keep their indices and new ones follow; where one of the parent's is gone, all are counted anew.
    """
    labels = {label for (label,) in book.rows(f"SELECT DISTINCT label FROM {SAMPLES}")}
    if None in labels and len(labels) > 1:
        name = book.one(f"SELECT min(name) FROM {SAMPLES} WHERE label IS NULL")[0]
        raise SourceError(
            f"{place.recipe.name}: expected a class for every image or for none, got none for {name}; label it, or "
            "remove it"
        )
    stated = place.recipe.source.classes()
    found = list(stated) if stated is not None else sorted((label for label in labels if label), key=_natural)
    if parent is None:
        return tuple(found), False
    if set(parent.classes) <= set(found):
        return (*parent.classes, *(name for name in found if name not in parent.classes)), False
    return tuple(found), True


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers by their value, before words."""
    is_number = name.isascii() and name.isdigit() and len(name) < 19
    return not is_number, int(name) if is_number else 0, name


def _draft(
    place: _Place, book: Ledger, listing: str, classes: tuple[str, ...], parent: Dataset | None, taken: Takedowns
) -> Dataset:
    """The record as far as it is known before the shards are written."""
    recipe, spec = place.recipe, place.recipe.dataset
    splits = dict(book.rows("SELECT split, count(*) FROM samples GROUP BY split"))
    kept = book.one("SELECT count(*) FROM kept_shards")[0]
    return Dataset(
        code_version=__version__,
        id="",
        name=recipe.name,
        channels=spec.channels,
        height=spec.height,
        width=spec.width,
        layout=spec.resolved_layout,
        classes=classes,
        splits={split: splits.get(split, 0) for split in (parts.TEST, parts.TRAIN)},
        shards=(),
        files=(),
        statistics=_statistics(place, book, classes),
        rejected=tuple(rejected for rejected, _ in book.rejected()),
        num_inputs=book.one("SELECT count(*) FROM inputs")[0],
        num_rejected=book.one("SELECT count(*) FROM inputs WHERE reason IS NOT NULL")[0],
        num_duplicates=book.one("SELECT count(*) FROM ranked WHERE copy > 1")[0],
        num_near_duplicates=book.one("SELECT count(*) FROM near")[0],
        spec=spec.model_dump(mode="json"),
        source=recipe.source.model_dump(mode="json"),
        source_fingerprint=listing,
        parent=parent.ref if parent else None,
        changes=Changes(
            added=book.one("SELECT count(*) FROM samples WHERE old_shard IS NULL")[0],
            removed=book.one("SELECT count(*) FROM placed ANTI JOIN samples USING (digest)")[0],
            decoded_images=book.one("SELECT count(*) FROM inputs WHERE part >= 0")[0],
            reused_shards=kept,
            new_shards=book.num_jobs(),
        ),
        dropped=tuple(sorted(versions.dropped_sources(taken))),
    )


def _statistics(place: _Place, book: Ledger, classes: tuple[str, ...]) -> Statistics:
    spec = place.recipe.dataset
    columns = [f"sum({kind}{channel})" for channel in range(spec.channels) for kind in ("sum", "squares")]
    count, source_bytes, *sums = book.one(f"SELECT count(*), sum(source_bytes), {', '.join(columns)} FROM {SAMPLES}")
    values = max(count * spec.height * spec.width, 1)
    means = [int(total or 0) / values for total in sums[0::2]]
    squares = [int(total or 0) / values for total in sums[1::2]]
    labels: dict[str, dict[str, int]] = {split: dict.fromkeys(classes, 0) for split in (parts.TEST, parts.TRAIN)}
    query = f"SELECT s.split, label, count(*) FROM {SAMPLES} WHERE label IS NOT NULL GROUP BY s.split, label"
    for split, label, number in book.rows(query):
        labels[split][label] = number
    sides = (
        f"SELECT 2 ** floor(log2(greatest(width, height))) AS side, count(*) FROM {SAMPLES} GROUP BY ALL ORDER BY side"
    )
    return Statistics(
        mean=tuple(means),
        std=tuple(max(square - mean**2, 0.0) ** 0.5 for mean, square in zip(means, squares, strict=True)),
        labels=labels,
        source_sides={str(int(side)): number for side, number in book.rows(sides)},
        source_bytes=int(source_bytes or 0),
    )


# --- writing ---


def _shards(
    place: _Place, book: Ledger, run: tasks.Run, classes: tuple[str, ...], parent: Dataset | None
) -> tuple[Shard, ...]:
    """Write the new shards; gives them with the parent's that are used again, by split and in a stable order."""
    num_jobs = book.num_jobs()
    of_parent = {shard.name: shard for shard in parent.shards} if parent else {}

    def jobs() -> Iterator[Job]:
        for number in range(num_jobs):
            rows = book.job(number)
            needed = {name for name in rows["old_shard"].unique().to_pylist() if name}
            shards = tuple(of_parent[name] for name in sorted(needed))
            slim = parent.model_copy(update={"shards": shards, "files": ()}) if parent and needed else None
            yield Job(place.store.uri, place.recipe.name, place.recipe.dataset, classes, number, rows, slim)

    written: dict[int, Shard] = {}
    for number, shard in run(pack, jobs()):
        written[number] = shard
    book.take_written({number: shard.name for number, shard in written.items()})
    kept = {name for (name,) in book.rows("SELECT shard FROM kept_shards")}
    used = [shard for shard in (parent.shards if parent else ()) if shard.name in kept]
    new = [written[number] for number in sorted(written)]
    return tuple(shard for split in (parts.TEST, parts.TRAIN) for shard in (*used, *new) if shard.split == split)


def _commit(place: _Place, book: Ledger, draft: Dataset, index: Path, index_entry: FileEntry) -> Dataset:
    """Write the version's files, then its record."""
    store, release = place.store, place.recipe.release
    rejects = [
        sheets.Reject(rejected.name, rejected.reason, thumbnail)
        for rejected, thumbnail in book.rejected(ledger.MAX_THUMBNAILS)
    ]
    files: dict[str, bytes] = {
        "samples.png": sheets.samples_sheet(_sheet_images(store, draft)),
        "rejects.png": sheets.rejects_sheet(rejects, draft.num_rejected),
        "croissant.json": croissant(
            draft, release.license, release.description, index_entry, place.recipe.dataset.encoding
        ),
    }
    entries = [index_entry]
    store.put(f"{draft.ref}/index.parquet", index)
    for name, data in files.items():
        store.put(f"{draft.ref}/{name}", data)
        entries.append(file_entry(name, data))
    return commit(store, draft.model_copy(update={"files": tuple(entries)}))


def _sheet_images(store: Store, dataset: Dataset) -> dict[str, list[Any]]:
    """Some training images of each class, by its name ("" without classes)."""
    names = dataset.classes or ("",)
    most = SHEET_IMAGES if dataset.classes else SHEET_IMAGES**2
    found: dict[str, list[Any]] = {name: [] for name in names}
    for shard in [shard for shard in dataset.shards if shard.split == parts.TRAIN][:SHEET_SHARDS]:
        decoded = decode_shard(open_shard(store, dataset, shard), dataset, shard)
        for image, label in zip(decoded.images_NHWC, decoded.labels_N.tolist(), strict=True):
            if len(found[names[label]]) < most:
                found[names[label]].append(image)
        if all(len(images) == most for images in found.values()):
            break
    return found


def _file_entry(path: Path) -> FileEntry:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256)


def _clear(place: _Place, made: Sequence[str]) -> None:
    """Remove the parts that this ingest used, and those that were left behind long ago."""
    own = set(made)
    for entry in list(place.store.list(f"{place.staging}/")):
        key = entry.key.rpartition(".")[0]
        if key in own or key.rpartition("-")[0] in own or entry.modified < time.time() - STALE_SECONDS:
            place.store.delete(entry.key)
