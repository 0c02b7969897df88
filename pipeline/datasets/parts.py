"""The first half of an ingest: a partition of a source is decoded and staged in the store as a part.

A partition is a list of the source's pieces, small enough to be held decoded in memory. Its part is a payload, the
images as they will stand in shards (plain pixels in layout `block`, encoded files in layout `sample`) in the order of
their digests, and a table of rows, one an input, that says what each is and where in the payload it lies. The payload
is written first, the rows last: a part that has rows is done, and a later attempt skips it.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Rejected, digest_of
from pipeline.decoders import Unreadable, encode_image, fit_pixels, read_picture
from pipeline.errors import NotFound
from pipeline.sections import DatasetSpec
from pipeline.sources import Item, Piece, SourceBase
from pipeline.store import Store, open_store

if TYPE_CHECKING:
    import pyarrow as pa

TEST, TRAIN = "test", "train"
PART_IMAGES = 4096
PART_BYTES = 64 << 20  # decoded
CHUNK_IMAGES = 256  # are summed at a time
THUMBNAILS = 24  # of rejected inputs, a part
THUMBNAIL_PIXELS = 96


@dataclass(frozen=True)
class Partition:
    """The work of one task. `folder` is the key under which parts of this dataset are staged."""

    number: int
    store: str
    folder: str
    source: SourceBase
    spec: DatasetSpec
    pieces: tuple[Piece, ...]

    @cached_property
    def key(self) -> str:
        """The part's key without its endings: the same pieces give the same part."""
        listed = hashlib.sha256("".join(f"{piece.name}\0{piece.mark}\n" for piece in self.pieces).encode())
        return f"{self.folder}/{listed.hexdigest()[:32]}"


@dataclass(frozen=True)
class Part:
    """A staged part, whose rows are at its key."""

    number: int
    key: str
    num_images: int
    num_rejected: int
    source_bytes: int
    earlier: bool  # an earlier attempt had made it


