"""Ingest: the same dataset each time, however it is interrupted, and none when the input is wrong."""

import hashlib
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import Dataset, Rejected
from pipeline.decoders import decode_image
from pipeline.errors import SourceError
from pipeline.ingest import Progress, find_dataset, ingest
from pipeline.pictures import decode_png, encode_png
from pipeline.recipe import Recipe
from pipeline.shards import Sample, decode_shard, open_shard, read_shard
from pipeline.sources import Item
from pipeline.sources.digits import Source as Digits
from pipeline.store import Store, open_store

MODELS = {"vae": {"family": "vae", "steps": 1}}


def recipe(source: Mapping[str, Any], checks: Mapping[str, Any] | None = None, **dataset: Any) -> Recipe:
    """8x8 grey, a record an image and half held out, unless `dataset` says otherwise."""
    fields = {"channels": 1, "height": 8, "width": 8, "held_out": 0.5, "layout": "sample", **dataset}
    return Recipe.model_validate(
        {"name": "cats", "source": dict(source), "dataset": fields, "checks": dict(checks or {}), "models": MODELS}
    )


DIGITS = recipe({"kind": "digits"}, shard_images=200)


def folder_of(path: Path, num_images: int = 40, first: int = 0, classes: int = 2) -> Path:
    """Random 8x8 images, numbered: the same number is the same image."""
    for number in range(first, first + num_images):
        file = path / f"class{number % classes}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8)
        file.write_bytes(encode_png(pixels))
    return path


def of(path: Path, checks: Mapping[str, Any] | None = None, **dataset: Any) -> Recipe:
    return recipe({"kind": "folder", "path": str(path)}, checks, **dataset)


def contents(store: Store) -> dict[str, bytes]:
    """What a consumer may see: all but the staged parts."""
    return {entry.key: store.get(entry.key) for entry in store.list() if "/staging/" not in entry.key}


def empty(store: Store) -> None:
    for entry in list(store.list()):
        store.delete(entry.key)


def samples(store: Store, dataset: Dataset) -> dict[str, list[Sample]]:
    """All samples by split, in the order of the shards."""
    found: dict[str, list[Sample]] = {split: [] for split in dataset.splits}
    for shard in dataset.shards:
        found[shard.split] += read_shard(open_shard(store, dataset, shard))
    return found


def test_digits_become_a_dataset_that_holds_each_of_them_once(store: Store) -> None:
    assert find_dataset(store, DIGITS) is None
    seen: list[Progress] = []
    dataset = ingest(store, DIGITS, seen.append)
    assert find_dataset(store, DIGITS) == dataset
    assert (seen[-1].done, seen[-1].total, seen[-1].rejected) == (1797, 1797, 0)
    assert sum(dataset.splits.values()) == 1797
    assert abs(dataset.splits["test"] - 1797 / 2) < 4 * (1797 / 4) ** 0.5
    assert [shard.samples for shard in dataset.shards if shard.split == "train"][:-1] == [200] * 4
    found = samples(store, dataset)
    assert {split: len(rows) for split, rows in found.items()} == dataset.splits
    pixels = {(decode_png(s.image).tobytes(), str(s.label)) for rows in found.values() for s in rows}
    source = Digits()
    items = [item for _, item in source.read([p for p in source.pieces() if not isinstance(p, Rejected)])]
    assert pixels == {(np.asarray(item.data).tobytes(), item.label) for item in items if isinstance(item, Item)}


def test_each_shard_states_its_labels_and_holds_all_classes(store: Store) -> None:
    dataset = ingest(store, DIGITS)
    for shard in dataset.shards:
        labels = [sample.label for sample in read_shard(open_shard(store, dataset, shard))]
        assert shard.labels == {str(label): labels.count(label) for label in sorted(set(labels), key=str)}
        if shard.samples == 200:
            assert len(shard.labels) == 10
    for rows in samples(store, dataset).values():
        keys = [sample.key for sample in rows]
        assert keys == sorted(keys)  # by digest, which shuffles the classes of a source that is sorted by them


