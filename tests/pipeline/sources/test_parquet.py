"""Parquet as Hugging Face exports it: what becomes an item, and that a wrong column is one clear line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.sources import parquet as module
from pipeline.sources.parquet import Source
from pipeline.store import open_store
from tests.pipeline.sources.reading import items, labels, pieces, rejected

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(count: int, names: list[str] | None = None, image: Any = IMAGE, label: Any = None) -> pa.Table:
    """Rows whose image is their number as text; labels 0, 1, 2, 0 ..."""
    data: list[Any] = [b"%d" % number for number in range(count)]
    if pa.types.is_struct(image):
        data = [{"bytes": one, "path": f"{number}.png"} for number, one in enumerate(data)]
    found = pa.table(
        {"image": pa.array(data, image), "label": pa.array([n % 3 for n in range(count)], label or pa.int64())}
    )
    if names is None:
        return found
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def of(path: Path | str, **fields: Any) -> Source:
    return Source.model_validate({"kind": "parquet", "path": str(path), **fields})


def test_a_hugging_face_export_is_read_by_row_group(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        file = tmp_path / "data" / f"train-{number:05d}-of-00002.parquet"
        pq.write_table(table(7, ["dog", "cat", "ant"]), file, row_group_size=3)
    (tmp_path / "README.md").write_text("words")
    source = of(tmp_path)
    assert source.classes() == ("dog", "cat", "ant")
    assert [(piece.name, piece.num_items) for piece in pieces(source)][:4] == [
        ("data/train-00000-of-00002.parquet/00000", 3),
        ("data/train-00000-of-00002.parquet/00001", 3),
        ("data/train-00000-of-00002.parquet/00002", 1),
        ("data/train-00001-of-00002.parquet/00000", 3),
    ]
    found = items(source)
    assert [item.name for item in found][5:8] == [
        "data/train-00000-of-00002.parquet/0000005",
        "data/train-00000-of-00002.parquet/0000006",
        "data/train-00001-of-00002.parquet/0000000",
    ]
    assert [item.data for item in found] == 2 * [b"%d" % number for number in range(7)]
    assert [item.label for item in found] == 2 * ["dog", "cat", "ant", "dog", "cat", "ant", "dog"]


@pytest.mark.parametrize("image", [pa.binary(), pa.large_binary(), IMAGE])
@pytest.mark.parametrize("label", [pa.int64(), pa.uint8(), pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_columns_of_each_type_are_read(tmp_path: Path, image: Any, label: Any) -> None:
    found = table(5, image=image)
    text = pa.array([str(n % 3) for n in range(5)])
    column = text.dictionary_encode() if pa.types.is_dictionary(label) else text.cast(label)
    pq.write_table(found.set_column(1, "label", column), tmp_path / "a.parquet")
    source = of(tmp_path / "a.parquet")
    assert source.classes() is None
    assert [(item.data, item.label) for item in items(source)] == [(b"%d" % n, str(n % 3)) for n in range(5)]


def test_batches_bound_memory_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(100), tmp_path / "a.parquet")
    whole = items(of(tmp_path))
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    assert items(of(tmp_path)) == whole


def test_rows_without_image_or_with_an_unknown_label_are_rejected(tmp_path: Path) -> None:
    images = [{"bytes": b"a", "path": None}, None, {"bytes": None, "path": "x/y.png"}, {"bytes": b"b", "path": None}]
    rows = pa.table({"image": pa.array([*images, images[0]], IMAGE), "label": [0, 0, 0, 5, -1]})
    metadata = table(0, ["only"]).schema.metadata
    pq.write_table(rows.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert labels(of(tmp_path)) == {"a.parquet/0000000": "only", "a.parquet/0000004": None}
    assert rejected(of(tmp_path)) == {
        "a.parquet/0000001": "no image",
        "a.parquet/0000002": "no image in the row, only the path 'x/y.png'",
        "a.parquet/0000003": "its label 5 is none of the 1 classes",
    }


def test_without_a_label_column_there_are_no_labels(tmp_path: Path) -> None:
    pq.write_table(table(3, ["a", "b", "c"]).select(["image"]), tmp_path / "a.parquet")
    source = of(tmp_path, label_column=None)
    assert source.classes() is None
    assert set(labels(source).values()) == {None}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_column": "picture"}, "expected a column 'picture' of binary .*found image .*set source.image_column"),
        ({"image_column": "label"}, "expected a column 'label' of binary or struct"),
        (
            {"label_column": "y"},
            "expected a column 'y' of whole numbers or text, found image .*null where there are no",
        ),
        ({"label_column": "image"}, "expected a column 'image' of whole numbers or text"),
    ],
)
def test_a_wrong_column_is_one_line_with_the_choices(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    pq.write_table(table(3), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=message) as caught:
        list(of(tmp_path, **fields).pieces())
    assert "\n" not in str(caught.value)


def test_files_must_name_the_same_classes(tmp_path: Path) -> None:
    pq.write_table(table(3, ["a", "b", "c"]), tmp_path / "a.parquet")
    pq.write_table(table(3, ["a", "c", "b"]), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"b\.parquet: expected the class names of the files before it"):
        list(of(tmp_path).pieces())


def test_damage_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(table(1000), file, compression="none")
    whole = file.read_bytes()
    for data in (whole[:-10], whole[: len(whole) // 2], b"PAR1", b"", b"\0" * 100):
        file.write_bytes(data)
        with pytest.raises(SourceError, match=r"a\.parquet: expected a whole parquet file, got ") as caught:
            items(of(tmp_path))
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=r"expected parquet files \(\.parquet\), found none"):
        (tmp_path / "empty").mkdir()
        items(of(tmp_path / "empty"))


def test_a_row_group_that_unpacks_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREE_EXPANSION_BYTES", 0)
    bomb = pa.table({"image": [bytes(4 << 20)], "label": [0]})
    pq.write_table(bomb, tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(SourceError, match=r"row group 0: expected at most .* bytes unpacked"):
        list(of(tmp_path).pieces())


def test_a_bucket_is_read_as_a_folder_is(tmp_path: Path, s3_uri: str) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(table(50, ["x", "y", "z"]), file, row_group_size=20)
    open_store(s3_uri).put("raw/data/a.parquet", file)
    remote = items(of(f"{s3_uri}/raw"))
    assert [(item.data, item.label) for item in remote] == [(item.data, item.label) for item in items(of(file))]
    assert of(f"{s3_uri}/raw/data/a.parquet").classes() == ("x", "y", "z")
