"""Numpy archives: what becomes an item, and that nothing is unpickled, unpacked without bound or taken for another."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources import npz as module
from pipeline.sources.npz import Source
from pipeline.store import open_store
from tests.pipeline.sources.reading import items, pieces

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
LABELS = np.array([3, 10, 4, 3, 10, 4, 3])


def of(path: Path | str, **fields: Any) -> Source:
    return Source.model_validate({"kind": "npz", "path": str(path), **fields})


def pixels(source: Source) -> "np.ndarray[Any, Any]":
    return np.stack([np.asarray(item.data) for item in items(source)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("piece_images", [2, 3, 8192])
def test_both_parts_of_mnist_are_read_in_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any, piece_images: int
) -> None:
    monkeypatch.setattr(module, "PIECE_IMAGES", piece_images)
    monkeypatch.setattr(module, "BLOCK_BYTES", 40)
    save(tmp_path / "mnist.npz", x_test=IMAGES[:3], x_train=IMAGES, y_train=LABELS, y_test=LABELS[:3])
    for path in (tmp_path, tmp_path / "mnist.npz"):
        source = of(path)
        assert np.array_equal(pixels(source), np.concatenate([IMAGES, IMAGES[:3]])[..., None])
        assert [item.label for item in items(source)] == ["3", "10", "4", "3", "10", "4", "3", "3", "10", "4"]
        assert items(source)[7].name == "mnist.npz/x_test/000000"
        assert sum(piece.num_items for piece in pieces(source)) == 10


@pytest.mark.parametrize(
    ("arrays", "fields"),
    [
        ({"images": IMAGES, "labels": LABELS}, {}),
        ({"arr_0": IMAGES[..., None], "arr_1": LABELS[:, None].astype(np.uint8)}, {}),
        ({"pictures": IMAGES, "y": LABELS, "images": IMAGES[:1]}, {"images_key": "pictures", "labels_key": "y"}),
        ({"train_images": IMAGES, "train_labels": LABELS.astype("U5"), "other": IMAGES}, {}),
        ({"images": IMAGES / 255, "labels": LABELS.astype("S5")}, {}),
        ({"images": (IMAGES / 255).astype(">f4"), "labels": LABELS.astype(">i2")}, {}),
    ],
)
def test_arrays_are_found_by_the_usual_or_the_given_names(
    tmp_path: Path, arrays: dict[str, Any], fields: dict[str, str]
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    source = of(tmp_path, **fields)
    assert np.array_equal(pixels(source), IMAGES[..., None])
    assert [item.label for item in items(source)] == [str(label) for label in LABELS]


def test_images_alone_carry_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([IMAGES] * 3, -1), labels=LABELS, other=IMAGES)
    found = items(of(tmp_path, images_key="images"))
    assert {item.label for item in found} == {None}
    assert {np.asarray(item.data).shape for item in found} == {(5, 4, 3)}
    np.savez(tmp_path / "a.npz", x_train=IMAGES)
    assert {item.label for item in items(of(tmp_path))} == {None}


@pytest.mark.parametrize(
    ("arrays", "fields", "message"),
    [
        ({"pictures": IMAGES}, {}, "expected the array images or x_train .*found pictures; set source.images_key"),
        ({"a": IMAGES}, {"images_key": "a", "labels_key": "b"}, "expected the array b, found a;"),
        (
            {"images": IMAGES.astype(int)},
            {},
            r"images: expected images .* as uint8 or as floats .*got int64 \(7, 5, 4\)",
        ),
        ({"images": IMAGES[0]}, {}, r"expected images \(N, height, width\) .*got uint8 \(5, 4\)"),
        ({"images": IMAGES.reshape(7, 1, 5, 4)}, {}, r"got uint8 \(7, 1, 5, 4\)"),
        ({"images": IMAGES[:0]}, {}, r"expected an array that fills its .* bytes, got uint8 \(0, 5, 4\)"),
        ({"images": IMAGES.astype(float)}, {}, r"expected floats from 0 to 1, got 0 to 249; divide"),
        ({"images": np.full((3, 5, 4), np.nan)}, {}, r"expected floats from 0 to 1, got nan to nan"),
        ({"images": IMAGES, "labels": LABELS[:6]}, {}, r"labels: expected 7 labels, .*got int64 \(6,\)"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, {}, r"expected 7 labels, whole numbers or text, got float64"),
        ({"images": IMAGES, "labels": np.array([b"\xff"] * 7)}, {}, "labels: expected labels in UTF-8"),
        ({"images": np.asfortranarray(IMAGES)}, {}, "images: expected an array in C order, got Fortran order"),
        ({"images": np.array([print] * 3)}, {}, "images: expected plain numbers or text, got object, which is pickled"),
        ({"images": IMAGES, "labels": np.array([{}] * 7)}, {}, "labels: expected plain numbers or text, got object"),
        ({"images": np.zeros(3, [("a", "u1")])}, {}, "images: expected plain numbers or text"),
    ],
)
def test_arrays_that_cannot_be_taken_are_one_clear_line(
    tmp_path: Path, arrays: dict[str, Any], fields: dict[str, str], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SourceError, match=message) as caught:
        items(of(tmp_path, **fields))
    assert "\n" not in str(caught.value)
    assert "a.npz" in str(caught.value)


def test_damage_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, images=IMAGES, labels=LABELS)
    whole = file.read_bytes()
    stored = whole.index(IMAGES.tobytes())
    for data in (whole[:-1], whole[: len(whole) // 2], whole[:10], b"", whole + b"x", b"x" + whole):
        file.write_bytes(data)
        with pytest.raises(SourceError, match=r"a\.npz: expected "):
            items(of(tmp_path))
    for position in range(stored, stored + IMAGES.size):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(SourceError, match=r"'images.npy' as the archive states, got other bytes by its CRC-32"):
            items(of(tmp_path))


def test_a_flipped_byte_before_the_last_range_is_found_with_the_last_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_IMAGES", 3)
    file = tmp_path / "a.npz"
    np.savez(file, images=IMAGES)
    data = bytearray(file.read_bytes())
    data[data.index(IMAGES.tobytes())] ^= 1
    file.write_bytes(data)
    source = of(tmp_path)
    first, *_, last = pieces(source)
    assert len(list(source.read_piece(first))) == 3
    with pytest.raises(SourceError, match="CRC-32"):
        list(source.read_piece(last))


def npy(header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9, 9)}"), "fills its 128 bytes, got uint8"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 1, 1)}"), "expected an array that fills"),
        (npy("__import__('os').system('true')"), "expected an npy header, got "),
        (npy("(" * 100), "expected an npy header, got "),
        (b"\x93NUMPY\1\0\xff\xff", "expected an npy header of at most 10000 bytes, got 65535"),
        (b"\x93NUMPY\1\0", "expected an npy header of at most 10000 bytes, got 0"),
        (b"not numpy at all", "expected an array in npy format 1.0 or 2.0, got b'not nump'"),
    ],
)
def test_a_header_that_lies_is_one_clear_line(tmp_path: Path, data: bytes, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", data)
    with pytest.raises(SourceError, match=message):
        items(of(tmp_path))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((10_000, 28, 28), np.uint8))
    with pytest.raises(SourceError, match=r"images: expected to unpack to at most 200 times .*a decompression bomb\?"):
        items(of(tmp_path))


def test_a_bucket_is_read_as_a_folder_is(s3_uri: str) -> None:
    out = io.BytesIO()
    np.savez_compressed(out, images=IMAGES, labels=LABELS)
    open_store(s3_uri).put("raw/a.npz", out.getvalue())
    for path in (f"{s3_uri}/raw", f"{s3_uri}/raw/a.npz"):
        assert np.array_equal(pixels(of(path)), IMAGES[..., None])
    with pytest.raises(SourceError, match=r"expected \.npz files, found none"):
        items(of(f"{s3_uri}/other"))
