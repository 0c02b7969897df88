"""Croissant metadata, read by mlcroissant: valid, and its records are those of the shards."""

import json
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pytest
from mlcroissant._src.core import constants
from mlcroissant._src.operation_graph.operations import extract

from pipeline.artifacts import Dataset
from pipeline.datasets.croissant import croissant
from pipeline.ingest import ingest
from pipeline.pictures import encode_png
from pipeline.shards import decode_shard, open_shard
from pipeline.store import open_store
from tests.pipeline.test_ingest import folder_of, of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mlcroissant unpacks archives below the home folder, and takes what lies there for the same address."""
    monkeypatch.setattr(constants, "EXTRACT_PATH", type(constants.EXTRACT_PATH)(tmp_path / "extract"))
    monkeypatch.setattr(extract, "EXTRACT_PATH", constants.EXTRACT_PATH)


def described(tmp_path: Path, raw: Path, **dataset: Any) -> tuple[Dataset, Path]:
    made = ingest(open_store(f"file://{tmp_path}/store"), of(raw, {"max_rejected": 1}, **dataset))
    return made, tmp_path / "store" / made.ref / "croissant.json"


def unlabelled(folder: Path) -> Path:
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
    return folder


@pytest.mark.parametrize("layout", ["sample", "block"])
@pytest.mark.parametrize("make", [lambda folder: folder_of(folder, 30), unlabelled], ids=["labelled", "unlabelled"])
def test_it_is_valid_and_complete(tmp_path: Path, make: Any, layout: str) -> None:
    dataset, path = described(tmp_path, make(tmp_path / "raw"), layout=layout)
    read = mlcroissant.Dataset(jsonld=str(path))
    assert read.metadata.ctx.issues.errors == set()
    (warning,) = read.metadata.ctx.issues.warnings
    assert "datePublished" in warning  # a record carries no times
    document = json.loads(path.read_bytes())
    files = {node["name"]: node for node in document["distribution"] if node["@type"] == "cr:FileObject"}
    for shard in dataset.shards:
        assert files[shard.name]["sha256"] == shard.sha256
        assert (path.parent / files[shard.name]["contentUrl"]).resolve().is_file()
    assert {node["name"] for node in document["recordSet"]} == {"splits", "inputs"} | (
        {"images"} if layout == "sample" else set()
    ) | ({"classes"} if dataset.classes else set())


def test_every_input_is_a_record_with_its_fate(tmp_path: Path) -> None:
    raw = folder_of(tmp_path / "raw", 30)
    (raw / "class0" / "again.png").write_bytes((raw / "class0" / "000.png").read_bytes())
    (raw / "class1" / "notes.txt").write_text("hello")
    dataset, path = described(tmp_path, raw, layout="block")
    inputs = {_text(row["inputs/name"]): row for row in mlcroissant.Dataset(jsonld=str(path)).records("inputs")}
    assert len(inputs) == dataset.num_inputs == 32
    assert _text(inputs["class0/again.png"]["inputs/status"]) == "duplicate"
    assert inputs["class0/again.png"]["inputs/key"] is None
    assert _text(inputs["class1/notes.txt"]["inputs/reason"]) == "not an image"
    keys = {int(row["inputs/key"]) for row in inputs.values() if row["inputs/key"]}
    assert keys == set(shown(tmp_path, dataset))


def test_splits_and_classes_count_the_samples(tmp_path: Path) -> None:
    dataset, path = described(tmp_path, folder_of(tmp_path / "raw", 30))
    read = mlcroissant.Dataset(jsonld=str(path))
    splits = {row["splits/name"]: (row["splits/images"], row["splits/url"]) for row in read.records("splits")}
    assert splits == {
        "train": (dataset.splits["train"], "cr:TrainingSplit"),
        "test": (dataset.splits["test"], "cr:TestSplit"),
    }
    classes = sorted(read.records("classes"), key=lambda row: int(row["classes/index"]))
    assert tuple(row["classes/name"] for row in classes) == dataset.classes
    for split, labels in dataset.statistics.labels.items():
        assert {row["classes/name"]: row[f"classes/{split}"] for row in classes} == labels


@pytest.mark.parametrize(("encoding", "channels"), [("png", 1), ("jpg", 3), ("webp", 3)])
def test_images_have_the_pixels_label_and_split_of_the_shards(tmp_path: Path, encoding: str, channels: int) -> None:
    raw = folder_of(tmp_path / "raw", 30)
    dataset, path = described(tmp_path, raw, layout="sample", encoding=encoding, channels=channels, quality=100)
    wanted = shown(tmp_path, dataset)
    records = list(mlcroissant.Dataset(jsonld=str(path)).records("images"))
    assert len(records) == len(wanted) == 30
    for record in records:
        pixels, label, split = wanted[int(record["images/key"])]
        assert (_text(record["images/label"]), _text(record["images/split"])) == (label, split)
        assert np.array_equal(np.asarray(record["images/image"]).reshape(pixels.shape), pixels)


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    dataset, path = described(tmp_path, folder_of(tmp_path / "raw", 30))
    (index,) = (entry for entry in dataset.files if entry.name == "index.parquet")
    assert croissant(dataset, "other", "", index, "png") == path.read_bytes()


def shown(tmp_path: Path, dataset: Dataset) -> dict[int, tuple[Any, str, str]]:
    """Pixels, class name and split of each sample in the shards, by its key."""
    store, found = open_store(f"file://{tmp_path}/store"), {}
    for shard in dataset.shards:
        decoded = decode_shard(open_shard(store, dataset, shard), dataset, shard)
        for key, pixels, label in zip(decoded.keys_N, decoded.images_NHWC, decoded.labels_N, strict=True):
            found[int(key)] = (pixels, dataset.classes[label], shard.split)
    return found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
