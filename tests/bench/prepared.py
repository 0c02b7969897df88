"""The data sets of the benchmarks: made up, laid out as sources, ingested, and copied to SeaweedFS.

A dataset's record names its shards by keys, so a copy of a store's objects is the same dataset elsewhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Dataset
from pipeline.ingest import ingest
from pipeline.recipe import Recipe, load_recipe
from pipeline.store import S3Store, Store, open_store
from tests.bench import images
from tests.bench.asked import PeerData
from tests.bench.sizes import Sizes

HELD_OUT = 0.1
LINK_SECONDS = 3600


@dataclass(frozen=True)
class Pictures:
    """One set of images: in memory, as a folder of files, and as an npz for the peers."""

    name: str
    images: NDArray[np.uint8]  # (N, H, W) or (N, H, W, 3)
    labels: NDArray[np.int64]
    files: Path
    raw: Path

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.images.ndim == 3 else 3

    @property
    def side(self) -> int:
        """Height and width."""
        return int(self.images.shape[1])


@dataclass(frozen=True)
class Stored:
    """A dataset in its stores, by place: `disk`, and `store` (SeaweedFS)."""

    dataset: Dataset
    stores: Mapping[str, Store]

    def shard_urls(self, place: str) -> list[str]:
        """The training shards as stock webdataset opens them: paths, or links that need no credentials."""
        store = self.stores[place]
        keys = [self.dataset.key_of(shard) for shard in self.dataset.shards if shard.split == "train"]
        if isinstance(store, S3Store):
            return [_link(store, key) for key in keys]
        return [f"{store.uri.removeprefix('file://')}/{key}" for key in keys]

    @property
    def num_train(self) -> int:
        """Images in the training split."""
        return self.dataset.splits["train"]


def _link(store: S3Store, key: str) -> str:
    where = {"Bucket": store.bucket, "Key": f"{store.prefix}{key}"}
    return str(store.client().generate_presigned_url("get_object", Params=where, ExpiresIn=LINK_SECONDS))


def make_pictures(sizes: Sizes, folder: Path) -> dict[str, Pictures]:
    """All sets of images by name, written as files."""
    grey28 = _laid_out("28x28", *images.strokes(sizes.grey28), folder)
    return {
        "28x28": grey28,
        "64x64": _laid_out("64x64", *images.scenes(sizes.colour64, 64), folder),
        "256x256": _laid_out("256x256", *images.scenes(sizes.colour256, 256), folder),
    }


def _laid_out(name: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64], folder: Path) -> Pictures:
    made = Pictures(name, pixels, labels, folder / name, folder / f"{name}.npz")
    write = images.write_pngs if made.channels == 1 else images.write_jpegs
    write(made.files, pixels, labels)
    np.savez(made.raw, images=pixels, labels=labels)
    return made


def recipe_of(name: str, source: dict[str, Any], channels: int, side: int, **dataset: Any) -> Recipe:
    """A recipe that ingests in threads of this process, whose CPU time and memory can be seen."""
    shape = {"channels": channels, "height": side, "width": side, "held_out": HELD_OUT}
    text = {
        "name": name,
        "source": source,
        "dataset": {**shape, **dataset},
        "models": {"vae": {"family": "vae", "steps": 1}},
        "cluster": {"launcher": "local", "engine": "torch"},
    }
    return load_recipe(json.dumps(text))


def folder_recipe(name: str, pictures: Pictures, **dataset: Any) -> Recipe:
    """A recipe of a folder of files."""
    source = {"kind": "folder", "path": str(pictures.files)}
    return recipe_of(name, source, pictures.channels, pictures.side, **dataset)


def make_datasets(pictures: Mapping[str, Pictures], stores: Mapping[str, Store]) -> dict[str, Stored]:
    """Ingest each set of images in the layouts that are read, and copy them to all places."""
    recipes = {
        "28x28 block": folder_recipe("grey28_block", pictures["28x28"], layout="block"),
        "28x28 sample": folder_recipe("grey28_sample", pictures["28x28"], layout="sample", encoding="png"),
        "64x64 sample": folder_recipe("colour64", pictures["64x64"], layout="sample", encoding="jpg"),
        "256x256 sample": folder_recipe("colour256", pictures["256x256"], layout="sample", encoding="jpg"),
    }
    disk = stores["disk"]
    made = {name: Stored(ingest(disk, recipe), stores) for name, recipe in recipes.items()}
    for store in stores.values():
        if store is not disk:
            _copy(disk, store)
    return made


def _copy(from_store: Store, to_store: Store) -> None:
    for entry in from_store.list():
        to_store.put(entry.key, from_store.get(entry.key))


def for_peers(pictures: Mapping[str, Pictures], datasets: Mapping[str, Stored]) -> list[PeerData]:
    """What the peers may read: our shards of each size, and the images for their own formats."""
    asked = []
    for name, one in pictures.items():
        samples, blocks = datasets[f"{name} sample"], datasets.get(f"{name} block")
        asked.append(
            PeerData(
                name,
                one.channels,
                "png" if one.channels == 1 else "jpg",
                str(one.raw),
                {place: samples.shard_urls(place) for place in samples.stores},
                {place: blocks.shard_urls(place) for place in blocks.stores} if blocks else {},
            )
        )
    return asked


def file_store(folder: Path) -> Store:
    """A store in a folder."""
    return open_store(f"file://{folder}")
