"""Ingest: a recipe's source becomes a Dataset, tar shards first and the record last.

Each image is decoded, brought to the recipe's shape and encoded as PNG by a few threads. Its pixels decide
everything else: exact duplicates (same pixels, same class) count once; the split is a hash of the pixels
against `held_out`, so a sample keeps its split whatever else is there; and the order is by digest, which
shuffles the classes through all shards. A sample's key is the head of its digest; its `json` member names
the source file and the SHA-256 of that file (of its raw pixels where the source has no file for each
image).

Memory holds a few source files, about 700 bytes a sample, and SPOOL_BYTES of encoded images; more of them
go to an unnamed temporary file. One shard (`shard_images` PNGs) is built in memory.
"""

import contextlib
import hashlib
import os
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, cast

from pipeline import __version__
from pipeline.artifacts import Dataset, Rejected, Shard, commit, digest_of, file_entry, find
from pipeline.errors import AtelierError, IntegrityError, SourceError
from pipeline.pictures import Unreadable, encode_png, from_pixels, read_picture, to_pixels
from pipeline.recipe import DatasetSpec, Recipe
from pipeline.shards import Sample, write_shard
from pipeline.sources import Item
from pipeline.store import Store

TEST, TRAIN = "test", "train"
SPOOL_BYTES = 256 << 20
MAX_LISTED_REJECTS = 100
MAX_THREADS = 8  # each may hold one decoded image of `max_pixels`
CHUNK_ITEMS = 64  # a task's share: more than the pool's overhead, less than a noticeable wait
CHUNK_BYTES = 4 << 20
REPORT_EVERY_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """How far an ingest is: inputs looked at, of how many where known, and how many of them were rejected."""

    done: int
    total: int | None
    rejected: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One input as it will be published; `digest` is of pixels and class, `split` of the pixels only."""

    name: str
    source_sha256: str
    digest: str
    split: str
    label: int | None
    png: bytes


@dataclass(frozen=True, slots=True)
class _Row:
    """A sample whose PNG lies in the spool."""

    name: str
    source_sha256: str
    digest: str
    label: int | None
    start: int
    num_bytes: int


@dataclass
class _Gathered:
    """What came out of the source so far."""

    spool: IO[bytes]
    splits: dict[str, dict[str, _Row]] = field(default_factory=lambda: {TEST: {}, TRAIN: {}})  # rows by digest
    rejected: list[Rejected] = field(default_factory=list)
    num_done: int = 0
    num_rejected: int = 0
    num_duplicates: int = 0

    def add(self, result: _Prepared | Rejected) -> None:
        """Keep a sample, or count it among the duplicates or the rejected."""
        self.num_done += 1
        if isinstance(result, Rejected):
            self.num_rejected += 1
            if len(self.rejected) < MAX_LISTED_REJECTS:
                self.rejected.append(result)
            return
        rows = self.splits[result.split]
        if result.digest in rows:
            self.num_duplicates += 1
            return
        start = self.spool.tell()
        self.spool.write(result.png)
        rows[result.digest] = _Row(
            result.name, result.source_sha256, result.digest, result.label, start, len(result.png)
        )

    def sample(self, row: _Row) -> Sample:
        """Read a sample back from the spool."""
        self.spool.seek(row.start)
        info = {"name": row.name, "sha256": row.source_sha256}
        return Sample.of(row.digest[:16], self.spool.read(row.num_bytes), row.label, info)


def dataset_id(recipe: Recipe) -> str:
    """The id that this recipe's dataset has, finished or not. Raises SourceError without the source."""
    return _id(recipe, recipe.source.fingerprint())


def find_dataset(store: Store, recipe: Recipe) -> Dataset | None:
    """This recipe's dataset where it is finished, else None. Raises SourceError without the source."""
    return find(store, f"datasets/{recipe.name}/{dataset_id(recipe)}", Dataset)


