"""Shards that others wrote: what becomes an item, and that damage is one clear line and never a silent end."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from pipeline import shards
from pipeline.errors import SourceError
from pipeline.sources import webdataset as module
from pipeline.sources.webdataset import Source
from pipeline.store import open_store
from tests.pipeline.sources.reading import items, labels, pieces, rejected


def tar(members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # a fraction: pax writes a header of its own for it
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def shard(path: Path, members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(members, tar_format))
    return path


def of(path: Path | str, **fields: Any) -> Source:
    return Source.model_validate({"kind": "webdataset", "path": str(path), **fields})


def test_what_the_stock_writer_wrote_is_read(tmp_path: Path) -> None:
    for number in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{number:03d}.tar")) as writer:
            for sample in range(5):
                writer.write({"__key__": f"s{sample}", "jpg": b"%d" % sample, "cls": sample, "txt": "words"})
    (tmp_path / "index.json").write_text("{}")
    found = items(of(tmp_path))
    assert [item.name for item in found] == [f"{n:03d}/s{s}" for n in range(2) for s in range(5)]
    assert [(item.data, item.label) for item in found] == 2 * [(b"%d" % s, str(s)) for s in range(5)]
    assert of(tmp_path).classes() is None


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_grouped_by_the_name_up_to_its_first_dot(tmp_path: Path, tar_format: int) -> None:
    long = "x" * 90 + "/" + "y" * 90
    shard(
        tmp_path / "a.b.tar",
        [
            ("v1.0/1.PNG", b"a"),
            ("v1.0/1.cls", b" cat\n"),
            ("v1.0/2.left.jpeg", b"b"),
            ("v1.0/2.cls", b"dog"),
            ("v1.0/._2.jpeg", b"of a Mac"),
            (f"{long}.webp", b"c"),
            (f"{long}.cls", b"7"),
            ("pickled.pyd", b"never read"),
            ("pickled.png", b"d"),
            ("pickled.cls", b"7"),
        ],
        tar_format,
    )
    assert [(item.name, item.data, item.label) for item in items(of(tmp_path))] == [
        ("a.b/v1.0/1", b"a", "cat"),
        ("a.b/v1.0/2", b"b", "dog"),
        (f"a.b/{long}", b"c", "7"),
        ("a.b/pickled", b"d", "7"),
    ]


def test_labels_come_from_cls_from_json_or_by_index(tmp_path: Path) -> None:
    info = json.dumps({"label": 1, "text": "one", "yes": True}).encode()
    file = shard(tmp_path / "a.tar", [("1.png", b"a"), ("1.cls", b"0"), ("1.json", info), ("2.png", b"b")])
    names = ("zero", "one")
    assert labels(of(file)) == {"a/1": "0", "a/2": None}
    assert labels(of(file, class_names=names)) == {"a/1": "zero", "a/2": None}
    assert labels(of(file, label_field="label")) == {"a/1": "1"}
    assert labels(of(file, label_field="text", class_names=names)) == {"a/1": "one"}
    assert of(file, class_names=names).classes() == names
    reason = "its json holds no text or whole number in 'yes'"
    assert rejected(of(file, label_field="yes")) == {"a/1": reason, "a/2": reason}
    assert rejected(of(file, class_names=("only",), label_field="label"))["a/1"] == (
        "its class '1' is none of the 1 class_names"
    )


def test_a_sample_that_is_none_is_rejected_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.MAX_MEMBER_BYTES, "png", 3)
    shard(
        tmp_path / "a.tar",
        [
            ("both.png", b"a"),
            ("both.jpg", b"a"),
            ("none.txt", b"a"),
            ("twice.png", b"a"),
            ("twice.png", b"a"),
            ("large.png", b"four"),
            ("bytes.png", b"a"),
            ("bytes.cls", b"\xff"),
            ("blank.png", b"a"),
            ("blank.cls", b" "),
            ("good\u200b.png", b"a"),
        ],
    )
    assert list(labels(of(tmp_path))) == ["a/good\\u200b"]
    reasons = rejected(of(tmp_path))
    assert reasons.pop("a/bytes").startswith("'utf-8' codec can't decode")
    assert reasons.pop("a/none").startswith("no image (png, ")
    assert reasons == {
        "a/both": "2 images (png, jpg) in the sample",
        "a/twice": "two members png in the sample",
        "a/large": "its png is larger than 3 bytes: 4",
        "a/blank": "its class is empty, or no printable text",
    }


def test_a_piece_is_a_shard_of_about_so_many_samples(tmp_path: Path) -> None:
    for number, count in enumerate((400, 100)):
        members = ((f"{n:04d}.{e}", bytes(3000 if e == "png" else 1)) for n in range(count) for e in ("cls", "png"))
        shard(tmp_path / f"{number}.tar", members, tarfile.USTAR_FORMAT)
    found = pieces(of(tmp_path))
    assert [piece.name for piece in found] == ["0.tar", "1.tar"]
    assert [piece.num_items for piece in found] == pytest.approx([400, 100], rel=0.05)


@pytest.mark.parametrize("unit", [1, 100, 511, 512, 513, 1024])
def test_a_shard_that_is_cut_short_anywhere_is_an_error_that_names_it(tmp_path: Path, unit: int) -> None:
    file = shard(tmp_path / "a.tar", [(f"{n}.png", bytes([n]) * 700) for n in range(5)], tarfile.USTAR_FORMAT)
    whole = file.read_bytes()
    last = whole.rstrip(b"\0")
    end = len(last) + -len(last) % 512
    for length in range(0, end + 512, unit):
        file.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"a\.tar: expected .* more bytes .* cut short"):
            items(of(file))


def test_each_flipped_bit_of_a_header_is_found(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", [(f"{n}.png", b"x") for n in range(3)], tarfile.USTAR_FORMAT)
    whole = file.read_bytes()
    for position in range(1024, 1536):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(SourceError, match=r"a\.tar: expected "):
            items(of(file))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(SourceError, match=r"a\.tar: expected files in a shard, got '1.png', which is a "):
        items(of(tmp_path))


@pytest.mark.parametrize("labelled", [True, False])
def test_blocks_of_our_own_are_read(tmp_path: Path, labelled: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    arrays: dict[str, np.ndarray[Any, Any]] = {"images": images, "keys": np.arange(6, dtype=np.uint64)}
    if labelled:
        arrays["labels"] = np.array([0, 1, 0, 1, 2, 0], np.int64)
    members = [("007.json", json.dumps({"names": [f"cat/{n}.png" for n in range(6)]}).encode())]
    for name, array in arrays.items():
        out = io.BytesIO()
        np.save(out, array)
        members.append((f"007.{name}.npy", out.getvalue()))
    shard(tmp_path / "a.tar", members)
    found = items(of(tmp_path, class_names=("x", "y", "z")))
    assert [item.name for item in found] == [f"cat/{n}.png" for n in range(6)]
    assert np.array_equal(np.stack([np.asarray(item.data) for item in found]), images)
    assert [item.label for item in found] == (list("xyxyzx") if labelled else [None] * 6)
    assert pieces(of(tmp_path))[0].num_items > 1


def test_a_block_that_is_pickled_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.array([print, "x"], dtype=object), allow_pickle=True)
    shard(tmp_path / "a.tar", [("007.images.npy", out.getvalue())])
    with pytest.raises(SourceError, match="expected plain numbers or text, got object, which is pickled"):
        items(of(tmp_path))


def test_shards_in_a_bucket_and_a_single_one_are_read(tmp_path: Path, s3_uri: str) -> None:
    members = [(f"{n}.png", bytes([n]) * 1000) for n in range(40)]
    for name in ("deep/a.tar", "b.tar"):
        open_store(s3_uri).put(f"raw/{name}", tar(members))
    assert [item.name for item in items(of(f"{s3_uri}/raw"))] == [
        *(f"b/{n}" for n in range(40)),
        *(f"deep/a/{n}" for n in range(40)),
    ]
    single = items(of(f"{s3_uri}/raw/b.tar"))
    assert [item.data for item in single] == [data for _, data in members]
    open_store(s3_uri).put("raw/b.tar", tar(members)[:20_000])
    with pytest.raises(SourceError, match=r"raw/b\.tar: expected .* more bytes .* cut short"):
        items(of(f"{s3_uri}/raw/b.tar"))
    with pytest.raises(SourceError, match=r"expected WebDataset shards \(\.tar\), got none among 0 other files"):
        items(of(f"{s3_uri}/nothing.tar"))


def test_our_own_shards_are_read(tmp_path: Path) -> None:
    samples = [shards.Sample.of(f"{n:020d}", b"png%d" % n, n % 2, {"name": f"{n}"}) for n in range(4)]
    (tmp_path / "train-0.tar").write_bytes(shards.write_shard(samples))
    assert [(item.data, item.label) for item in items(of(tmp_path))] == [
        (b"png0", "0"),
        (b"png1", "1"),
        (b"png2", "0"),
        (b"png3", "1"),
    ]
