"""`atelier repair DATASET_URI`: every shard is checked, and those that are damaged or gone are made again.

A version's index says which inputs a shard was made of. They are read from the source, prepared and packed as an ingest
does it, so the same bytes come out; only then is the damaged shard replaced.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Dataset, Shard, file_entry
from pipeline.datasets import parts
from pipeline.datasets.packing import Job, pack
from pipeline.datasets.versions import fetch_index
from pipeline.errors import IntegrityError, NotFound, SourceError
from pipeline.sections import DatasetSpec
from pipeline.sources import Piece, parse_source
from pipeline.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

STAGING = "repair"

Say = Callable[[str], None]


def repair(store: Store, dataset: Dataset, say: Say) -> tuple[Shard, ...]:
    """Check all shards and make the damaged ones again; gives those. Raises SourceError where the source cannot."""
    damaged = []
    for number, shard in enumerate(dataset.shards, 1):
        if not _is_sound(store, dataset, shard):
            say(f"{store.uri}/{dataset.key_of(shard)}: damaged or gone")
            damaged.append(shard)
        if number % 100 == 0:
            say(f"checked {number:,}/{len(dataset.shards):,} shards")
    if damaged:
        with TemporaryDirectory(prefix="atelier-repair-") as folder:
            entry = next(entry for entry in dataset.files if entry.name == "index.parquet")
            index = fetch_index(store, dataset.key_of(entry), entry.sha256, Path(folder) / entry.name)
            for shard in damaged:
                _make_again(store, dataset, shard, index)
                say(f"{store.uri}/{dataset.key_of(shard)}: made again")
    return tuple(damaged)


def _is_sound(store: Store, dataset: Dataset, shard: Shard) -> bool:
    try:
        found = file_entry(shard.name, store.get(dataset.key_of(shard)))
    except NotFound:
        return False
    return (found.bytes, found.sha256) == (shard.bytes, shard.sha256)


def _make_again(store: Store, dataset: Dataset, shard: Shard, index: Path) -> None:
    import duckdb

    spec, source = DatasetSpec.model_validate(dataset.spec), parse_source(dataset.source)
    with duckdb.connect() as db:
        columns = "piece, mark, digest, label, name, source_sha256, split"
        query = f"SELECT {columns} FROM read_parquet('{index}') WHERE shard = ? ORDER BY pos"
        wanted = db.sql(query, params=[shard.name]).to_arrow_table()
    marks = dict(zip(wanted["piece"].to_pylist(), wanted["mark"].to_pylist(), strict=True))
    pieces = [piece for piece in source.pieces() if isinstance(piece, Piece) and marks.get(piece.name) == piece.mark]
    if lost := sorted(set(marks) - {piece.name for piece in pieces}):
        raise SourceError(
            f"{store.uri}/{dataset.key_of(shard)}: expected the inputs that it was made of, found {len(lost):,} of "
            f"{len(marks):,} gone or changed (first {lost[0]}); put them back, or ingest a new version"
        )
    folder = f"{dataset.ref}/{STAGING}"
    try:
        rows = _rows(store, spec, source, folder, wanted, pieces)
        made = pack(Job(store.uri, dataset.name, spec, dataset.classes, 0, rows, None))[1]
    finally:
        for entry in list(store.list(f"{folder}/")):
            store.delete(entry.key)
    if made.sha256 != shard.sha256:
        store.delete(dataset.key_of(made))
        raise IntegrityError(
            f"{store.uri}/{dataset.key_of(shard)}: expected the same bytes again, got others: the libraries that "
            "decode and encode images have changed since; ingest a new version"
        )


def _rows(
    store: Store, spec: DatasetSpec, source: Any, folder: str, wanted: "pa.Table", pieces: Sequence[Piece]
) -> "pa.Table":
    """The rows of the shard's job: what the index says of each sample, and where it was staged just now."""
    import pyarrow as pa

    staged: dict[bytes, dict[str, Any]] = {}
    for number, some in enumerate(parts.partitioned(pieces, spec)):
        part = parts.stage(parts.Partition(number, store.uri, folder, source, spec, some))
        for row in parts.read_rows(store, part.key).to_pylist():
            if row["digest"] is not None:
                staged[row["digest"]] = row
    rows = []
    for row in wanted.to_pylist():
        found = staged.get(row["digest"])
        if found is None:
            raise SourceError(
                f"{row['name']}: expected the image that the dataset was made of, got another; put it back, or ingest "
                "a new version"
            )
        place = {"origin": found["origin"], "start": found["start"], "length": found["length"], "old_shard": None}
        rows.append({**row, **place, "old_pos": None})
    return pa.Table.from_pylist(rows)
