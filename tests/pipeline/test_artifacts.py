"""Records: committed once, read back strictly, found by their URIs."""

import json
from typing import Any

import pytest

from pipeline.artifacts import (
    AnyRecord,
    Changes,
    Dataset,
    Evaluation,
    Figure,
    FileEntry,
    Release,
    Run,
    SampleSet,
    Statistics,
    digest_of,
    file_entry,
)
from pipeline.errors import IntegrityError, NotFound, RecordError, UserError
from pipeline.records import Located, commit, find, load, open_record, read_file, split_uri
from pipeline.release.records import Alias, Move
from pipeline.store import Store
from tests import made

FIGURE = Figure(value=1.5, unit="nats", num_samples=10, low=1.0, high=2.0)
DATASET = Dataset(
    code_version="0.1.0",
    id="d" * 16,
    name="digits",
    channels=1,
    height=8,
    width=8,
    layout="block",
    classes=("zero", "één"),
    splits={"train": 9, "test": 1},
    shards=(),
    files=(),
    statistics=Statistics(mean=(1.5,), std=(0.5,), labels={}, source_sides={}, source_bytes=0),
    rejected=(),
    num_inputs=10,
    num_rejected=0,
    num_duplicates=0,
    num_near_duplicates=0,
    spec={},
    source={"kind": "digits"},
    source_fingerprint="f",
    parent=None,
    changes=Changes(added=10, removed=0, decoded_images=10, reused_shards=0, new_shards=0),
    dropped=(),
)
RUN = Run(
    code_version="0.1.0",
    id="a" * 16,
    recipe="digits",
    model="vae",
    family="vae",
    config={"beta": 1.0, "layers": [1, 2], "preset": None},
    dataset=DATASET.ref,
    steps=3,
    images_seen=30,
    files=(file_entry("config.json", b"{}"),),
    metrics={"loss": 0.5},
)
EVALUATION = Evaluation(
    code_version="0.1.0",
    id="e" * 16,
    run=RUN.ref,
    dataset=DATASET.ref,
    protocol=made.PROTOCOL,
    extractor_note="a classifier",
    figures={"elbo": FIGURE},
)
SAMPLES = SampleSet(code_version="0.1.0", id="5" * 16, run=RUN.ref, count=4, seed=0, made_with="hand", files=())
RELEASE = Release(
    code_version="0.1.0",
    id="4" * 16,
    name="digits-vae",
    number=12,
    run=RUN.ref,
    evaluation=EVALUATION.ref,
    samples=SAMPLES.ref,
    dataset=DATASET.ref,
    family="vae",
    license="CC0-1.0",
    protocol=made.PROTOCOL,
    parents=(),
    figures={"elbo": FIGURE},
    files=(),
)
RECORDS: list[AnyRecord] = [DATASET, RUN, EVALUATION, SAMPLES, RELEASE]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_records_survive_the_store(store: Store, record: Any) -> None:
    kind = type(record)
    assert find(store, record.ref, kind) is None
    with pytest.raises(NotFound):
        load(store, record.ref, kind)
    assert commit(store, record) == record
    assert find(store, record.ref, kind) == load(store, record.ref, kind) == record
    for uri in (f"{store.uri}/{record.ref}", f"{store.uri}/{record.ref}/{record.file_name}"):
        opened, again = open_record(uri, kind)
        assert (opened.uri, again) == (store.uri, record)
    assert Located.of(store, record).uri == f"{store.uri}/{record.ref}"
    assert store.get(f"{record.ref}/{record.file_name}") == record.to_bytes()


def test_the_first_commit_stands(store: Store) -> None:
    theirs = RUN.model_copy(update={"metrics": {"loss": 0.25}})
    commit(store, theirs)
    assert commit(store, RUN) == theirs
    assert load(store, RUN.ref, Run) == theirs


def test_same_record_same_bytes() -> None:
    turned = RUN.model_copy(update={"config": dict(reversed(RUN.config.items()))})
    assert turned.to_bytes() == RUN.to_bytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [({"surprise": 1}, "surprise"), ({"schema_number": 2}, "schema_number"), ({"steps": "many"}, "steps")],
)
def test_records_of_another_version_are_refused(store: Store, change: dict[str, object], field: str) -> None:
    data = json.dumps(RUN.model_dump(mode="json") | change).encode()
    store.put(f"{RUN.ref}/run.json", data)
    with pytest.raises(
        RecordError, match=f"expected a Run record of schema 1, got {field}: .*another version"
    ) as caught:
        find(store, RUN.ref, Run)
    assert "\n" not in str(caught.value)
    store.put(f"{RUN.ref}/run.json", b"no JSON")
    with pytest.raises(RecordError, match="got record: Invalid JSON"):
        load(store, RUN.ref, Run)


def test_files_are_checked(store: Store) -> None:
    entry = RUN.files[0]
    key = f"{RUN.ref}/{entry.name}"
    with pytest.raises(IntegrityError, match="expected 2 bytes, found no object"):
        read_file(store, RUN, entry)
    store.put(key, b"{}")
    assert read_file(store, RUN, entry) == b"{}"
    for damaged, complaint in ((b"{]", "expected SHA-256 44136fa3"), (b"{} ", "bytes, got 3;"), (b"", "bytes, got 0;")):
        store.put(key, damaged)
        with pytest.raises(IntegrityError, match=complaint):
            read_file(store, RUN, entry)


def test_a_file_outside_the_records_folder_is_not_read(store: Store) -> None:
    store.put("secret", b"{}")
    with pytest.raises(UserError, match=r"'\.\.' as a part"):
        read_file(store, RUN, FileEntry(name="../../secret", bytes=2, sha256="0"))


def test_opening_what_is_not_there(store: Store) -> None:
    with pytest.raises(RecordError, match=r"expected a finished Run at .*runs/none, found none"):
        open_record(f"{store.uri}/runs/none")
    with pytest.raises(RecordError, match=r"expected the URI of a Dataset, got .*, a Run"):
        open_record(f"{store.uri}/{RUN.ref}", Dataset)


@pytest.mark.parametrize("root", ["s3://b1", "s3://b1/p/q", "file:///out", "file:///home/datasets/runs/samples/x"])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_split_uri_gives_root_and_ref(root: str, record: AnyRecord) -> None:
    for end in ("", "/", f"/{record.file_name}"):
        assert split_uri(f"{root}/{record.ref}{end}") == (root, record.ref)


BAD = ["", "runs/x", "s3://b1", "s3://b1/runs", "s3://b1/runs/", "s3://b1/datasets/digits", "/out/runs/x",
       "s3://b1/aliases/a/b.json", "s3://b1/runs/x/model.safetensors", "s3:///runs"]  # fmt: skip


@pytest.mark.parametrize("uri", BAD)
def test_split_uri_refuses(uri: str) -> None:
    with pytest.raises(RecordError, match="expected a record's URI such as") as caught:
        split_uri(uri)
    assert "\n" not in str(caught.value)


def test_digests_depend_on_values_alone() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1, "b": ["2"]})
    assert len(digest_of(None)) == 16


def test_alias_names_its_newest_move() -> None:
    moves = tuple(Move(number=n, at="2026-01-01T00:00:00Z", who="me", why="better") for n in (3, 7))
    alias = Alias(name="digits-vae", alias="champion", history=moves)
    assert (alias.number, alias.key) == (7, "aliases/digits-vae/champion.json")
