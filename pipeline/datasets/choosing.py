"""What follows from the inputs of an ingest: which are samples, of which split, and in which shards they go.

The parent's samples keep their splits and, where their shards stay whole, their places.
"""

from collections.abc import Iterable

from pipeline.datasets.ledger import Ledger
from pipeline.datasets.near import NearIndex
from pipeline.sections import DatasetSpec

GROUP_PARTS = 256  # a new shard is gathered from so many parts at most


def choose(book: Ledger, spec: DatasetSpec, taken_down: Iterable[tuple[str, str]]) -> None:
    """Choose the samples and their splits. `taken_down`: source images by the digests of bytes and pixels, in hex.

    Of the inputs with one digest, one is the sample: the one that is it in the parent, else the first in the source's
    order. Whatever has the bytes or the pixels of an image that was taken down is none.
    """
    book.run("CREATE TABLE taken (source VARCHAR, pixel VARCHAR)")
    book.insert("INSERT INTO taken SELECT * FROM batch", taken_down, ("source", "pixel"))
    book.run("""
        CREATE TABLE dropped AS
        SELECT unhex(pixel) AS pixel FROM taken
        UNION SELECT pixel FROM inputs
        WHERE pixel IS NOT NULL AND source_sha256 IN (SELECT unhex(source) FROM taken)
    """)
    book.run("""
        CREATE TABLE ranked AS
        SELECT i.rowid AS input, l.ord, i.seq, i.digest, i.split, i.look, i.part,
            coalesce(p.name = i.name AND p.source_sha256 = i.source_sha256, FALSE) AS stays,
            row_number() OVER (PARTITION BY i.digest ORDER BY stays DESC, l.ord, i.seq) AS copy
        FROM inputs i JOIN listing l ON i.piece = l.name LEFT JOIN placed p USING (digest)
        WHERE i.reason IS NULL AND i.pixel NOT IN (SELECT pixel FROM dropped)
    """)
    book.run("CREATE TABLE near (digest BLOB, split VARCHAR, dropped BOOLEAN)")
    if spec.near_duplicates != "ignore":
        _find_near(book, spec)
    book.run("""
        CREATE TABLE samples AS
        SELECT r.input, r.digest, r.part, r.stays, coalesce(p.split, n.split, r.split) AS split,
            p.shard AS old_shard, p.pos AS old_pos
        FROM ranked r LEFT JOIN placed p USING (digest) LEFT JOIN near n USING (digest)
        WHERE r.copy = 1 AND NOT coalesce(n.dropped, FALSE)
    """)


def _find_near(book: Ledger, spec: DatasetSpec) -> None:
    """Near duplicates, in the source's order: each takes the split of those before it that it is near to.

    One that is near to samples of both splits is dropped in any case, so near duplicates never stand on both sides.
    The parent's samples come first.
    """
    index = NearIndex(spec.near_distance)
    splits: list[str] = []
    found: list[tuple[bytes, str, bool]] = []
    rows = book.rows("""
        SELECT r.digest, r.look, coalesce(p.split, r.split), p.digest IS NOT NULL
        FROM ranked r LEFT JOIN placed p USING (digest)
        WHERE r.copy = 1 AND r.look IS NOT NULL ORDER BY p.digest IS NULL, r.ord, r.seq
    """)
    for digest, look, own_split, is_placed in rows:
        split = own_split
        if not is_placed and (near := {splits[row] for row in index.near(look)}):
            split = min(near)
            drop = spec.near_duplicates == "drop" or len(near) > 1
            found.append((digest, split, drop))
            if drop:
                continue
        index.add(look, len(splits))
        splits.append(split)
    book.insert("INSERT INTO near SELECT * FROM batch", found, ("digest", "split", "dropped"))


def plan_shards(book: Ledger, spec: DatasetSpec, *, pack_all: bool) -> None:
    """Which of the parent's shards stay, and which samples go into new ones: `jobs` has a row a sample of a new shard.

    A shard that lost a sample, or of which one comes from another input now, is packed anew; so is one less than half
    full where its split gets new samples. All are where `pack_all` (class indices have moved, say).
    """
    full = spec.resolved_shard_images
    book.run("""
        CREATE TABLE old_shards AS
        SELECT p.shard, any_value(p.split) AS split, count(*) AS had, count(s.digest) FILTER (s.stays) AS has
        FROM placed p LEFT JOIN samples s USING (digest) GROUP BY p.shard
    """)
    book.run(f"""
        CREATE TABLE kept_shards AS
        SELECT shard, split FROM old_shards
        WHERE NOT {pack_all} AND had = has
            AND (2 * has >= {full} OR split NOT IN (SELECT split FROM samples WHERE old_shard IS NULL))
    """)
    book.run(f"""
        CREATE TABLE ranks AS
        SELECT input, digest, split, old_shard, old_pos, greatest(part, 0) // {GROUP_PARTS} AS grp,
            (row_number() OVER (PARTITION BY split, greatest(part, 0) // {GROUP_PARTS} ORDER BY digest) - 1) // {full}
            AS nth
        FROM samples WHERE old_shard IS NULL OR old_shard NOT IN (SELECT shard FROM kept_shards)
    """)
    book.run("""
        CREATE TABLE numbers AS
        SELECT split, grp, nth, row_number() OVER (ORDER BY split, grp, nth) - 1 AS number
        FROM (SELECT DISTINCT split, grp, nth FROM ranks)
    """)
    book.run("""
        CREATE TABLE jobs AS
        SELECT n.number, r.input, r.digest, r.split, r.old_shard, r.old_pos, i.label, i.name, i.source_sha256,
            i.origin, i.start, i.length
        FROM ranks r JOIN numbers n USING (split, grp, nth) JOIN inputs i ON r.input = i.rowid
        ORDER BY number, r.digest
    """)
