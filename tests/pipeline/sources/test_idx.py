"""MNIST's format: what is read, and that every kind of damage is one clear line."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources import Item
from pipeline.sources.idx import Source

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


def read_all(source: Source) -> list[Item]:
    """Everything that ingest asks a source."""
    assert source.num_items()
    assert source.fingerprint()
    assert source.classes() or not source.labelled
    return list(source.items())


def test_both_parts_become_items_with_labels_by_value(tmp_path: Path) -> None:
    source = Source(path=str(write_mnist(tmp_path / "mnist")))
    items = read_all(source)
    assert source.classes() == ("3", "4", "9")
    assert [item.name for item in items][:2] == ["train/000000", "train/000001"]
    assert [item.label for item in items] == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2]
    raw = (tmp_path / "mnist" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    assert b"".join(bytes(np.asarray(item.data)) for item in items[7:]) == raw
    assert {np.asarray(item.data).shape for item in items} == {(5, 4, 1)}


@pytest.mark.parametrize(("pack", "dotted"), [(True, False), (False, True), (True, True)])
def test_the_same_images_have_the_same_fingerprint_however_stored(tmp_path: Path, pack: bool, dotted: bool) -> None:
    one = Source(path=str(write_mnist(tmp_path / "one")))
    other = Source(path=str(write_mnist(tmp_path / "other", pack, dotted)))
    assert one.fingerprint() == other.fingerprint()
    assert [item.name for item in read_all(one)] == [item.name for item in read_all(other)]


def test_another_pixel_or_label_is_another_fingerprint(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    seen = {Source(path=str(folder)).fingerprint()}
    for name in ("t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        seen.add(Source(path=str(folder)).fingerprint())
    assert len(seen) == 3


def test_unlabelled_needs_no_label_files(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    for file in folder.glob("*labels*"):
        file.unlink()
    source = Source(path=str(folder), labelled=False)
    assert source.classes() == ()
    assert {item.label for item in read_all(source)} == {None}
    with pytest.raises(SourceError, match=r"expected one of train-labels-idx1-ubyte, .*\.gz.*labelled to false"):
        read_all(Source(path=str(folder)))


def test_a_missing_folder_or_file_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a folder of IDX files, found none at .*nowhere"):
        read_all(Source(path=str(tmp_path / "nowhere")))
    with pytest.raises(SourceError, match=r"train-images-idx3-ubyte, train-images-idx3-ubyte\.gz, .*found none"):
        read_all(Source(path=str(tmp_path)))


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
        (gzip.compress(header(7, 5, 4) + bytes(139)), "expected 1 more bytes, got the end"),
        (gzip.compress(header(7, 5, 4) + bytes(141)), "expected the end after 7 entries, got more bytes"),
        (gzip.compress(header(7, 5, 4) + bytes(140))[:-9], "expected a whole IDX file, got"),
        (gzip.compress(header(7, 5, 4) + bytes(140))[:-8] + bytes(8), "expected a whole IDX file, got CRC"),
        (b"\x1f\x8b" + bytes(40), "expected a whole IDX file, got"),
        (
            gzip.compress(header(7, 5, 4) + bytes(20 << 20)),
            "expected the end after 7 entries, got more bytes",
        ),
        (gzip.compress(header(20 << 20, 1, 1) + bytes(20 << 20)), "a decompression bomb"),
    ],
)
def test_damage_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_mnist(tmp_path / "mnist")
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        read_all(Source(path=str(folder)))
    assert "\n" not in str(caught.value)
    assert "train-images-idx3-ubyte" in str(caught.value)


def test_labels_and_images_must_be_as_many(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(6, np.uint8)))
    with pytest.raises(SourceError, match="expected a label for each of the 7 images, got 6"):
        read_all(Source(path=str(folder)))
