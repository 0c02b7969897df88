"""What an ingest knows of its inputs: a DuckDB database on the local disk, gone at the end.

    listing    the source's pieces in order                            from the source
    inputs     a row an input: what it is, or why it is no sample       from the parent's index, and from new parts
    placed     the samples that the parent has, with split and shard     from the parent's index
    samples    what the new version is made of                            `pipeline.datasets.choosing`
    jobs       samples by the new shard that they go into                  `pipeline.datasets.choosing`

DuckDB spills to the disk, so that memory stays within MEMORY_MB up to a million images; for that, wide rows are joined
once, and narrow tables are kept of what is decided (an input is its `rowid` there).
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Rejected
from pipeline.errors import AtelierError
from pipeline.sources import Piece

if TYPE_CHECKING:
    import pyarrow as pa

MEMORY_MB = 256  # up to a million images ...
MEMORY_BYTES_AN_IMAGE = 256  # ... and so much for each beyond: joins and ranks of that size do not spill in less
THREADS = 2
ROWS_AT_A_TIME = 10_000
MAX_LISTED_REJECTS = 100
MAX_THUMBNAILS = 24

# What the index keeps of an input; its fate (split, status, shard, pos) and perhaps a thumbnail stand beside it.
FACTS = """piece, mark, seq, name, label, reason, source_sha256, source_bytes, width, height, pixel, digest, look,
    sum0, sum1, sum2, squares0, squares1, squares2"""
TABLES = """
CREATE TABLE listing (
    ord BIGINT, name VARCHAR, mark VARCHAR, bytes BIGINT, num_items BIGINT, place VARCHAR, reason VARCHAR
);
CREATE TABLE inputs (
    part BIGINT, piece VARCHAR, mark VARCHAR, seq BIGINT, name VARCHAR, label VARCHAR, reason VARCHAR,
    source_sha256 BLOB, source_bytes BIGINT, width INTEGER, height INTEGER, pixel BLOB, digest BLOB, look UBIGINT,
    sum0 UBIGINT, sum1 UBIGINT, sum2 UBIGINT, squares0 UBIGINT, squares1 UBIGINT, squares2 UBIGINT,
    split VARCHAR, origin VARCHAR, start BIGINT, length BIGINT, thumbnail BLOB
);
CREATE TABLE placed (
    digest BLOB, split VARCHAR, shard VARCHAR, pos BIGINT, name VARCHAR, source_sha256 BLOB
);
"""


class Ledger:
    """The tables above, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        import duckdb

        config = {"memory_limit": f"{MEMORY_MB}MB", "threads": THREADS, "temp_directory": str(folder / "spill")}
        self.folder = folder
        self.db: duckdb.DuckDBPyConnection = duckdb.connect(config=config)
        self.db.execute("SET preserve_insertion_order = false")  # every query that minds says its order
        self.db.execute(TABLES)

    def close(self) -> None:
        """End the connection; what it failed to write does not matter."""
        import duckdb

        with contextlib.suppress(duckdb.Error):
            self.db.close()

    def run(self, query: str, *parameters: Any) -> None:
        """Carry out a statement."""
        self.db.execute(query, parameters).fetchall()

    def one(self, query: str, *parameters: Any) -> tuple[Any, ...]:
        """The only row of a query."""
        found = self.db.execute(query, parameters).fetchall()
        assert len(found) == 1, query
        return tuple(found[0])

    def rows(self, query: str, *parameters: Any) -> Iterator[tuple[Any, ...]]:
        """A query's rows, some in memory at a time."""
        cursor = self.db.cursor().execute(query, parameters)
        while some := cursor.fetchmany(ROWS_AT_A_TIME):
            yield from some

    def insert(self, query: str, rows: Iterable[tuple[Any, ...]], names: tuple[str, ...]) -> None:
        """Carry out an `INSERT ... FROM batch` for rows with these columns, some at a time."""
        import pyarrow as pa

        for batch in _batched(rows, ROWS_AT_A_TIME):
            columns = dict(zip(names, zip(*batch, strict=True), strict=True))
            self._insert_table(query, pa.table(columns))

    def _insert_table(self, query: str, batch: "pa.Table") -> None:
        self.db.register("batch", batch)
        self.run(query)
        self.db.unregister("batch")

    # --- in ---

    def list_source(self, entries: Iterable[Piece | Rejected]) -> None:
        """Take the listing."""
        rows = (
            (number, entry.name, entry.mark, entry.bytes, entry.num_items, entry.at, "")
            if isinstance(entry, Piece)
            else (number, entry.name, "rejected", 0, 0, "", entry.reason)
            for number, entry in enumerate(entries)
        )
        names = ("ord", "name", "mark", "bytes", "num_items", "place", "reason")
        self.insert("INSERT INTO listing SELECT * REPLACE (nullif(reason, '') AS reason) FROM batch", rows, names)
        (num_images,) = self.one("SELECT coalesce(sum(num_items), 0) FROM listing")
        self.run(f"SET memory_limit = '{max(MEMORY_MB, int(num_images) * MEMORY_BYTES_AN_IMAGE // 1_000_000)}MB'")

    def changed_since(self, entries: Iterable[Piece | Rejected]) -> str | None:
        """A listed piece that is gone or another one now, by its name; None where all rest. New ones do not matter."""
        self.run("CREATE OR REPLACE TABLE now (name VARCHAR, mark VARCHAR)")
        rows = ((entry.name, entry.mark if isinstance(entry, Piece) else "rejected") for entry in entries)
        self.insert("INSERT INTO now SELECT * FROM batch", rows, ("name", "mark"))
        return next(
            (
                name
                for (name,) in self.rows("""
                    SELECT l.name FROM listing l ANTI JOIN now n ON l.name = n.name AND l.mark = n.mark
                    ORDER BY l.ord LIMIT 1
                """)
            ),
            None,
        )

    def take_parent(self, index: Path) -> None:
        """Take the parent's samples, and what it knows of inputs whose pieces have not changed."""
        self.run(f"""
            INSERT INTO placed SELECT digest, split, shard, pos, name, source_sha256
            FROM read_parquet('{index}') WHERE shard IS NOT NULL
        """)
        self.run(f"""
            INSERT INTO inputs BY NAME SELECT -1 AS part, {FACTS}, split, p.thumbnail FROM read_parquet('{index}') p
            SEMI JOIN listing l ON p.piece = l.name AND p.mark = l.mark AND l.reason IS NULL
        """)

    def find_unknown(self) -> tuple[int, int]:
        """Find the pieces that must be read; gives their images and bytes."""
        self.run("""
            CREATE TABLE unknown AS SELECT * FROM listing
            WHERE reason IS NULL AND name NOT IN (SELECT piece FROM inputs) ORDER BY ord
        """)
        num_images, num_bytes = self.one("SELECT coalesce(sum(num_items), 0), coalesce(sum(bytes), 0) FROM unknown")
        return int(num_images), int(num_bytes)

    def unknown_pieces(self) -> Iterator[Piece]:
        """The pieces that must be read, in order."""
        query = "SELECT name, mark, bytes, num_items, place FROM unknown ORDER BY ord"
        return (Piece(*row) for row in self.rows(query))

    def add_part(self, number: int, rows: "pa.Table") -> None:
        """Take the rows of the part with this number."""
        self._insert_table(f"INSERT INTO inputs BY NAME SELECT {number} AS part, * FROM batch", rows)

    def end_reading(self) -> None:
        """Take what the listing itself rejects, after all parts."""
        self.run("""
            INSERT INTO inputs BY NAME
            SELECT -1 AS part, name AS piece, mark, 0 AS seq, name, reason, 0 AS source_bytes
            FROM listing WHERE reason IS NOT NULL
        """)

    # --- out ---

    def num_jobs(self) -> int:
        """How many shards are to be written."""
        return int(self.one("SELECT coalesce(max(number) + 1, 0) FROM jobs")[0])

    def job(self, number: int) -> "pa.Table":
        """The samples of a new shard, in its order."""
        return self.db.sql(f"SELECT * FROM jobs WHERE number = {number} ORDER BY digest").to_arrow_table()

    def take_written(self, names: dict[int, str]) -> None:
        """Take the names of the new shards by the numbers of their jobs."""
        self.run("CREATE TABLE written (number BIGINT, name VARCHAR)")
        self.insert("INSERT INTO written SELECT * FROM batch", names.items(), ("number", "name"))

    def write_index(self, path: Path) -> None:
        """The index: every input in order, with what it became. After `take_written`."""
        self.run("""
            CREATE TABLE places AS
            SELECT input, old_shard AS shard, old_pos AS pos, split FROM samples
            WHERE old_shard IN (SELECT shard FROM kept_shards)
            UNION ALL
            SELECT j.input, w.name, row_number() OVER (PARTITION BY j.number ORDER BY j.digest) - 1, j.split
            FROM jobs j JOIN written w USING (number)
        """)
        self.run("""
            CREATE TABLE fates AS
            SELECT i.rowid AS input, l.ord, p.shard, p.pos, coalesce(p.split, i.split) AS split,
                CASE
                    WHEN p.shard IS NOT NULL THEN 'sample'
                    WHEN i.reason IS NOT NULL THEN 'rejected'
                    WHEN i.pixel IN (SELECT pixel FROM dropped) THEN 'taken down'
                    WHEN i.digest IN (SELECT digest FROM near WHERE dropped) THEN 'near duplicate'
                    ELSE 'duplicate'
                END AS status
            FROM inputs i JOIN listing l ON i.piece = l.name LEFT JOIN places p ON p.input = i.rowid
        """)
        facts = ", ".join(f"i.{name.strip()}" for name in FACTS.split(","))
        self.run(f"""
            COPY (
                SELECT {facts}, f.split, f.status, f.shard, f.pos,
                    CASE WHEN f.shard IS NOT NULL
                        THEN lpad(('0x' || hex(i.digest[1:8]))::UBIGINT::VARCHAR, 20, '0') END AS key,
                    CASE WHEN f.ord <= {self._last_with_thumbnail()} THEN i.thumbnail END AS thumbnail
                FROM inputs i JOIN fates f ON f.input = i.rowid ORDER BY f.ord, i.seq
            ) TO '{path}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)
        """)

    def _last_with_thumbnail(self) -> int:
        """The place in the listing after which no thumbnail is kept."""
        query = f"""
            SELECT coalesce(max(ord), -1) FROM (
                SELECT l.ord FROM inputs i JOIN listing l ON i.piece = l.name
                WHERE i.thumbnail IS NOT NULL ORDER BY l.ord, i.seq LIMIT {MAX_THUMBNAILS}
            )
        """
        return int(self.one(query)[0])

    def rejected(self, most: int = MAX_LISTED_REJECTS) -> list[tuple[Rejected, bytes | None]]:
        """The first rejected inputs with their thumbnails."""
        query = f"""
            SELECT i.name, i.reason, i.thumbnail FROM inputs i JOIN listing l ON i.piece = l.name
            WHERE i.reason IS NOT NULL ORDER BY l.ord, i.seq LIMIT {most}
        """
        return [(Rejected(name=name, reason=reason), thumbnail) for name, reason, thumbnail in self.rows(query)]


def _batched(entries: Iterable[Any], size: int) -> Iterator[list[Any]]:
    held: list[Any] = []
    for entry in entries:
        held.append(entry)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


@contextmanager
def opened() -> Iterator[Ledger]:
    """A ledger in a temporary folder. Raises AtelierError where its disk is full."""
    import duckdb

    folder = Path(tempfile.mkdtemp(prefix="atelier-ingest-"))
    try:
        with contextlib.closing(Ledger(folder)) as ledger:
            yield ledger
    except (duckdb.IOException, duckdb.FatalException) as error:
        first = str(error).strip().splitlines()[0]
        raise AtelierError(
            f"{tempfile.gettempdir()}: expected room for the ingest's scratch database, got {first:.200}; set TMPDIR "
            "to a folder with more"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
