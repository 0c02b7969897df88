"""100,000 images: each is there once, where its digest says, and memory stays within a bound."""

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.artifacts import Dataset
from pipeline.datasets.parts import key_of, split_of
from pipeline.recipe import Recipe
from pipeline.records import load
from pipeline.shards import decode_shard, open_shard
from pipeline.store import open_store

IMAGES, FEW = 100_000, 10_000
MORE_MEMORY_BYTES = 300 << 20  # than a tenth of the images takes: the scratch database fills its share
CHILD = """
import json, resource, sys
from pipeline.ingest import ingest
from pipeline.recipe import load_recipe
from pipeline.store import open_store
ref = ingest(open_store(sys.argv[1]), load_recipe(sys.argv[2])).ref
print(json.dumps([ref, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10]))
"""


def images_of(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Distinct 8x8 images but for the last tenth, which are the first again."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    images[-(count // 10) :] = images[: count // 10]
    return images


def idx_folder(folder: Path, count: int) -> Path:
    """As MNIST's four files; the label is the first pixel's last digit."""
    folder.mkdir()
    images, cut = images_of(count), count * 6 // 7
    for part, some in (("train", images[:cut]), ("t10k", images[cut:])):
        head = struct.pack(">4B3I", 0, 0, 8, 3, len(some), 8, 8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + some.tobytes())
        labels = (some[:, 0, 0] % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, len(some)) + labels.tobytes()
        )
    return folder


def ingested(tmp_path: Path, count: int) -> tuple[str, str, int]:
    """In a process of its own: the store, the dataset's ref, the peak of its memory."""
    recipe = Recipe.model_validate(
        {
            "name": "many",
            "source": {"kind": "idx", "path": str(idx_folder(tmp_path / f"raw{count}", count))},
            "dataset": {"channels": 1, "height": 8, "width": 8, "shard_images": 3000},
            "models": {"vae": {"family": "vae", "steps": 1}},
            "cluster": {"launcher": "local", "engine": "torch"},
        }
    )
    uri = f"file://{tmp_path}/store{count}"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, uri, recipe.to_json()], check=True, capture_output=True, text=True, timeout=300
    )
    ref, peak = json.loads(child.stdout)
    return uri, ref, peak


def test_each_of_100_000_images_is_there_once_within_bounded_memory(tmp_path: Path) -> None:
    uri, ref, peak = ingested(tmp_path, IMAGES)
    assert peak - ingested(tmp_path, FEW)[2] < MORE_MEMORY_BYTES
    store = open_store(uri)
    dataset = load(store, ref, Dataset)
    wanted = {}
    for image in images_of(IMAGES):
        pixel = hashlib.sha256(repr((8, 8, 1)).encode() + image.tobytes()).digest()
        label = int(image[0, 0]) % 10
        digest = hashlib.sha256(pixel + str(label).encode()).digest()
        wanted[key_of(digest)] = (image.tobytes(), label, split_of(pixel, dataset.spec["held_out"]))
    found = {}
    for shard in dataset.shards:
        decoded = decode_shard(open_shard(store, dataset, shard), dataset, shard)
        for key, image, label in zip(decoded.keys_N, decoded.images_NHWC, decoded.labels_N, strict=True):
            assert int(key) not in found
            found[int(key)] = (image.tobytes(), int(label), shard.split)
    assert found == wanted
    assert dataset.num_duplicates == IMAGES - len(wanted)
    assert sum(dataset.splits.values()) == len(wanted)
