"""Ingest beside others that write: to the source, or to the same store."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import Dataset
from pipeline.errors import SourceError
from pipeline.ingest import Progress, find_dataset, ingest
from pipeline.pictures import encode_png
from pipeline.store import Store, open_store
from tests.pipeline.test_ingest import contents, folder_of, of, recipe


def test_a_source_that_changes_while_it_is_read_publishes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.datasets.parts.PART_IMAGES", 10)
    root = folder_of(tmp_path / "raw")

    def interfere(_: Progress) -> None:
        for path in root.rglob("*.png"):
            path.write_bytes(encode_png(np.zeros((8, 8, 1), np.uint8)))

    with pytest.raises(SourceError, match="expected a source that rests while it is read"):
        ingest(store, of(root), interfere)
    assert contents(store) == {}


def test_images_that_arrive_while_it_is_read_are_of_the_next_version(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")

    def arrive(_: Progress) -> None:
        folder_of(root, 1, first=99)

    first = ingest(store, of(root), arrive)
    assert sum(first.splits.values()) == 40
    assert find_dataset(store, of(root)) is None
    second = ingest(store, of(root))
    assert (second.changes.added, second.changes.decoded_images) == (1, 1)


def test_an_object_of_a_bucket_that_changes_after_it_was_read_publishes_nothing(s3_uri: str, tmp_path: Path) -> None:
    bucket, store = open_store(s3_uri), open_store(f"file://{tmp_path}/store")
    root = folder_of(tmp_path / "raw")
    for path in root.rglob("*.png"):
        bucket.put(f"raw/{path.relative_to(root)}", path)
    source = {"kind": "folder", "path": f"{s3_uri}/raw"}

    data = (root / "class0" / "000.png").read_bytes()

    def interfere(_: Progress) -> None:
        bucket.put("raw/class0/000.png", data[:-1] + b"?")  # of the same size

    with pytest.raises(SourceError, match=r"rests while it is read, got one where class0/000\.png changed"):
        ingest(store, recipe(source), interfere)
    assert contents(store) == {}


def test_parts_that_a_later_ingest_cleared_away_are_no_failure(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.datasets.parts.PART_IMAGES", 10)
    root = folder_of(tmp_path / "raw")
    later: list[Dataset] = []

    def overtake(_: Progress) -> None:
        if not later:
            folder_of(root, 1, first=99)  # the parts of the other images are shared
            later.append(ingest(store, of(root)))

    assert ingest(store, of(root), overtake) == later[0]
    assert sum(later[0].splits.values()) == 41
