"""Records in a store: written last, found again, read whole or not at all, named by a URI."""

import re
from collections.abc import Iterator, Mapping
from typing import Self, TypeVar

from pydantic import ValidationError

from pipeline.artifacts import (
    AnyRecord,
    Dataset,
    Evaluation,
    FileEntry,
    Record,
    Release,
    Run,
    SampleSet,
    Strict,
    file_entry,
)
from pipeline.errors import AlreadyExists, IntegrityError, NotFound, RecordError
from pipeline.store import Store, open_store

RecordT = TypeVar("RecordT", bound=Record)
StrictT = TypeVar("StrictT", bound=Strict)
_REF = r"(?:datasets|releases)/[^/]+/[^/]+|(?:runs|evaluations|samples)/[^/]+"
_RECORD_REF = re.compile(_REF)
# The root is as long as can be: it may itself lie in a folder called `datasets` or `runs`.
_RECORD_URI = re.compile(
    rf"(?P<root>(?:s3|file|https?)://.+)/(?P<ref>{_REF})"
    r"(?:/(?:dataset|run|evaluation|samples|manifest)\.json)?"
)
_KINDS: Mapping[str, type[AnyRecord]] = {
    "datasets": Dataset,
    "runs": Run,
    "evaluations": Evaluation,
    "samples": SampleSet,
    "releases": Release,
}


def commit(store: Store, record: RecordT) -> RecordT:
    """Write the record, which ends its stage. If another worker committed first, theirs is returned."""
    try:
        store.create(f"{record.ref}/{record.file_name}", record.to_bytes())
    except AlreadyExists:
        return load(store, record.ref, type(record))
    return record


def find(store: Store, ref: str, kind: type[RecordT]) -> RecordT | None:
    """The record in the folder `ref`, or None where that stage is not finished."""
    try:
        return load(store, ref, kind)
    except NotFound:
        return None


def load(store: Store, ref: str, kind: type[RecordT]) -> RecordT:
    """Read a record. Raises NotFound where there is none, RecordError where it is no `kind` of this version."""
    key = f"{ref}/{kind.file_name}"
    return parse(store.get(key), kind, f"{store.uri}/{key}")


def every(store: Store, kind: type[RecordT]) -> Iterator[RecordT]:
    """All finished records of a kind in a store, in the order of their refs."""
    folder = next(name for name, known in _KINDS.items() if known is kind)
    for entry in store.list(f"{folder}/"):
        ref, _, name = entry.key.rpartition("/")
        if name == kind.file_name and _RECORD_REF.fullmatch(ref):
            yield load(store, ref, kind)


def record_kind(ref: str) -> type[AnyRecord]:
    """Which kind of record a ref names. Raises RecordError."""
    if not _RECORD_REF.fullmatch(ref):
        raise RecordError(f"expected a record's ref such as datasets/NAME/ID, got {ref!r}")
    return _KINDS[ref.partition("/")[0]]


def read_file(store: Store, record: Record, entry: FileEntry, remedy: str | None = None) -> bytes:
    """The bytes of one of a record's files. Raises IntegrityError where they are not what the record states."""
    where = f"{store.uri}/{record.key_of(entry)}"
    remedy = remedy or f"delete {store.uri}/{record.ref} and run its stage again"
    try:
        data = store.get(record.key_of(entry))
    except NotFound:
        raise IntegrityError(f"{where}: expected {entry.bytes:,} bytes, found no object; {remedy}") from None
    found = file_entry(entry.name, data)
    if found.bytes != entry.bytes:
        raise IntegrityError(f"{where}: expected {entry.bytes:,} bytes, got {found.bytes:,}; {remedy}")
    if found.sha256 != entry.sha256:
        raise IntegrityError(f"{where}: expected SHA-256 {entry.sha256}, got {found.sha256}; {remedy}")
    return data


def parse(data: bytes, kind: type[RecordT], where: str) -> RecordT:
    """Read a record's bytes; `where` names them in the error."""
    return parse_model(data, kind, where)


def parse_model(data: bytes, kind: type[StrictT], where: str) -> StrictT:
    """Read what a model's bytes say; `where` names them in the error. Raises RecordError."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "record"
        raise RecordError(
            f"{where}: expected a {kind.__name__} record of schema 1, got {field}: {first['msg']}; "
            "was it written by another version of atelier?"
        ) from None


def split_uri(uri: str) -> tuple[str, str]:
    """Cut a record's URI into the store's URI and the record's ref. Raises RecordError."""
    if found := _RECORD_URI.fullmatch(uri.rstrip("/")):
        return found["root"], found["ref"]
    raise RecordError(
        f"expected a record's URI such as s3://bucket/datasets/NAME/ID (one of {', '.join(_KINDS)}), got {uri!r}; "
        "`atelier list` shows those that there are"
    )


def open_record(uri: str, kind: type[AnyRecord] | None = None) -> tuple[Store, AnyRecord]:
    """Open the record that a URI names, with the store it lies in. Raises RecordError when it is another kind."""
    root, ref = split_uri(uri)
    found = record_kind(ref)
    if kind is not None and found is not kind:
        raise RecordError(f"expected the URI of a {kind.__name__}, got {uri!r}, a {found.__name__}")
    store = open_store(root)
    try:
        return store, parse(store.get(f"{ref}/{found.file_name}"), found, uri)
    except NotFound:
        raise RecordError(
            f"expected a finished {found.__name__} at {uri}, found none; `atelier list` shows those that there are"
        ) from None


class Located(Strict):
    """A record together with the URI that other stages are handed."""

    uri: str
    record: AnyRecord

    @classmethod
    def of(cls, store: Store, record: AnyRecord) -> Self:
        """Name the record in its store."""
        return cls(uri=f"{store.uri}/{record.ref}", record=record)