def ingest(store: Store, recipe: Recipe, progress: Callable[[Progress], None] | None = None) -> Dataset:
    """Make the recipe's dataset, or return it untouched where it is finished.

    Raises SourceError where the images cannot be read as asked: then nothing is published.
    """
    fingerprint = recipe.source.fingerprint()
    identity = _id(recipe, fingerprint)
    finished = find(store, f"datasets/{recipe.name}/{identity}", Dataset)
    if finished is not None:
        return finished
    classes = recipe.source.classes()
    with _spooled() as spool:
        gathered = _gather(recipe, classes, spool, progress or (lambda _: None))
        _check(recipe, classes, gathered)
        if recipe.source.fingerprint() != fingerprint:
            raise SourceError(
                f"{recipe.name}: expected a source that rests while it is read, got one that changed; "
                "run again when nothing writes to it"
            )
        shards = _write_shards(store, f"datasets/{recipe.name}/{identity}", recipe.dataset, gathered)
        record = _record(recipe, fingerprint, classes, gathered, shards)
    committed = commit(store, record)
    if committed.shards != record.shards:
        raise IntegrityError(
            f"{store.uri}/{record.ref}: expected the bytes that this ingest wrote, got a record of other "
            "bytes, by another version of Pillow or zlib at the same time; delete the folder and ingest again"
        )
    return committed


@contextlib.contextmanager
def _spooled() -> Iterator[IO[bytes]]:
    """Room for the encoded images: in memory, and beyond SPOOL_BYTES in an unnamed file."""
    spool = cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES))  # noqa: SIM115 - closed below
    try:
        yield spool
    finally:
        with contextlib.suppress(OSError):  # a full disk, which `_room` has reported, fails here once more
            spool.close()


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Say what to do where the unnamed file does not fit on its disk."""
    try:
        yield
    except OSError as error:
        raise AtelierError(
            f"{tempfile.gettempdir()}: expected room for the encoded images, got {error.strerror}; set TMPDIR to a "
            "folder with more"
        ) from None


def _id(recipe: Recipe, fingerprint: str) -> str:
    return digest_of(
        {
            "stage": "dataset",
            "source": {"kind": recipe.source.kind, "fingerprint": fingerprint},
            "dataset": recipe.dataset.model_dump(mode="json"),
            "name": recipe.name,
            "code_version": __version__,
        }
    )


# --- reading ---


def _gather(
    recipe: Recipe, classes: tuple[str, ...], spool: IO[bytes], progress: Callable[[Progress], None]
) -> _Gathered:
    """Read and prepare all inputs, in the source's order: the same one of two duplicates wins each time."""
    gathered = _Gathered(spool)
    total, begin, reported = recipe.source.num_items(), time.monotonic(), 0.0

    def report() -> None:
        seconds = time.monotonic() - begin
        progress(Progress(gathered.num_done, total, gathered.num_rejected, seconds))

    def prepare_all(chunk: list[Item | Rejected]) -> list[_Prepared | Rejected]:
        return [_prepare(item, recipe.dataset, classes) for item in chunk]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata: an image is taken, or rejected by name
        for results in _in_order(prepare_all, _chunks(recipe.source.items())):
            with _room():
                for result in results:
                    gathered.add(result)
            if time.monotonic() - reported > REPORT_EVERY_SECONDS:
                report()
                reported = time.monotonic()
    with _room():
        spool.flush()
    report()
    return gathered


def _chunks(items: Iterable[Item | Rejected]) -> Iterator[list[Item | Rejected]]:
    """Items in lists of bounded number and bytes."""
    chunk: list[Item | Rejected] = []
    chunk_bytes = 0
    for item in items:
        chunk.append(item)
        if isinstance(item, Item):
            chunk_bytes += len(item.data) if isinstance(item.data, bytes) else item.data.nbytes
        if len(chunk) >= CHUNK_ITEMS or chunk_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, chunk_bytes = [], 0
    if chunk:
        yield chunk