def test_a_sample_is_traced_to_the_digest_of_its_source(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    for rows in samples(store, ingest(store, of(root))).values():
        for sample in rows:
            data = (root / sample.info["name"]).read_bytes()
            assert sample.info["sha256"] == hashlib.sha256(data).hexdigest()
            assert sample.label == int(sample.info["name"][5])


def test_a_finished_dataset_is_returned_untouched(store: Store) -> None:
    dataset = ingest(store, DIGITS)
    before = {entry.key: (entry.modified, entry.etag) for entry in store.list()}
    assert ingest(store, DIGITS, lambda _: pytest.fail("read the source again")) == dataset
    assert {entry.key: (entry.modified, entry.etag) for entry in store.list()} == before


def test_a_rerun_gives_the_same_bytes(store: Store) -> None:
    dataset = ingest(store, DIGITS)
    before = contents(store)
    empty(store)
    assert ingest(store, DIGITS) == dataset
    assert contents(store) == before
    assert len(list(store.list())) == len(before)  # no part is left behind


def test_the_same_images_elsewhere_are_the_same_dataset(store: Store, tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one")
    other = Path(shutil.copytree(one, tmp_path / "other"))
    dataset = ingest(store, of(one))
    again = ingest(store, of(other))
    assert again == dataset
    assert find_dataset(store, of(other)) == dataset
    assert ingest(store, of(one, height=9)).id != dataset.id


@pytest.mark.parametrize("layout", ["sample", "block"])
def test_both_layouts_hold_the_same_samples(store: Store, tmp_path: Path, layout: str) -> None:
    root = folder_of(tmp_path / "raw", 600)
    dataset = ingest(store, of(root, layout=layout, block_images=256, shard_images=280))
    assert dataset.layout == layout
    found = {}
    for shard in dataset.shards:
        decoded = decode_shard(open_shard(store, dataset, shard), dataset, shard)
        for key, image, label in zip(
            decoded.keys_N.tolist(), decoded.images_NHWC, decoded.labels_N.tolist(), strict=True
        ):
            found[key] = (image.tobytes(), label)
    wanted = {}
    for number in range(600):
        file = root / f"class{number % 2}" / f"{number:03d}.png"
        pixels = decode_image(file.read_bytes(), "png")
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        key = int.from_bytes(hashlib.sha256(digest + f"class{number % 2}".encode()).digest()[:8])
        wanted[key] = (pixels.tobytes(), number % 2)
    assert found == wanted


def test_encodings_of_layout_sample(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    for encoding, quality in (("jpg", 95), ("webp", 100)):
        dataset = ingest(store, of(root, channels=3, encoding=encoding, quality=quality))
        for rows in samples(store, dataset).values():
            assert {sample.extension for sample in rows} == {encoding}


def test_statistics_are_those_of_the_pixels(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw", 50)
    dataset = ingest(store, of(root))
    images = np.stack([decode_image(file.read_bytes(), "png") for file in sorted(root.rglob("*.png"))])
    assert dataset.statistics.mean == pytest.approx((images.mean(),))
    assert dataset.statistics.std == pytest.approx((images.std(),))
    assert {name: sum(counts[name] for counts in dataset.statistics.labels.values()) for name in dataset.classes} == {
        "class0": 25,
        "class1": 25,
    }
    assert dataset.statistics.source_sides == {"8": 50}
    assert dataset.statistics.source_bytes == sum(file.stat().st_size for file in root.rglob("*.png"))


KILLED = """
import os, signal, sys
from pipeline.ingest import ingest
from pipeline.recipe import load_recipe
from pipeline.store import open_store
store = open_store(sys.argv[1])
kind, puts = type(store), []
put = kind.put
def put_and_die(self, key, data):
    puts.append(put(self, key, data))
    if len(puts) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return puts[-1]
kind.put = put_and_die
ingest(store, load_recipe(sys.argv[2]))
"""


def test_killed_between_writes_nothing_is_published_and_a_rerun_ends_the_same(store: Store) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED, store.uri, DIGITS.to_json()], check=False, timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert find_dataset(store, DIGITS) is None
    dataset = ingest(store, DIGITS)
    after = contents(store)
    empty(store)
    assert ingest(store, DIGITS) == dataset
    assert contents(store) == after


def test_two_at_once_end_with_one_dataset(store: Store) -> None:
    barrier = threading.Barrier(2)

    def start(_: int) -> Dataset:
        mine = open_store(store.uri)
        barrier.wait()
        return ingest(mine, DIGITS)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(start, range(2))
    assert one == other == find_dataset(store, DIGITS)
    assert len(contents(store)) == len(one.shards) + len(one.files) + 2  # the record and the head
    assert sum(map(len, samples(store, one).values())) == 1797


def test_a_sample_keeps_its_split_key_and_class_when_images_and_classes_are_added(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    before = samples(store, ingest(store, of(root)))
    folder_of(root, num_images=30, first=40)
    write_class(root / "a-new-class")  # first by name, but indices stay
    dataset = ingest(store, of(root))
    assert dataset.classes == ("class0", "class1", "a-new-class")
    after = samples(store, dataset)
    for split, rows in before.items():
        later = {sample.key: sample for sample in after[split]}
        for sample in rows:
            assert later[sample.key] == sample


def write_class(folder: Path) -> None:
    folder.mkdir()
    for number in range(900, 904):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))


def test_more_held_out_only_moves_samples_to_test(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    few = samples(store, ingest(store, of(root, held_out=0.3)))
    many = samples(store, ingest(store, of(root, held_out=0.6)))
    assert {sample.key for sample in few["test"]} < {sample.key for sample in many["test"]}


def test_exact_duplicates_count_once_by_pixels_and_class(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    shutil.copy(root / "class0" / "000.png", root / "class0" / "again.png")
    shutil.copy(root / "class0" / "000.png", root / "class1" / "other.png")
    dataset = ingest(store, of(root))
    assert dataset.num_duplicates == 1
    assert sum(dataset.splits.values()) == 41
    found = samples(store, dataset)
    names = {sample.info["name"]: split for split, rows in found.items() for sample in rows}
    assert names["class0/000.png"] == names["class1/other.png"]  # the split is by the pixels
    assert "class0/again.png" not in names


def test_unlabelled_colour_images_are_brought_to_the_shape(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 31, 3), dtype=np.uint8)
        (root / f"{number}.png").write_bytes(encode_png(pixels))
    dataset = ingest(store, of(root, channels=3, height=10, width=12))
    assert (dataset.classes, dataset.shards[0].labels) == ((), {})
    for rows in samples(store, dataset).values():
        assert {(sample.label, decode_png(sample.image).shape) for sample in rows} == {(None, (10, 12, 3))}


def test_unreadable_images_are_set_aside_with_a_reason(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw", num_images=60)
    whole = (root / "class0" / "000.png").read_bytes()
    (root / "class0" / "cut.png").write_bytes(whole[:60])
    (root / "class0" / "huge.png").write_bytes(huge_png())
    (root / "class1" / "notes.txt").write_text("hello")
    (root / "class1" / "text.png").write_text("hello")
    seen: list[Progress] = []
    dataset = ingest(store, of(root, {"max_rejected": 0.1}), seen.append)
    assert (dataset.num_rejected, seen[-1].rejected, seen[-1].done) == (4, 3, 63)
    reasons = {rejected.name: rejected.reason for rejected in dataset.rejected}
    assert reasons["class0/cut.png"].startswith("damaged: ")
    assert reasons["class0/huge.png"] == "its pixels are more than max_pixels 50,000,000"
    assert reasons["class1/notes.txt"] == "not an image"
    assert reasons["class1/text.png"].startswith("not a PNG")


def test_the_record_lists_the_first_hundred_rejects(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    for number in range(120):
        (root / "class0" / f"{number}.txt").write_text("hello")
    dataset = ingest(store, of(root, {"max_rejected": 0.9}))
    assert (len(dataset.rejected), dataset.num_rejected) == (100, 120)


def huge_png() -> bytes:
    """A PNG whose header states 20,000 x 20,000 (a whole one is in test_pictures)."""
    data = bytearray(encode_png(np.zeros((8, 8, 1), np.uint8)))
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def cut_png(root: Path) -> None:
    file = folder_of(root) / "class0" / "000.png"
    file.write_bytes(file.read_bytes()[:60])


def bomb(root: Path) -> None:
    (folder_of(root) / "class0" / "huge.png").write_bytes(huge_png())


def only_text(root: Path) -> None:
    root.mkdir()
    (root / "notes.txt").write_text("hello")


def no_image_in_a_class(root: Path) -> None:
    (folder_of(root) / "birds").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "expected a folder of images at .*raw, found none"),
        (Path.mkdir, "expected images .* got an empty folder"),
        (only_text, "expected images .* got none among 1 other files, first notes.txt"),
        (
            cut_png,
            r"at most 0.0% of 40 inputs to be rejected, got 1 \(class0/000.png: damaged: .*max_rejected",
        ),
        (bomb, r"at most 0.0% of 41 inputs .*got 1 \(class0/huge.png: its pixels are more than max_pixels"),
        (no_image_in_a_class, "expected 1 images or more of each class .*, got 0 of birds"),
        (
            lambda root: folder_of(root, 1, classes=1),
            "expected 4 images or more .*got 1; add images",
        ),
    ],
)
def test_a_wrong_input_is_one_clear_line_and_publishes_nothing(
    store: Store, tmp_path: Path, make: Any, message: str
) -> None:
    make(tmp_path / "raw")
    with pytest.raises(SourceError, match=message) as caught:
        ingest(store, of(tmp_path / "raw"))
    assert "\n" not in str(caught.value)
    assert contents(store) == {}
