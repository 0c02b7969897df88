"""Parquet files with a column of images, as Hugging Face `datasets` exports them: a folder, a bucket, or one file.

The image column holds encoded images, as binary or as struct{bytes, path}; the label column whole numbers or text.
Where the schema's metadata names the classes (Hugging Face's ClassLabel), numbers are indices into them, in that order.
A piece is a row group; rows are read some at a time. Files that do not end in .parquet are passed over.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifacts import Rejected
from pipeline.errors import SourceError
from pipeline.reading.locations import PathSource
from pipeline.reading.places import File, Location, address
from pipeline.sources import Item, Piece

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_BYTES = 16 << 20  # decoded at a time, by the row group's average
MAX_BATCH_ROWS = 1024
BUFFER_BYTES = 1 << 20  # of a column's pages, read at a time
MAX_GROUP_BYTES = 8 << 30  # unpacked
MAX_EXPANSION = 200  # encoded images do not pack at all
FREE_EXPANSION_BYTES = 64 << 20
NO_LABEL = -1  # in Hugging Face's test splits


class Source(PathSource):
    """Parquet files with the columns `image_column` and `label_column` (null: the images carry no labels)."""

    what: ClassVar[str] = "parquet files"
    endings: ClassVar[tuple[str, ...]] = (".parquet",)

    kind: Literal["parquet"] = "parquet"
    image_column: str = Field("image", min_length=1)
    label_column: str | None = Field("label", min_length=1)

    def classes(self) -> tuple[str, ...] | None:
        location = self.location()
        for file in _files(location):
            with _opened(location, file.name, file.address) as table:
                return self._class_names(table.schema_arrow, location.where(file.name))
        return None

    def pieces(self) -> Iterator[Piece | Rejected]:
        location = self.location()
        names: tuple[str, ...] | None = None
        num_files = 0
        for file in _files(location):
            where = location.where(file.name)
            with _opened(location, file.name, file.address) as table:
                self._check_columns(table.schema_arrow, where)
                found = self._class_names(table.schema_arrow, where)
                if num_files and found != names:
                    raise SourceError(f"{where}: expected the class names of the files before it, {names}, got {found}")
                names, num_files = found, num_files + 1
                for number in range(table.num_row_groups):
                    group = table.metadata.row_group(number)
                    _check_group(group, f"{where}: row group {number}")
                    yield Piece(f"{file.name}/{number:05d}", file.mark, _bytes_of(group), group.num_rows, file.at)
        if not num_files:
            raise SourceError(f"{self.path}: expected parquet files (.parquet), found none")

    def read_piece(self, piece: Piece) -> Iterator[Item | Rejected]:
        location = self.location()
        name, _, number = piece.name.rpartition("/")
        where = location.where(name)
        with _opened(location, name, address(name, piece.at)) as table:
            if int(number) >= table.num_row_groups:
                raise SourceError(f"{where}: expected row group {number}, found {table.num_row_groups}; run again")
            self._check_columns(table.schema_arrow, where)
            names = self._class_names(table.schema_arrow, where)
            group = table.metadata.row_group(int(number))
            row = sum(table.metadata.row_group(before).num_rows for before in range(int(number)))
            for batch in table.iter_batches(
                batch_size=_batch_rows(group), row_groups=[int(number)], columns=self._columns(), use_threads=False
            ):
                for image, label in self._rows(batch):
                    yield _item(f"{name}/{row:07d}", image, label, names)
                    row += 1

    def _columns(self) -> list[str]:
        return [self.image_column, *([self.label_column] if self.label_column else [])]

    def _rows(self, batch: "pa.RecordBatch") -> Iterator[tuple[Any, Any]]:
        images = batch.column(self.image_column)
        labels = batch.column(self.label_column) if self.label_column else None
        for number in range(batch.num_rows):
            yield images[number].as_py(), None if labels is None else labels[number].as_py()

    def _check_columns(self, schema: "pa.Schema", where: str) -> None:
        """Refuse columns that are not there, or of other types."""
        import pyarrow.types as kinds

        def binary(kind: "pa.DataType") -> bool:
            return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

        there = ", ".join(f"{field.name} ({field.type})" for field in schema)[:400]
        image = schema.field(self.image_column).type if self.image_column in schema.names else None
        if image is not None and kinds.is_struct(image):
            position = image.get_field_index("bytes")
            image = image.field(position).type if position >= 0 else None
        if image is None or not binary(image):
            raise SourceError(
                f"{where}: expected a column {self.image_column!r} of binary or struct{{bytes, path}}, found {there}; "
                "set source.image_column"
            )
        if self.label_column is None:
            return
        label = schema.field(self.label_column).type if self.label_column in schema.names else None
        if label is not None and kinds.is_dictionary(label):
            label = label.value_type
        if label is None or not (kinds.is_integer(label) or kinds.is_string(label) or kinds.is_large_string(label)):
            raise SourceError(
                f"{where}: expected a column {self.label_column!r} of whole numbers or text, found {there}; "
                "set source.label_column, to null where there are no labels"
            )

    def _class_names(self, schema: "pa.Schema", where: str) -> tuple[str, ...] | None:
        """The ClassLabel names that Hugging Face keeps in the schema's metadata."""
        stated = (schema.metadata or {}).get(b"huggingface")
        if self.label_column is None or stated is None:
            return None
        try:
            feature = json.loads(stated)["info"]["features"][self.label_column]
            names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if names is None:
            return None
        if (
            not isinstance(names, list)
            or not all(isinstance(n, str) and n for n in names)
            or len(set(names)) < len(names)
        ):
            raise SourceError(f"{where}: expected different class names in its metadata, got {names!r:.100}")
        return tuple(names)


def _item(name: str, image: Any, label: Any, names: tuple[str, ...] | None) -> Item | Rejected:
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        path = image.get("path") if isinstance(image, dict) else None
        return Rejected(name=name, reason=f"no image in the row, only the path {path!r:.80}" if path else "no image")
    if names is None or not isinstance(label, int):
        return Item(name, data, None if label is None else str(label))
    if label != NO_LABEL and not 0 <= label < len(names):
        return Rejected(name=name, reason=f"its label {label} is none of the {len(names)} classes")
    return Item(name, data, None if label == NO_LABEL else names[label])


def _files(location: Location) -> Iterator[File]:
    for file in location.files():
        if isinstance(file, File) and file.name.lower().endswith(".parquet"):
            yield file


@contextmanager
def _opened(location: Location, name: str, at: str) -> "Iterator[pq.ParquetFile]":
    """A file, of which a buffer's worth of each column is read at a time. Raises SourceError where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with location.open(at) as stream, pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise SourceError(
            f"{location.where(name)}: expected a whole parquet file, got {said}; fetch it again"
        ) from None


def _bytes_of(group: Any) -> int:
    return sum(group.column(column).total_compressed_size for column in range(group.num_columns))


def _check_group(group: Any, where: str) -> None:
    unpacked, packed = group.total_byte_size, _bytes_of(group)
    most = min(MAX_GROUP_BYTES, MAX_EXPANSION * packed + FREE_EXPANSION_BYTES)
    if unpacked > most:
        raise SourceError(
            f"{where}: expected at most {most:,} bytes unpacked from {packed:,}, got {unpacked:,}; write "
            "smaller row groups"
        )


def _batch_rows(group: Any) -> int:
    num_bytes, num_rows = int(group.total_byte_size), int(group.num_rows)
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * num_rows // max(num_bytes, 1)))