def _in_order(
    work: Callable[[list[Item | Rejected]], list[_Prepared | Rejected]],
    chunks: Iterable[list[Item | Rejected]],
) -> Iterator[list[_Prepared | Rejected]]:
    """`work` on a few chunks at a time, in threads: Pillow, zlib and hashlib leave the GIL."""
    num_threads = min(os.cpu_count() or 1, MAX_THREADS)
    with ThreadPoolExecutor(num_threads) as pool:
        under_way: deque[Future[list[_Prepared | Rejected]]] = deque()
        for chunk in chunks:
            under_way.append(pool.submit(work, chunk))
            if len(under_way) > num_threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _prepare(item: Item | Rejected, spec: DatasetSpec, classes: tuple[str, ...]) -> _Prepared | Rejected:
    """Bring one input to the recipe's shape, or say why it cannot be."""
    if isinstance(item, Rejected):
        return item
    shape = (spec.height, spec.width, spec.channels)
    raw = item.data if isinstance(item.data, bytes) else item.data.tobytes()
    try:
        if isinstance(item.data, bytes):
            pixels = read_picture(item.data, spec)
        elif item.data.shape == shape:
            pixels = item.data
        else:
            pixels = to_pixels(from_pixels(item.data), spec)
    except Unreadable as error:
        return Rejected(name=item.name, reason=str(error))
    pixel_digest = hashlib.sha256(repr(shape).encode() + pixels.tobytes()).digest()
    # By the class's name: its index moves when classes are added, and a sample keeps its key.
    class_name = "" if item.label is None else classes[item.label]
    return _Prepared(
        name=item.name,
        source_sha256=hashlib.sha256(raw).hexdigest(),
        digest=hashlib.sha256(pixel_digest + class_name.encode()).hexdigest(),
        split=TEST if int.from_bytes(pixel_digest[:8]) < spec.held_out * 2**64 else TRAIN,
        label=item.label,
        png=encode_png(pixels),
    )


def _check(recipe: Recipe, classes: tuple[str, ...], gathered: _Gathered) -> None:
    """Raises SourceError where too many inputs were rejected, or too few samples are left."""
    spec, num_done, num_rejected = recipe.dataset, gathered.num_done, gathered.num_rejected
    if num_rejected > spec.max_rejected * num_done:
        first = "; ".join(f"{rejected.name}: {rejected.reason}" for rejected in gathered.rejected[:3])
        raise SourceError(
            f"{recipe.name}: expected at most {spec.max_rejected:.1%} of {num_done:,} inputs to be rejected, "
            f"got {num_rejected:,} ({first}); mend or remove them, or raise dataset.max_rejected"
        )
    counts = {split: len(rows) for split, rows in gathered.splits.items()}
    if min(counts.values()) < 2:
        found = ", ".join(f"{split} {count}" for split, count in counts.items())
        raise SourceError(
            f"{recipe.name}: expected 2 different images or more in each split, got {found}; add images, or "
            f"change dataset.held_out ({spec.held_out})"
        )
    seen = {row.label for rows in gathered.splits.values() for row in rows.values()}
    empty = [name for index, name in enumerate(classes) if index not in seen]
    if empty:
        raise SourceError(
            f"{recipe.name}: expected an image or more of each class, got none of {', '.join(empty[:5])}; "
            "add some, or remove the class"
        )


# --- writing ---


def _write_shards(store: Store, ref: str, spec: DatasetSpec, gathered: _Gathered) -> tuple[Shard, ...]:
    """Write all shards under `ref`, samples in the order of their digests."""
    shards: list[Shard] = []
    for split, rows_by_digest in gathered.splits.items():
        rows = [rows_by_digest[digest] for digest in sorted(rows_by_digest)]
        for number, start in enumerate(range(0, len(rows), spec.shard_images)):
            part = rows[start : start + spec.shard_images]
            data = write_shard(gathered.sample(row) for row in part)
            entry = file_entry(f"{split}-{number:06d}.tar", data)
            store.put(f"{ref}/{entry.name}", data)
            labels = Counter(row.label for row in part if row.label is not None)
            by_text = {str(label): labels[label] for label in sorted(labels)}
            shards.append(Shard(**entry.model_dump(), split=split, samples=len(part), labels=by_text))
    return tuple(shards)


def _record(
    recipe: Recipe,
    fingerprint: str,
    classes: tuple[str, ...],
    gathered: _Gathered,
    shards: tuple[Shard, ...],
) -> Dataset:
    """The record that is to be committed after the shards."""
    return Dataset(
        code_version=__version__,
        id=_id(recipe, fingerprint),
        name=recipe.name,
        channels=recipe.dataset.channels,
        height=recipe.dataset.height,
        width=recipe.dataset.width,
        classes=classes,
        splits={split: len(rows) for split, rows in gathered.splits.items()},
        shards=shards,
        rejected=tuple(gathered.rejected),
        num_rejected=gathered.num_rejected,
        num_duplicates=gathered.num_duplicates,
        source=recipe.source.model_dump(mode="json"),
        source_fingerprint=fingerprint,
    )