def partition_images(spec: DatasetSpec) -> int:
    """How many images a part holds."""
    return max(1, min(PART_IMAGES, PART_BYTES // spec.image_bytes))


def partitioned(pieces: Iterable[Piece], spec: DatasetSpec) -> Iterator[tuple[Piece, ...]]:
    """Pieces in lists of bounded size; a piece of more images than a part holds is a list of its own."""
    most, held, num_images = partition_images(spec), list[Piece](), 0
    for piece in pieces:
        if held and num_images + piece.num_items > most:
            yield tuple(held)
            held, num_images = [], 0
        held.append(piece)
        num_images += piece.num_items
    if held:
        yield tuple(held)


def stage(partition: Partition) -> Part:
    """Read, decode and stage one partition, or find it staged. Raises SourceError, StoreError."""
    store = open_store(partition.store)
    try:
        rows = read_rows(store, partition.key)
        return _part(partition, rows, earlier=True)
    except NotFound:
        pass
    tables = []
    read = partition.source.read(partition.pieces)
    for number, inputs in enumerate(_bounded(read, partition_images(partition.spec))):
        payload, table = _prepared(inputs, partition.spec, f"{partition.key}-{number:04d}.bin")
        if payload:
            store.put(f"{partition.key}-{number:04d}.bin", payload)
        tables.append(table)
    rows = _joined(tables)
    store.put(_rows_key(partition.key), _packed(rows))
    return _part(partition, rows, earlier=False)


def read_rows(store: Store, key: str) -> "pa.Table":
    """The rows of the part with this key. Raises NotFound, StoreError."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.BufferReader(store.get(_rows_key(key)))).read_all()


def _packed(rows: "pa.Table") -> bytes:
    """Rows as an Arrow file: they live for one ingest, and Parquet takes some three times as long."""
    import pyarrow as pa

    out = io.BytesIO()
    with pa.ipc.new_file(out, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(rows)
    return out.getvalue()


def _rows_key(key: str) -> str:
    return f"{key}.arrow"


def _part(partition: Partition, rows: "pa.Table", *, earlier: bool) -> Part:
    import pyarrow.compute as pc

    rejected = rows.num_rows - rows["reason"].null_count
    return Part(
        partition.number, partition.key, rows.num_rows, rejected, pc.sum(rows["source_bytes"]).as_py() or 0, earlier
    )


def _bounded(
    read: Iterator[tuple[Piece, Item | Rejected]], most: int
) -> Iterator[list[tuple[Piece, int, Item | Rejected]]]:
    """Inputs with their number in their piece, in lists of at most `most` inputs."""
    held: list[tuple[Piece, int, Item | Rejected]] = []
    before, number = None, 0
    for piece, item in read:
        number = number + 1 if piece is before else 0
        before = piece
        held.append((piece, number, item))
        if len(held) == most:
            yield held
            held = []
    if held:
        yield held


def _schema() -> "pa.Schema":
    import pyarrow as pa

    text, blob, number = pa.string(), pa.binary(), pa.uint64()
    return pa.schema(
        [
            ("piece", text),
            ("mark", text),
            ("seq", pa.int64()),  # of the input in its piece
            ("name", text),
            ("label", text),  # null: unlabelled
            ("reason", text),  # null unless rejected
            ("source_sha256", blob),
            ("source_bytes", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("pixel", blob),  # digest of the pixels
            ("digest", blob),  # of pixels and class
            ("split", text),  # by the pixels
            ("look", number),  # perceptual hash
            *((f"sum{channel}", number) for channel in range(3)),
            *((f"squares{channel}", number) for channel in range(3)),
            ("origin", text),  # key of the payload
            ("start", pa.int64()),  # bytes
            ("length", pa.int64()),
            ("thumbnail", blob),
        ]
    )


def _joined(tables: Sequence["pa.Table"]) -> "pa.Table":
    import pyarrow as pa

    return pa.concat_tables(tables) if tables else _schema().empty_table()


Row = dict[str, Any]


def _prepared(
    inputs: Sequence[tuple[Piece, int, Item | Rejected]], spec: DatasetSpec, origin: str
) -> tuple[bytes, "pa.Table"]:
    """Bring inputs to the recipe's shape: the payload in the order of digests, and their rows."""
    import pyarrow as pa

    rows: list[Row] = []
    good: list[tuple[Row, bytes]] = []
    thumbnails = 0
    for piece, number, item in inputs:
        row: Row = {"piece": piece.name, "mark": piece.mark, "seq": number, "name": item.name}
        rows.append(row)
        if isinstance(item, Rejected):
            row["reason"], row["source_bytes"] = item.reason, 0
            continue
        if (pixels := _decoded(item, spec, row)) is not None:
            good.append((row, pixels))
        elif thumbnails < THUMBNAILS:
            row["thumbnail"] = _thumbnail(item)
            thumbnails += 1
    for at in range(0, len(good), CHUNK_IMAGES):
        _summed(good[at : at + CHUNK_IMAGES], spec)
    good.sort(key=lambda pair: pair[0]["digest"])
    pieces, start = [], 0
    for row, pixels in good:
        data = _payload(pixels, spec)
        row["origin"], row["start"], row["length"] = origin, start, len(data)
        start += len(data)
        pieces.append(data)
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in _schema()]
    return b"".join(pieces), pa.Table.from_arrays(columns, schema=_schema())


def _decoded(item: Item, spec: DatasetSpec, row: Row) -> bytes | None:
    """The pixels of an input in the recipe's shape, None where it is rejected; fills in what its row says of it."""
    raw = item.data if isinstance(item.data, bytes) else item.data.tobytes()
    row["source_bytes"] = len(raw)
    row["source_sha256"] = hashlib.sha256(raw).digest()
    try:
        picture = read_picture(item.data, spec) if isinstance(item.data, bytes) else fit_pixels(item.data, spec)
    except Unreadable as error:
        row["reason"] = str(error)
        return None
    pixels = picture.pixels.tobytes()
    pixel = hashlib.sha256(repr(spec.image_shape).encode() + pixels).digest()
    # By the class's name: its index moves when classes are added, and a sample keeps its key.
    identity = pixel + (item.label or "").encode()
    if spec.duplicates == "keep":
        identity += b"\0" + item.name.encode()
    row["label"], row["width"], row["height"] = item.label, picture.width, picture.height
    row["pixel"], row["digest"] = pixel, hashlib.sha256(identity).digest()
    row["split"] = split_of(pixel, spec.held_out)
    if spec.near_duplicates != "ignore":
        from pipeline.datasets.near import perceptual_hash

        row["look"] = perceptual_hash(picture.pixels)
    return pixels


def split_of(pixel_digest: bytes, held_out: float) -> str:
    """The split of an image: a matter of its pixels alone, whatever else is there."""
    return TEST if int.from_bytes(pixel_digest[:8]) < held_out * 2**64 else TRAIN


def key_of(digest: bytes) -> int:
    """A sample's key: the head of its digest."""
    return int.from_bytes(digest[:8])


def _summed(pairs: Sequence[tuple[Row, bytes]], spec: DatasetSpec) -> None:
    """Add each image's sums and sums of squares by channel to its row: whole numbers, so any order gives the same."""
    import numpy as np

    flat = np.frombuffer(b"".join([pixels for _, pixels in pairs]), np.uint8).reshape(len(pairs), -1, spec.channels)
    sums = flat.sum(axis=1, dtype=np.uint64)
    wide = flat.astype(np.uint32)
    squares = (wide * wide).sum(axis=1, dtype=np.uint64)
    for (row, _), own, own_squares in zip(pairs, sums.tolist(), squares.tolist(), strict=True):
        for channel, (total, square) in enumerate(zip(own, own_squares, strict=True)):
            row[f"sum{channel}"], row[f"squares{channel}"] = total, square


def _payload(pixels: bytes, spec: DatasetSpec) -> bytes:
    import numpy as np

    if spec.resolved_layout == "block":
        return pixels
    image = np.frombuffer(pixels, np.uint8).reshape(spec.image_shape)
    return encode_image(image, spec.encoding, spec.quality)


def _thumbnail(item: Item) -> bytes | None:
    from pipeline.datasets.thumbnails import thumbnail
    from pipeline.pictures import encode_png

    small = thumbnail(item.data, THUMBNAIL_PIXELS) if isinstance(item.data, bytes) else None
    return None if small is None else encode_png(small)


def staging_folder(name: str, spec: DatasetSpec, code_version: str) -> str:
    """Where the parts of a dataset are staged: of other specifications elsewhere."""
    return f"datasets/{name}/staging/{digest_of({'spec': spec.model_dump(mode='json'), 'code': code_version})}"
