"""`atelier ingest RECIPE --drop KEY...`: source images that no version of a dataset may hold any more.

A KEY is a sample's key (20 digits) or an input's name. What is dropped goes by its bytes and by its pixels, so a copy
under another name is dropped as well, in later versions and under other specifications too. The versions before still
hold it: `reach` names them, the runs that were trained on them and the releases of those runs.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.artifacts import Dataset, Release, Run, Strict
from pipeline.datasets.versions import Takedown, fetch_index, find_head, take_down, versions
from pipeline.errors import SourceError
from pipeline.recipe import Recipe
from pipeline.records import every
from pipeline.store import Store


class Reach(Strict):
    """Where the dropped images are: refs of records, and names of shards."""

    datasets: tuple[str, ...]
    shards: tuple[str, ...]
    runs: tuple[str, ...]
    releases: tuple[str, ...]


def drop(store: Store, recipe: Recipe, keys: Sequence[str], who: str, why: str) -> tuple[tuple[Takedown, ...], Reach]:
    """Note the images as taken down, for the next ingest to leave out; gives them and where they are. Raises
    SourceError for a key that is none of the newest version's inputs."""
    head, _ = find_head(store, recipe.name, recipe.dataset)
    if head is None:
        raise SourceError(f"--drop: expected an ingested dataset of {recipe.name}, found none; ingest it first")
    at = datetime.now(UTC).isoformat(timespec="seconds")
    taken = []
    with TemporaryDirectory(prefix="atelier-drop-") as folder:
        index = fetch_index(store, head.index, head.index_sha256, Path(folder) / "index.parquet")
        for key in keys:
            source_sha256, pixel, name = _input(index, key, recipe.name)
            taken.append(Takedown(source_sha256=source_sha256, pixel=pixel, name=name, at=at, who=who, why=why))
    reach = _reach(store, recipe.name, taken)
    take_down(store, recipe.name, taken)
    return tuple(taken), reach


def lines(store_uri: str, taken: Sequence[Takedown], reach: Reach) -> Iterator[str]:
    """What was taken down and where it still is, in words."""
    for one in taken:
        yield f"taken down: {one.name} (sha256 {one.source_sha256})"
    for what, refs in (("dataset", reach.datasets), ("run", reach.runs), ("release", reach.releases)):
        for ref in refs:
            yield f"  {what} that has seen it: {store_uri}/{ref}"
    for name in reach.shards:
        yield f"  shard of an earlier version that holds it: {name}"


def _input(index: Path, key: str, dataset: str) -> tuple[str, str, str]:
    """The digests of an input's bytes and pixels in hex, and its name."""
    import duckdb

    head = int(key).to_bytes(8).hex() if key.isascii() and key.isdigit() and int(key) < 2**64 else ""
    query = (
        f"SELECT hex(source_sha256), hex(pixel), name FROM read_parquet('{index}') WHERE pixel IS NOT NULL "
        "AND (name = ? OR (status = 'sample' AND lower(hex(digest[1:8])) = ?)) LIMIT 1"
    )
    with duckdb.connect() as db:
        row = db.execute(query, [key, head]).fetchone()
    if row is None:
        raise SourceError(
            f"--drop: expected a sample's key (20 digits) or an input's name in the newest version of {dataset}, got "
            f"{key!r}; `name` and `sha256` stand in each shard's json"
        )
    return row[0].lower(), row[1].lower(), row[2]


def _reach(store: Store, name: str, taken: Sequence[Takedown]) -> Reach:
    datasets, shards = set(), set()
    for version in versions(store, name):
        if held := _shards_with(store, version, taken):
            datasets.add(version.ref)
            shards |= held
    runs = {run.ref for run in every(store, Run) if run.dataset in datasets}
    releases = {release.ref for release in every(store, Release) if release.run in runs}
    return Reach(
        datasets=tuple(sorted(datasets)),
        shards=tuple(sorted(shards)),
        runs=tuple(sorted(runs)),
        releases=tuple(sorted(releases)),
    )


def _shards_with(store: Store, version: Dataset, taken: Sequence[Takedown]) -> set[str]:
    import duckdb

    entry = next(entry for entry in version.files if entry.name == "index.parquet")
    sources = [bytes.fromhex(one.source_sha256) for one in taken]
    pixels = [bytes.fromhex(one.pixel) for one in taken]
    with TemporaryDirectory(prefix="atelier-drop-") as folder, duckdb.connect() as db:
        index = fetch_index(store, version.key_of(entry), entry.sha256, Path(folder) / entry.name)
        query = (
            f"SELECT DISTINCT shard FROM read_parquet('{index}') WHERE shard IS NOT NULL AND "
            "(list_contains(?::BLOB[], source_sha256) OR list_contains(?::BLOB[], pixel))"
        )
        return {row[0] for row in db.execute(query, [sources, pixels]).fetchall()}
