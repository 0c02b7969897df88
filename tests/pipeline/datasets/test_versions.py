"""Versions of a dataset: only what is new is decoded, shards are shared, what was taken down stays out, repair."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import Dataset, Shard
from pipeline.datasets import takedown
from pipeline.datasets.repair import repair
from pipeline.datasets.versions import find_head, takedowns, versions
from pipeline.errors import IntegrityError, SourceError
from pipeline.ingest import Progress, find_dataset, ingest
from pipeline.pictures import encode_png
from pipeline.shards import open_shard
from pipeline.store import Store, open_store
from tests.pipeline.test_ingest import folder_of, of, samples

LAYOUTS = ["sample", "block"]


def shard_names(dataset: Dataset) -> set[str]:
    return {shard.name for shard in dataset.shards}


def keys(store: Store, dataset: Dataset) -> dict[str, set[str]]:
    return {split: {sample.key for sample in rows} for split, rows in samples(store, dataset).items()}


def test_a_second_ingest_decodes_what_is_new_and_uses_the_other_shards_again(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw", 400)
    recipe = of(root, shard_images=20)
    first = ingest(store, recipe)
    folder_of(root, 10, first=400)
    removed = [root / "class0" / "000.png", root / "class1" / "001.png", root / "class0" / "002.png"]
    for file in removed:
        file.unlink()
    seen: list[Progress] = []
    second = ingest(store, recipe, seen.append)
    assert (seen[-1].done, seen[-1].total) == (10, 10)
    changes = second.changes
    assert (changes.added, changes.removed, changes.decoded_images) == (10, 3, 10)
    assert second.parent == first.ref
    assert changes.reused_shards == len(shard_names(first) & shard_names(second)) >= len(first.shards) - 5
    before, after = keys(store, first), keys(store, second)
    assert sum(map(len, after.values())) == 407
    assert sum(len(before[split] - after[split]) for split in before) == 3
    assert not before["test"] & after["train"] and not before["train"] & after["test"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_version_holds_what_an_ingest_from_nothing_holds(store: Store, tmp_path: Path, layout: str) -> None:
    root = folder_of(tmp_path / "raw", 700)
    recipe = of(root, layout=layout, shard_images=300, block_images=256)
    ingest(store, recipe)
    folder_of(root, 80, first=700)
    (root / "class1" / "011.png").unlink()
    grown = ingest(store, recipe)
    fresh = ingest(open_store(f"file://{tmp_path}/fresh"), recipe)
    assert grown.statistics == fresh.statistics
    assert grown.splits == fresh.splits
    for field in ("num_inputs", "num_rejected", "num_duplicates", "classes"):
        assert getattr(grown, field) == getattr(fresh, field)


def test_a_touched_file_changes_nothing(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    first = ingest(store, of(root))
    os.utime(root / "class0" / "000.png", (1, 1))
    seen: list[Progress] = []
    assert ingest(store, of(root), seen.append) == first
    assert seen[-1].done == 1
    assert ingest(store, of(root), lambda _: pytest.fail("read it again")) == first


def test_a_sample_stays_while_a_duplicate_of_it_is_there(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    data = (root / "class0" / "000.png").read_bytes()
    (root / "class0" / "zz.png").write_bytes(data)
    first = ingest(store, of(root))
    (root / "class0" / "000.png").unlink()
    second = ingest(store, of(root))
    assert second.splits == first.splits
    names = {sample.info["name"] for rows in samples(store, second).values() for sample in rows}
    assert "class0/zz.png" in names and "class0/000.png" not in names


def test_a_class_that_is_gone_moves_the_indices_without_decoding(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw", 90, classes=3)
    ingest(store, of(root))
    for file in (root / "class0").iterdir():
        file.unlink()
    (root / "class0").rmdir()
    second = ingest(store, of(root))
    assert second.classes == ("class1", "class2")
    assert (second.changes.decoded_images, second.changes.removed) == (0, 30)
    for rows in samples(store, second).values():
        for sample in rows:
            assert second.classes[sample.label or 0] == sample.info["name"].split("/")[0]


def test_near_duplicates_never_stand_on_both_sides(store: Store, tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "raw"
    root.mkdir()
    for number in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)[..., None]
        for copy in range(4):
            pixels = np.clip(smooth + rng.integers(-2, 3, smooth.shape), 0, 255).astype(np.uint8)
            (root / f"{number:02d}-{copy}.png").write_bytes(encode_png(pixels))
    counted = ingest(store, of(root, height=32, width=32, near_duplicates="count", near_distance=8))
    assert counted.num_near_duplicates == 120
    sides: dict[str, set[str]] = {}
    for split, rows in samples(store, counted).items():
        for sample in rows:
            sides.setdefault(sample.info["name"][:2], set()).add(split)
    assert len(sides) == 40
    assert all(len(splits) == 1 for splits in sides.values())
    ignored = ingest(store, of(root, height=32, width=32))
    assert ignored.num_near_duplicates == 0
    dropped = ingest(store, of(root, height=32, width=32, near_duplicates="drop", near_distance=8))
    assert sum(dropped.splits.values()) == 40


def test_a_new_near_duplicate_takes_the_split_of_the_old_or_is_dropped_between_two(
    store: Store, tmp_path: Path
) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    pictures = smooth_pictures(60)
    for number, picture in enumerate(pictures):
        (root / f"{number:02d}.png").write_bytes(encode_png(picture))
    recipe = of(root, height=32, width=32, near_duplicates="count", near_distance=8)
    first = ingest(store, recipe)
    split_of = {s.info["name"]: split for split, rows in samples(store, first).items() for s in rows}
    for number, picture in enumerate(pictures):
        brighter = np.clip(picture.astype(int) + 1, 0, 255).astype(np.uint8)
        (root / f"{number:02d}-again.png").write_bytes(encode_png(brighter))
    second = ingest(store, recipe)
    after = {s.info["name"]: split for split, rows in samples(store, second).items() for s in rows}
    assert all(after[name] == split for name, split in split_of.items())
    assert all(after[f"{name[:2]}.png"] == split for name, split in after.items())
    assert second.num_near_duplicates >= 60


def smooth_pictures(count: int) -> list[Any]:
    rng = np.random.default_rng(1)
    coarse = [Image.fromarray(rng.integers(0, 256, (7, 7), dtype=np.uint8)) for _ in range(count)]
    return [np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))[..., None] for image in coarse]


@pytest.mark.parametrize("by", ["name", "key"])
def test_what_is_taken_down_is_gone_and_stays_gone(store: Store, tmp_path: Path, by: str) -> None:
    root = folder_of(tmp_path / "raw")
    first = ingest(store, of(root))
    held = samples(store, first)
    victim = next(sample for rows in held.values() for sample in rows if sample.info["name"] == "class0/004.png")
    taken, reach = takedown.drop(store, of(root), [victim.key if by == "key" else "class0/004.png"], "me", "asked to")
    assert taken[0].source_sha256 == victim.info["sha256"]
    assert reach.datasets == (first.ref,)
    assert len(reach.shards) == 1
    second = ingest(store, of(root))
    assert (second.changes.removed, second.changes.decoded_images) == (1, 0)
    assert second.dropped == (victim.info["sha256"],)
    copy = (root / "class0" / "004.png").read_bytes()
    (root / "class1" / "copy.png").write_bytes(copy)  # under another name and class
    third = ingest(store, of(root))
    fourth = ingest(store, of(root, fit="stretch"))  # another line
    for version in (second, third, fourth):
        hashes = {sample.info["sha256"] for rows in samples(store, version).values() for sample in rows}
        assert victim.info["sha256"] not in hashes
        assert sum(version.splits.values()) == 39
    assert {version.ref for version in versions(store, "cats")} >= {first.ref, second.ref}


def test_a_takedown_that_leads_back_to_an_earlier_version_is_done_with_it(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    first = ingest(store, of(root))
    folder_of(root, 1, first=40)
    assert ingest(store, of(root)) != first
    takedown.drop(store, of(root), ["class0/040.png"], "me", "asked to")
    assert find_dataset(store, of(root)) is None
    assert ingest(store, of(root)) == first
    assert find_dataset(store, of(root)) == first
    assert ingest(store, of(root), lambda _: pytest.fail("read it again")) == first


def test_an_unknown_key_is_refused_and_takes_nothing_down(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    with pytest.raises(SourceError, match="ingest it first"):
        takedown.drop(store, of(root), ["class0/000.png"], "me", "why")
    ingest(store, of(root))
    with pytest.raises(SourceError, match=r"expected a sample's key .* got 'no/such.png'"):
        takedown.drop(store, of(root), ["class0/000.png", "no/such.png"], "me", "why")
    assert takedowns(store, "cats").taken_down == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_repair_makes_damaged_and_lost_shards_again(store: Store, tmp_path: Path, layout: str) -> None:
    root = folder_of(tmp_path / "raw", 100)
    recipe = of(root, shard_images=15, layout=layout)
    ingest(store, recipe)
    folder_of(root, 20, first=100)
    (root / "class0" / "010.png").unlink()
    dataset = ingest(store, recipe)
    whole = {shard.name: store.get(dataset.key_of(shard)) for shard in dataset.shards}
    lost, cut = dataset.shards[0], dataset.shards[-1]
    store.delete(dataset.key_of(lost))
    store.put(dataset.key_of(cut), whole[cut.name][:-512])
    for shard in (lost, cut):
        with pytest.raises(IntegrityError, match=rf"{shard.name}: .*`atelier repair {store.uri}/{dataset.ref}`"):
            open_shard(store, dataset, shard)
    assert {shard.name for shard in repair(store, dataset, lambda _: None)} == {lost.name, cut.name}
    assert {shard.name: store.get(dataset.key_of(shard)) for shard in dataset.shards} == whole
    assert not [entry for entry in store.list() if "/repair/" in entry.key]


def test_repair_without_the_source_image_says_which(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    dataset = ingest(store, of(root))
    shard = dataset.shards[0]
    store.delete(dataset.key_of(shard))
    for file in root.rglob("*.png"):
        file.write_bytes(encode_png(np.zeros((8, 8, 1), np.uint8)))
    with pytest.raises(SourceError, match=r"gone or changed .*put them back"):
        repair(store, dataset, lambda _: None)


def test_a_head_whose_index_is_damaged_is_named(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    recipe = of(root)
    ingest(store, recipe)
    head, _ = find_head(store, "cats", recipe.dataset)
    assert head is not None
    store.put(head.index, b"other bytes")
    folder_of(root, 3, first=40)
    with pytest.raises(IntegrityError, match=r"index.parquet: expected SHA-256"):
        ingest(store, recipe)


def test_a_shard_is_named_by_its_content(store: Store, tmp_path: Path) -> None:
    dataset = ingest(store, of(folder_of(tmp_path / "raw")))
    for shard in dataset.shards:
        assert isinstance(shard, Shard)
        assert shard.name == f"{shard.split}-{shard.sha256[:16]}.tar"


def test_a_failing_check_publishes_nothing_and_a_looser_one_reads_nothing_again(store: Store, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "raw")
    with pytest.raises(SourceError, match="min_images"):
        ingest(store, of(root, {"min_images": 100}))
    assert not [entry.key for entry in store.list() if "/staging/" not in entry.key]
    dataset = ingest(store, of(root, {"min_images": 40}))
    with pytest.raises(SourceError, match="min_images"):  # a finished one is checked as well
        ingest(store, of(root, {"min_images": 41}))
    assert sum(dataset.splits.values()) == 40
