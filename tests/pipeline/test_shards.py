"""Shards: the same bytes each time, read by everybody, and no damage that goes unseen."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from pipeline import shards
from pipeline.artifacts import Dataset, Shard
from pipeline.decoding import Room, decode_into
from pipeline.errors import IntegrityError
from pipeline.shards import Block, Sample, decode_shard, open_shard, read_shard, write_blocks, write_shard
from pipeline.store import FileStore, Store, open_store
from pipeline.ustar import BLOCK
from tests.made import Layout, Part, made_dataset, random_part, shard_bytes

KEYS = st.text("0123456789abcdefXYZ_-", min_size=1, max_size=64)
SAMPLES = st.lists(
    st.builds(
        Sample.of,
        KEYS,
        st.binary(max_size=3 * BLOCK),
        st.none() | st.integers(0, 99_999),
        st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3),
        st.sampled_from(shards.IMAGE_EXTENSIONS),
    ),
    max_size=6,
    unique_by=lambda sample: sample.key,
)
THREE = [Sample.of(f"{n:04d}", bytes([n]) * (500 + 20 * n), n or None, {"name": f"é/{n}.png"}) for n in range(3)]


@given(SAMPLES)
def test_what_is_written_is_read(samples: list[Sample]) -> None:
    data = write_shard(samples)
    assert list(read_shard(data)) == samples
    assert write_shard(read_shard(data)) == data
    assert len(data) % BLOCK == 0


def test_a_sample_says_what_it_holds() -> None:
    sample = Sample.of("00ff", b"picture", 3, {"name": "a.png", "seed": 7})
    assert (sample.image, sample.label, sample.info) == (b"picture", 3, {"name": "a.png", "seed": 7})
    assert Sample.of("00ff", b"picture", None, {}).label is None
    with pytest.raises(IntegrityError, match="sample 1: expected a JSON object"):
        assert Sample("1", {"json": b"[]", "png": b""}).info


def test_the_bytes_are_the_same_for_ever() -> None:
    """A change of this digest means that a rerun no longer gives the bytes that older records state."""
    digest = hashlib.sha256(write_shard(THREE)).hexdigest()
    assert digest == "65362184af013262455062e6c633453147d874f87187d9288f0ccda1ee1b81f3"


def test_tar_readers_find_plain_files_without_time_or_owner() -> None:
    with tarfile.open(fileobj=io.BytesIO(write_shard(THREE))) as archive:
        members = archive.getmembers()
        contents = {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]  # all files
    assert contents == {f"{s.key}.{extension}": data for s in THREE for extension, data in s.members.items()}
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isreg()) for m in members} == {
        (0, 0, 0, "", "", 0o644, True)
    }


def test_stock_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(write_shard(THREE))
    found = webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False)
    read = [
        (s["__key__"], {extension: s[extension] for extension in ("cls", "json", "png") if extension in s})
        for s in found
    ]
    assert read == [(sample.key, dict(sample.members)) for sample in THREE]


def test_a_shard_cut_anywhere_is_refused() -> None:
    data = write_shard(THREE)
    for length in (*range(0, len(data), BLOCK), 1, 511, 513, len(data) - 1):
        with pytest.raises(IntegrityError):
            list(read_shard(data[:length]))
    with pytest.raises(IntegrityError):
        list(read_shard(data + bytes(BLOCK)))


def test_a_flipped_bit_outside_the_contents_is_refused() -> None:
    data = write_shard(THREE[:1])
    contents = [range(start, start + size) for start, size in ((BLOCK, 21), (3 * BLOCK, 500))]
    for position in range(len(data)):
        if any(position in content for content in contents):
            continue  # `open_shard` sees these
        damaged = bytearray(data)
        damaged[position] ^= 4
        with pytest.raises(IntegrityError):
            list(read_shard(bytes(damaged)))


def tar(*members: tuple[str, bytes]) -> bytes:
    """What another writer might leave in the store, with headers like ours."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    end = sum(BLOCK + len(content) + -len(content) % BLOCK for _, content in members)
    return buffer.getvalue()[: end + 2 * BLOCK]


