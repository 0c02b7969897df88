"""Shards: the same bytes each time, read by everybody, and no damage that goes unseen."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import Dataset, Shard
from pipeline.errors import IntegrityError
from pipeline.shards import BLOCK, Sample, open_shard, read_shard, write_shard
from pipeline.store import Store

KEYS = st.text("0123456789abcdefXYZ_-", min_size=1, max_size=64)
SAMPLES = st.lists(
    st.builds(
        Sample.of,
        KEYS,
        st.binary(max_size=3 * BLOCK),
        st.none() | st.integers(0, 99_999),
        st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3),
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
    assert (sample.png, sample.label, sample.info) == (b"picture", 3, {"name": "a.png", "seed": 7})
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
        (Sample("a", {"png": b""}), "expected cls, json, png"),
        (Sample("a", {"png": b"", "json": b"{}", "pyd": b""}), "expected cls, json, png"),
        (Sample.of("a", b"", -1, {}), "expected a class index"),
        (Sample.of("a", b"", 1_234_567, {}), "expected cls of at most 6 bytes"),
    ],
)
def test_the_writer_refuses_what_the_reader_would(sample: Sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard([sample])
    with pytest.raises(ValueError, match="expected a key once"):
        write_shard([THREE[0], THREE[0]])


def test_open_shard_checks_length_and_digest(store: Store) -> None:
    data = write_shard(THREE)
    digest = hashlib.sha256(data).hexdigest()
    shard = Shard(name="train-000000.tar", bytes=len(data), sha256=digest, split="train", samples=3, labels={})
    dataset = Dataset(
        code_version="0",
        id="0123",
        name="cats",
        channels=1,
        height=8,
        width=8,
        classes=(),
        splits={"train": 3},
        shards=(shard,),
        rejected=(),
        num_rejected=0,
        num_duplicates=0,
        source={},
        source_fingerprint="",
    )
    key = "datasets/cats/0123/train-000000.tar"
    with pytest.raises(IntegrityError, match=rf"{key}: expected .* bytes, found no object; delete .*ingest"):
        open_shard(store, dataset, shard)
    store.put(key, data)
    assert open_shard(store, dataset, shard) == data
    store.put(key, data[:-BLOCK])
    with pytest.raises(IntegrityError, match=rf"{key}: expected {len(data):,} bytes, got .*; delete .*ingest"):
        open_shard(store, dataset, shard)
    flipped = bytearray(data)
    flipped[BLOCK] ^= 1
    store.put(key, bytes(flipped))
    with pytest.raises(IntegrityError, match=f"{key}: expected SHA-256 {digest}, got .*; delete .*dataset cats"):
        open_shard(store, dataset, shard)
