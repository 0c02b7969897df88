"""Where one source image went: the rows of it in every version's index, by its name, its sample's key or its bytes.

What goes by another name but has the same bytes or the same pixels is the same image, as a takedown takes it, too.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.artifacts import Dataset, Strict
from pipeline.datasets.versions import Takedown, fetch_index, takedowns
from pipeline.store import Store

if TYPE_CHECKING:
    import duckdb

INDEX = "index.parquet"
COLUMNS = """name, label, status, split, shard, pos, key, reason,
    coalesce(lower(hex(source_sha256)), '') AS source_sha256, coalesce(lower(hex(pixel)), '') AS pixel"""
# Of the digests in hexadecimal that are asked for; an input that could not be read has none.
SAME_BYTES = "list_contains(?::VARCHAR[], lower(hex(source_sha256)))"
SAME_PIXELS = "list_contains(?::VARCHAR[], lower(hex(pixel)))"


class Sighting(Strict):
    """One input of one version that is the image, and what became of it."""

    name: str
    label: str | None
    status: str  # sample, duplicate, near duplicate, rejected or taken down
    split: str | None
    shard: str | None
    pos: int | None  # its place in the shard
    key: str | None  # of the sample
    reason: str | None  # of a rejected input
    source_sha256: str  # empty where it could not be read
    pixel: str


def sightings(store: Store, versions: Sequence[Dataset], target: str) -> list[tuple[Dataset, tuple[Sighting, ...]]]:
    """The versions that had the image `target` (an input's name or a sample's key of 20 digits) among their inputs.

    Raises IntegrityError where an index is not what its record states.
    """
    import duckdb

    with TemporaryDirectory(prefix="atelier-seen-") as folder, duckdb.connect() as db:
        indexes = [(version, _fetched(store, version, Path(folder))) for version in versions]
        named = [sighting for _, index in indexes for sighting in _named(db, index, target)]
        found = [(version, tuple(_same(db, index, target, named))) for version, index in indexes]
    return [(version, rows) for version, rows in found if rows]


def taken_down_since(store: Store, version: Dataset) -> list[Takedown]:
    """The inputs of a version that were taken down since: it holds them still."""
    since = [one for one in takedowns(store, version.name).taken_down if one.pixel not in version.dropped]
    if not since:
        return []
    import duckdb

    asked = [one.source_sha256 for one in since], [one.pixel for one in since]
    with TemporaryDirectory(prefix="atelier-seen-") as folder, duckdb.connect() as db:
        index = _fetched(store, version, Path(folder))
        held = list(_rows(db, index, f"status = 'sample' AND ({SAME_BYTES} OR {SAME_PIXELS})", *asked))
    sources, pixels = {one.source_sha256 for one in held}, {one.pixel for one in held}
    return [one for one in since if one.source_sha256 in sources or one.pixel in pixels]


def _fetched(store: Store, version: Dataset, folder: Path) -> Path:
    entry = next(entry for entry in version.files if entry.name == INDEX)
    return fetch_index(store, version.key_of(entry), entry.sha256, folder / f"{version.id}.parquet")


def _named(db: "duckdb.DuckDBPyConnection", index: Path, target: str) -> Iterator[Sighting]:
    return _rows(db, index, "name = ? OR key = ?", target, target)


def _same(db: "duckdb.DuckDBPyConnection", index: Path, target: str, named: Sequence[Sighting]) -> Iterator[Sighting]:
    """The inputs of one version with the name, the bytes or the pixels of those that were asked for."""
    sources = sorted({one.source_sha256 for one in named if one.source_sha256})
    pixels = sorted({one.pixel for one in named if one.pixel})
    return _rows(db, index, f"name = ? OR {SAME_BYTES} OR {SAME_PIXELS}", target, sources, pixels)


def _rows(db: "duckdb.DuckDBPyConnection", index: Path, where: str, *values: object) -> Iterator[Sighting]:
    query = f"SELECT {COLUMNS} FROM read_parquet('{index}') WHERE {where} ORDER BY name"
    cursor = db.cursor().execute(query, [*values])
    names = [column[0] for column in cursor.description or ()]
    return (Sighting(**dict(zip(names, row, strict=True))) for row in cursor.fetchall())