def test_the_headers_are_those_of_tarfile() -> None:
    members = [(f"{sample.key}.{name}", data) for sample in THREE for name, data in sample.members.items()]
    assert write_shard(THREE) == tar(*members)


@pytest.mark.parametrize(
    "members",
    [
        [("a.json", b"{}"), ("a.pkl", b"cos\nsystem\n"), ("a.png", b"")],
        [("a.json", b"{}"), ("a.png", b""), ("a.png", b"")],
        [("a.json", b"{}"), ("b.png", b"")],
        [("a.png", b"")],
        [("a.json", b"{}"), ("a.jpg", b""), ("a.png", b"")],
        [("/etc/a.json", b"{}"), ("/etc/a.png", b"")],
        [("\x80.json", b"{}"), ("\x80.png", b"")],
        [("a.cls", b"1x"), ("a.json", b"{}"), ("a.png", b"")],
        [("../a.json", b"{}"), ("../a.png", b"")],
        [("a.json", b" " * (65 << 10)), ("a.png", b"")],
        [("a.b.json", b"{}"), ("a.b.png", b"")],
        [
            ("a.json", b"{}"),
            ("a.png", b"1"),
            ("b.json", b"{}"),
            ("b.png", b""),
            ("a.json", b"{}"),
            ("a.png", b""),
        ],
        [("a", b"")],
    ],
)
def test_what_the_writer_would_not_write_is_refused(members: list[tuple[str, bytes]]) -> None:
    with pytest.raises(IntegrityError, match=r"^shard: ") as caught:
        list(read_shard(tar(*members)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample.of("a.b", b"", 0, {}), "expected a key of 1 to 64"),
        (Sample.of("", b"", 0, {}), "expected a key of 1 to 64"),
        (Sample("a", {"png": b""}), "expected json, one of jpg, png, webp, and cls"),
        (Sample("a", {"png": b"", "json": b"{}", "jpg": b""}), "expected json, one of jpg, png, webp, and cls"),
        (Sample("a", {"png": b"", "json": b"{}", "pyd": b""}), "expected json, one of jpg, png, webp, and cls"),
        (Sample.of("a", b"", -1, {}), "expected a class index"),
        (Sample.of("a", b"", 1_234_567, {}), "expected cls of at most 6 bytes"),
    ],
)
def test_the_writer_refuses_what_the_reader_would(sample: Sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard([sample])
    with pytest.raises(ValueError, match="expected a key once"):
        write_shard([THREE[0], THREE[0]])


# --- blocks ---

BLOCKS = [random_part(5, (4, 6, 3), first_key=40), random_part(3, (4, 6, 3), first_key=7, classes=0)]


@st.composite
def parts(draw: st.DrawFn) -> Part:
    shape = (draw(st.integers(1, 9)), *draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))))
    images = draw(numpy_st.arrays(np.uint8, shape))
    labels = draw(st.none() | numpy_st.arrays(np.int64, shape[0], elements=st.integers(0, 2)))
    return Part(images, labels, draw(numpy_st.arrays(np.uint64, shape[0])))


@settings(max_examples=50, deadline=None)
@given(part=parts(), layout=st.sampled_from(["sample", "block"]), block_images=st.integers(1, 5))
def test_what_is_written_is_decoded(part: Part, layout: Layout, block_images: int, tmp_path_factory: Any) -> None:
    keys = np.unique(part.keys_N)
    part = Part(part.images_NHWC[: len(keys)], None if part.labels_N is None else part.labels_N[: len(keys)], keys)
    dataset = made_dataset(open_store(f"file://{tmp_path_factory.mktemp('made')}"), [part], layout)
    data = shard_bytes(part, layout, block_images)
    for threads in (1, 3):
        decoded = decode_shard(data, dataset, dataset.shards[0], threads)
        assert np.array_equal(decoded.images_NHWC, part.images_NHWC)
        assert np.array_equal(decoded.labels_N, np.zeros(len(keys)) if part.labels_N is None else part.labels_N)
        assert np.array_equal(decoded.keys_N, part.keys_N)
        kinds = [array.dtype.str for array in (decoded.images_NHWC, decoded.labels_N, decoded.keys_N)]
        assert kinds == ["|u1", "<i8", "<u8"]
        room = Room.of(dataset, dataset.shards[0])
        decode_into(data, dataset, dataset.shards[0], room, threads)
        assert np.array_equal(room.images_NCHW, part.images_NHWC.transpose(0, 3, 1, 2))


