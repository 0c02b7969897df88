"""MNIST's format: what is read, and that every kind of damage is one clear line."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources import idx as module
from pipeline.sources.idx import Source
from pipeline.store import open_store
from tests.pipeline.sources.reading import items, pieces

IMAGES = {"train": 7, "t10k": 3}


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_mnist(folder: Path, pack: bool = False, dotted: bool = False) -> Path:
    """Four files of random 5x4 images whose labels are 3, 4 and 9."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in IMAGES.items():
        images = random.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = np.array([(3, 4, 9)[i % 3] for i in range(count)], np.uint8)
        for name, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            file = folder / (name.replace("-idx", ".idx") if dotted else name)
            if pack:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(idx(values)))
            else:
                file.write_bytes(idx(values))
    return folder


@pytest.mark.parametrize("piece_images", [2, 3, 8192])
@pytest.mark.parametrize(("pack", "dotted"), [(False, False), (True, False), (False, True), (True, True)])
def test_both_parts_become_items_with_labels_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: bool, dotted: bool, piece_images: int
) -> None:
    monkeypatch.setattr(module, "PIECE_IMAGES", piece_images)
    write_mnist(tmp_path / "plain")
    source = Source(path=str(write_mnist(tmp_path / "mnist", pack, dotted)))
    found = items(source)
    assert source.classes() is None
    assert [item.name for item in found] == [
        *(f"train/{n:06d}" for n in range(7)),
        *(f"test/{n:06d}" for n in range(3)),
    ]
    assert [item.label for item in found] == list("3493493349")
    raw = b"".join((tmp_path / "plain" / f"{part}-images-idx3-ubyte").read_bytes()[16:] for part in IMAGES)
    assert b"".join(bytes(np.asarray(item.data)) for item in found) == raw
    assert {np.asarray(item.data).shape for item in found} == {(5, 4, 1)}


def test_a_part_is_cut_into_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_IMAGES", 3)
    source = Source(path=str(write_mnist(tmp_path / "mnist")))
    assert [(piece.name, piece.num_items, piece.bytes) for piece in pieces(source)] == [
        ("train/000000-000002", 3, 60),
        ("train/000003-000005", 3, 60),
        ("train/000006-000006", 1, 20),
        ("test/000000-000002", 3, 60),
    ]
    monkeypatch.setattr(module, "MAX_PIECES", 2)
    assert [piece.num_items for piece in pieces(source)] == [4, 3, 3]


def test_a_mark_moves_with_images_and_with_labels(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    source = Source(path=str(folder))
    seen = [[piece.mark for piece in pieces(source)]]
    for name in ("t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        seen.append([piece.mark for piece in pieces(source)])
    (train, test), (same_train, new_test), (new_train, same_test) = seen
    assert train == same_train != new_train
    assert test != new_test == same_test


def test_a_bucket_is_read_as_a_folder_is(tmp_path: Path, s3_uri: str) -> None:
    folder = write_mnist(tmp_path / "mnist", pack=True)
    for file in folder.iterdir():
        open_store(s3_uri).put(f"mnist/{file.name}", file)
    local, remote = items(Source(path=str(folder))), items(Source(path=f"{s3_uri}/mnist"))
    assert [(item.name, item.label) for item in local] == [(item.name, item.label) for item in remote]
    assert all(np.array_equal(one.data, other.data) for one, other in zip(local, remote, strict=True))
    with pytest.raises(SourceError, match="expected one of train-images-idx3-ubyte"):
        items(Source(path=f"{s3_uri}/elsewhere"))


def test_unlabelled_needs_no_label_files(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    for file in folder.glob("*labels*"):
        file.unlink()
    source = Source(path=str(folder), labelled=False)
    assert {item.label for item in items(source)} == {None}
    with pytest.raises(SourceError, match=r"expected one of train-labels-idx1-ubyte, .*\.gz.*labelled to false"):
        items(Source(path=str(folder)))


def test_a_missing_folder_or_file_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a folder of IDX files at .*nowhere, found none"):
        items(Source(path=str(tmp_path / "nowhere")))
    with pytest.raises(SourceError, match=r"train-images-idx3-ubyte, train-images-idx3-ubyte\.gz, .*found none"):
        items(Source(path=str(tmp_path)))


def header(count: int, height: int, width: int) -> bytes:
    return bytes([0, 0, 8, 3]) + struct.pack(">3I", count, height, width)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected 16 more bytes, got the end"),
        (b"\x89PNG and so on, for longer", r"expected IDX images \(magic 00000803\), got magic 89504e47"),
        (idx(np.zeros(7, np.uint8)) + bytes(9), r"expected IDX images .*got magic 00000801"),
        (header(7, 5, 4) + bytes(139), "expected 156 bytes for 7 x 5 x 4, got 155"),
        (header(7, 5, 4) + bytes(141), "expected 156 bytes for 7 x 5 x 4, got 157"),
        (header(0, 5, 4), "expected images, got a header that states 0 x 5 x 4"),
        (header(2**31, 2**31, 2**31), "expected at most .* bytes, got a header that states"),
        (gzip.compress(header(7, 5, 4) + bytes(139), mtime=0), "expected 1 more bytes, got the end"),
        (gzip.compress(header(7, 5, 4) + bytes(141), mtime=0), "expected the end after 7 entries, got more bytes"),
        (gzip.compress(header(7, 5, 4) + bytes(140), mtime=0)[:-9], "expected a whole IDX file, got"),
        (gzip.compress(header(7, 5, 4) + bytes(140), mtime=0)[:-8] + bytes(8), "expected a whole IDX file, got CRC"),
        (b"\x1f\x8b" + bytes(40), "expected a whole IDX file, got"),
        (
            gzip.compress(header(7, 5, 4) + bytes(20 << 20), mtime=0),
            "expected the end after 7 entries, got more bytes",
        ),
        (gzip.compress(header(20 << 20, 1, 1) + bytes(20 << 20), mtime=0), "a decompression bomb"),
    ],
)
def test_damage_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_mnist(tmp_path / "mnist")
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        items(Source(path=str(folder)))
    assert "\n" not in str(caught.value)
    assert "train-images-idx3-ubyte" in str(caught.value)


def test_labels_and_images_must_be_as_many(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(6, np.uint8)))
    with pytest.raises(SourceError, match="expected a label for each of the 7 images, got 6"):
        items(Source(path=str(folder)))
