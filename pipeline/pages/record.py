"""The page of a record's folder: the record in words, its pictures, and its files, each of which opens.

A folder that is no record's own (the TensorBoard files of a run) has its files alone.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from pipeline.artifacts import AnyRecord
from pipeline.errors import NotFound
from pipeline.listing import about
from pipeline.pages import render
from pipeline.pages.content import Folder, Listed
from pipeline.records import parse, record_kind, split_uri
from pipeline.store import Store

MAX_FILES = 500  # are listed
MAX_PICTURES = 12
MAX_WORDS = 300  # characters of a field
EVENTS = "tensorboard"
TITLES = {"samples": "Sample set"}


def record_page(store: Store, uri: str, path: str = "") -> bytes:
    """The page of the record that `uri` names, or of a folder below it (`path`, with a slash at its end).

    Raises NotFound where there is neither record nor file, RecordError, StoreError.
    """
    _, ref = split_uri(uri)
    prefix = f"{ref}/{path}"
    entries = list(islice(store.list(prefix), MAX_FILES + 1))
    record = None if path else _record(store, ref)
    if not entries and not path:
        raise NotFound(f"{store.uri}/{prefix}: expected a record, found nothing there")
    files = tuple(Listed(entry.key.removeprefix(prefix), entry.bytes) for entry in entries[:MAX_FILES])
    events = path.rstrip("/") == EVENTS
    return render.record(
        Folder(
            uri=f"{store.uri}/{prefix}".rstrip("/"),
            title=_title(record, events),
            lead=about(record) if record else "",
            rows=tuple(_rows(record)) if record else (),
            pictures=tuple(file.href for file in files if file.href.endswith(".png"))[:MAX_PICTURES],
            files=files,
            more=len(entries) > MAX_FILES,
            events=events,
        )
    )


def _title(record: AnyRecord | None, events: bool) -> str:
    if record is None:
        return "TensorBoard files" if events else "Files"
    return TITLES.get(record.kind, record.kind.capitalize())


def _record(store: Store, ref: str) -> AnyRecord | None:
    kind = record_kind(ref)
    key = f"{ref}/{kind.file_name}"
    try:
        return parse(store.get(key), kind, f"{store.uri}/{key}")
    except NotFound:
        return None  # its stage is not done, or somebody deleted it: the files that are there are still worth a look


def _rows(record: AnyRecord) -> Iterator[tuple[str, str]]:
    """Its fields in words; figures one by one, lists of files left to the list of files."""
    for name, value in record.model_dump(mode="json").items():
        if name == "figures":
            for figure, stated in value.items():
                yield figure, f"{stated['value']:.4g} {stated['unit']}"
        elif name == "shards":
            yield name, f"{len(value):,} files of {sum(entry['bytes'] for entry in value):,} bytes"
        elif name not in ("files", "kind", "schema_number", "signature") and value not in (None, [], {}):
            yield name, _words(value)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{key} {_words(inner)}" for key, inner in value.items() if inner is not None)
    elif isinstance(value, list):
        some = ", ".join(_words(inner) for inner in value[:10])
        value = some if len(value) <= 10 else f"{some} ... ({len(value):,})"
    elif isinstance(value, float):
        value = f"{value:.4g}"
    text = str(value)
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]} ..."