def test_the_bytes_of_blocks_are_the_same_for_ever() -> None:
    data = b"".join(shard_bytes(part, "block", 2) for part in BLOCKS)
    assert hashlib.sha256(data).hexdigest() == "c233d88a44f8f92f291dd97fac76514ff8acf904339995f99eefbbd1b9f11fe7"


def test_stock_webdataset_reads_the_same_blocks(tmp_path: Path) -> None:
    part = BLOCKS[0]
    assert part.labels_N is not None
    (tmp_path / "train.tar").write_bytes(shard_bytes(part, "block", 2))
    read = list(webdataset.WebDataset(str(tmp_path / "train.tar"), shardshuffle=False).decode())
    assert [record["__key__"] for record in read] == [f"{key:020d}" for key in part.keys_N[::2].tolist()]
    assert np.array_equal(np.concatenate([record["images.npy"] for record in read]), part.images_NHWC)
    assert np.array_equal(np.concatenate([record["keys.npy"] for record in read]), part.keys_N)
    assert np.array_equal(np.concatenate([record["labels.npy"] for record in read]), part.labels_N)
    assert [key for record in read for key in record["json"]["keys"]] == [f"{key:020d}" for key in part.keys_N.tolist()]
    assert [name for record in read for name in record["json"]["names"]] == [f"{key}.png" for key in part.keys_N]
    assert [digest for record in read for digest in record["json"]["sha256"]] == [f"{key:064x}" for key in part.keys_N]


def test_numpy_reads_the_arrays_without_pickle() -> None:
    with tarfile.open(fileobj=io.BytesIO(shard_bytes(BLOCKS[1], "block"))) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]  # all files
    key = f"{7:020d}"
    assert list(contents) == [f"{key}.images.npy", f"{key}.json", f"{key}.keys.npy"]
    images = np.load(io.BytesIO(contents[f"{key}.images.npy"]), allow_pickle=False)
    assert np.array_equal(images, BLOCKS[1].images_NHWC)
    assert json.loads(contents[f"{key}.json"])["names"] == ["7.png", "8.png", "9.png"]


def test_a_block_of_uneven_parts_is_refused() -> None:
    part = BLOCKS[0]
    for block in (
        Block(part.images_NHWC, part.keys_N[1:], part.labels_N, ["a"] * 5, ["b"] * 5),
        Block(part.images_NHWC, part.keys_N, part.labels_N, ["a"] * 5, ["b"] * 4),
        Block(part.images_NHWC[0], part.keys_N[:4], None, ["a"] * 4, ["b"] * 4),
    ):
        with pytest.raises(ValueError, match="block: expected images"):
            write_blocks([block])


def claims(dataset: Dataset, **lies: Any) -> tuple[Dataset, Shard]:
    """The record with other statements, and its shard."""
    shard_lies = {name: value for name, value in lies.items() if name in Shard.model_fields}
    shard = dataset.shards[0].model_copy(update=shard_lies)
    return dataset.model_copy(update={name: value for name, value in lies.items() if name not in shard_lies}), shard


