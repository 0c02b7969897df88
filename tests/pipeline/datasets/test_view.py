"""What `atelier show` says of a dataset: its figures, histograms and rejects, and the sheets as local files."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.artifacts import Changes, Dataset, Rejected, Statistics, file_entry
from pipeline.datasets.view import BAR_CELLS, MAX_CLASSES, dataset_view, save_sheets
from pipeline.errors import IntegrityError
from pipeline.store import open_store

URI = "s3://bucket/[odd]/datasets/cats/0123456789abcdef"


def dataset_of(labels: dict[str, dict[str, int]] | None = None, **fields: Any) -> Dataset:
    labels = {"test": {"a": 2, "b": 1}, "train": {"a": 6, "b": 3}} if labels is None else labels
    values: dict[str, Any] = {
        "code_version": "1",
        "id": "0123456789abcdef",
        "name": "cats",
        "channels": 3,
        "height": 16,
        "width": 24,
        "layout": "block",
        "classes": tuple(labels.get("train", {})),
        "splits": {"test": 3, "train": 9},
        "shards": (),
        "files": (),
        "statistics": Statistics(
            mean=(10.0, 20.0, 30.0),
            std=(1.0, 2.0, 3.0),
            labels=labels,
            source_sides={"16": 8, "128": 4},
            source_bytes=1_500_000,
        ),
        "rejected": (),
        "num_inputs": 15,
        "num_rejected": 0,
        "num_duplicates": 2,
        "num_near_duplicates": 1,
        "spec": {},
        "source": {"kind": "folder", "path": "raw"},
        "source_fingerprint": "0",
        "parent": None,
        "changes": Changes(added=5, removed=4, decoded_images=7, reused_shards=6, new_shards=8),
        "dropped": (),
    }
    return Dataset.model_validate(values | fields)


def rendered(dataset: Dataset, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, soft_wrap=True, highlight=False, emoji=False)
    for view in dataset_view(URI, dataset):
        console.print(view, markup=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line_with(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"\u2502 {start}"))


def test_the_figures_stand_there() -> None:
    text = rendered(dataset_of(parent="datasets/cats/beef", dropped=("00",)))
    for figure in (
        "3 test, 9 train",
        "16 x 24 pixels, colour",
        "block",
        "10.0, 20.0, 30.0",
        "1.5 MB",
        "2 exact, 1 near",
        "datasets/cats/beef",
        "5 added, 4 removed; 7 decoded; 6 shards used again, 8 written",
        "kind: folder, path: raw",
    ):
        assert figure in text
    assert text.splitlines()[0].strip() == URI  # with its square brackets
    assert "since then" not in rendered(dataset_of())


def test_bars_show_classes_by_split() -> None:
    text = rendered(dataset_of())
    large, small = line_with(text, "a "), line_with(text, "b ")
    assert large.count("\u2588") + large.count("\u2591") == BAR_CELLS
    assert (large.count("\u2591"), small.count("\u2591"), small.count("\u2588")) == (8, 4, 12)


def test_a_class_of_one_image_beside_a_large_one_has_a_bar() -> None:
    text = rendered(dataset_of({"test": {"a": 0, "b": 1}, "train": {"a": 100_000, "b": 0}}))
    assert "\u2591" in line_with(text, "b ")


def test_of_many_classes_the_largest_and_smallest_are_shown() -> None:
    counts = {f"class{number:04d}": number for number in range(1000)}
    text = rendered(dataset_of({"test": {}, "train": counts}))
    shown = [line.split()[1] for line in text.splitlines() if line.startswith("\u2502 class0")]
    half = MAX_CLASSES // 2
    assert shown == [f"class{number:04d}" for number in [*range(999, 999 - half, -1), *range(half - 1, -1, -1)]]
    assert "1,000 classes" in text


def test_sizes_of_the_sources_are_a_histogram_without_holes() -> None:
    text = rendered(dataset_of())
    sizes = [line.split("\u2502")[1].strip() for line in text.splitlines() if " to " in line and "pixels" in line]
    assert sizes == ["16 to 31 pixels", "32 to 63 pixels", "64 to 127 pixels", "128 to 255 pixels"]
    assert line_with(text, "16 to").count("\u2588") == 2 * line_with(text, "128 to").count("\u2588")


def test_rejects_are_shown_by_reason() -> None:
    rejected = [Rejected(name=f"{number}[red].txt", reason="not an image") for number in range(3)]
    rejected.insert(1, Rejected(name="x.png", reason="damaged: [/] no end"))
    text = rendered(dataset_of(rejected=tuple(rejected), num_rejected=4))
    assert "rejected: 4" in text
    assert "3 \u2502 0[red].txt" in line_with(text, "not an image")
    assert "1 \u2502 x.png" in line_with(text, "damaged: [/] no end")
    more = rendered(dataset_of(rejected=tuple(rejected), num_rejected=4_000))
    assert "4,000, the first 4 by reason" in more
    assert "reason" not in rendered(dataset_of())


@pytest.mark.parametrize("labels", [{"test": {}, "train": {}}, {"test": {"x" * 300: 1}, "train": {"x" * 300: 0}}])
@pytest.mark.parametrize("width", [40, 200])
def test_it_fits_any_terminal(labels: dict[str, dict[str, int]], width: int) -> None:
    text = rendered(dataset_of(labels, splits={"test": 0, "train": 0}, statistics=empty(labels)), width)
    assert max(len(line) for line in text.splitlines()[1:]) <= width


def empty(labels: dict[str, dict[str, int]]) -> Statistics:
    return Statistics(mean=(), std=(), labels=labels, source_sides={}, source_bytes=0)


def test_sheets_are_written_and_checked(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    sheets = {"samples.png": b"some", "rejects.png": b"others", "index.parquet": b"none of these"}
    dataset = dataset_of(files=tuple(file_entry(name, data) for name, data in sheets.items()))
    for name, data in sheets.items():
        store.put(f"{dataset.ref}/{name}", data)
    files = save_sheets(store, dataset, tmp_path / "new" / "sheets")
    assert [file.name for file in files] == [
        "cats-0123456789abcdef-samples.png",
        "cats-0123456789abcdef-rejects.png",
    ]
    assert [file.read_bytes() for file in files] == [b"some", b"others"]
    store.put(f"{dataset.ref}/rejects.png", b"damage")
    with pytest.raises(IntegrityError, match=r"rejects\.png: expected"):
        save_sheets(store, dataset, tmp_path)