@pytest.mark.parametrize("layout", ["sample", "block"])
@pytest.mark.parametrize(
    "lies",
    [{"samples": 4}, {"samples": 6}, {"height": 5}, {"width": 4}, {"channels": 1}, {"classes": ("ant",)}],
    ids=str,
)
def test_a_shard_that_is_not_what_its_record_says_is_refused(
    layout: Layout, lies: dict[str, Any], tmp_path: Path
) -> None:
    dataset = made_dataset(open_store(f"file://{tmp_path}"), [BLOCKS[0]], layout)
    with pytest.raises(IntegrityError, match=r"^dataset made, shard train-[0-9a-f]{16}.tar: .*expected") as caught:
        decode_shard(shard_bytes(BLOCKS[0], layout, 2), *claims(dataset, **lies))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "members",
    [
        [("1.images.npy", b"\x93NUMPY"), ("1.json", b"{}")],
        [("1.images.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False}" + bytes(99))],
        [("1.json", b"{}"), ("1.keys.npy", b"")],
        [("1.pickle", b"cos\nsystem\n.")],
        [],
    ],
)
@pytest.mark.parametrize("layout", ["sample", "block"])
def test_hostile_members_are_refused(members: list[tuple[str, bytes]], layout: Layout, tmp_path: Path) -> None:
    dataset = made_dataset(open_store(f"file://{tmp_path}"), [BLOCKS[0]], layout)
    with pytest.raises(IntegrityError):
        decode_shard(tar(*members), dataset, dataset.shards[0])


# --- from the store ---


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RETRY_WAITS_SECONDS", (0.0,))


@pytest.mark.usefixtures("no_waits")
def test_open_shard_checks_length_and_digest(store: Store) -> None:
    dataset = made_dataset(store, [BLOCKS[0]], "sample")
    shard = dataset.shards[0]
    key, repair = dataset.key_of(shard), f"run `atelier repair {store.uri}/{dataset.ref}`"
    data = store.get(key)
    assert open_shard(store, dataset, shard) == data
    store.delete(key)
    with pytest.raises(IntegrityError, match=f"{key}: expected {len(data):,} bytes, found no object; {repair}"):
        open_shard(store, dataset, shard)
    store.put(key, data[:-BLOCK])
    with pytest.raises(IntegrityError, match=f"{key}: expected {len(data):,} bytes, got .*; {repair}"):
        open_shard(store, dataset, shard)
    flipped = bytearray(data)
    flipped[BLOCK] ^= 1
    store.put(key, bytes(flipped))
    with pytest.raises(IntegrityError, match=f"{key}: expected SHA-256 {shard.sha256}, got .*; {repair}"):
        open_shard(store, dataset, shard)


class Shaky(FileStore):
    """A folder whose first answers are cut short."""

    def __init__(self, uri: str, failures: int) -> None:
        super().__init__(uri)
        self.failures = failures

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        data, etag = super().get_with_etag(key)
        self.failures -= 1
        return (data[:-1] if self.failures >= 0 else data), etag


def test_a_shard_that_was_damaged_on_its_way_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RETRY_WAITS_SECONDS", (0.0, 0.0))
    dataset = made_dataset(open_store(f"file://{tmp_path}"), [BLOCKS[0]])
    assert open_shard(Shaky(f"file://{tmp_path}", failures=2), dataset, dataset.shards[0])
    with pytest.raises(IntegrityError, match="repair"):
        open_shard(Shaky(f"file://{tmp_path}", failures=3), dataset, dataset.shards[0])


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("layout", ["sample", "block"])
def test_each_truncation_and_each_flipped_byte_is_found(layout: Layout, tmp_path: Path) -> None:
    store = FileStore(f"file://{tmp_path}")
    dataset = made_dataset(store, [random_part(2)], layout)
    shard = dataset.shards[0]
    path = tmp_path / dataset.key_of(shard)
    data = path.read_bytes()
    assert open_shard(store, dataset, shard) == data
    path.unlink()  # below it is written in place, which is quicker than `put`
    for length in range(0, len(data), BLOCK):
        path.write_bytes(data[:length])
        with pytest.raises(IntegrityError, match="expected"):
            open_shard(store, dataset, shard)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="expected SHA-256"):
            open_shard(store, dataset, shard)
