"""Datasets made by hand: shards and a record, without an ingest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Changes, Dataset, Protocol, Shard, Statistics, file_entry
from pipeline.pictures import encode_png
from pipeline.shards import Block, Sample, write_blocks, write_shard
from pipeline.store import Store

Images = NDArray[np.uint8]
Layout = Literal["sample", "block"]
CLASSES = ("ant", "bee", "cat")
PROTOCOL = Protocol(
    name="atelier-2",
    dataset="datasets/digits/1",
    split="test",
    preprocessing="values in [0, 1]",
    extractor="datasets/digits/1/extractors/2",
    extractor_sha256="e" * 64,
    classifier="datasets/digits/1/extractors/2",
    classifier_sha256="e" * 64,
    num_samples=100,
    num_real=50,
    seed=0,
    importance_samples=50,
)


@dataclass(frozen=True)
class Part:
    """One shard to make: uint8 images (n, h, w, c), labels (n,) or none, keys (n,)."""

    images_NHWC: Images
    labels_N: NDArray[np.int64] | None
    keys_N: NDArray[np.uint64]
    split: str = "train"


def random_part(
    num: int, shape: tuple[int, int, int] = (8, 8, 1), first_key: int = 0, classes: int = 3, split: str = "train"
) -> Part:
    """`num` random images; the first pixel values of each are its key's, so that an image says which it is."""
    rng = np.random.default_rng(first_key)
    images = rng.integers(0, 256, (num, *shape), dtype=np.uint8)
    keys = np.arange(first_key, first_key + num, dtype=np.uint64)
    images.reshape(num, -1)[:, :4] = keys.astype("<u4")[:, None].view(np.uint8)
    return Part(images, rng.integers(0, classes, num) if classes else None, keys, split)


def shard_bytes(part: Part, layout: Layout, block_images: int = 16) -> bytes:
    """The part as a tar; images are PNG in layout `sample`."""
    names = [f"{key}.png" for key in part.keys_N.tolist()]
    digests = [f"{key:064x}" for key in part.keys_N.tolist()]
    if layout == "sample":
        return write_shard(
            Sample.of(
                f"{int(part.keys_N[i]):020d}",
                encode_png(part.images_NHWC[i]),
                None if part.labels_N is None else int(part.labels_N[i]),
                {"name": names[i], "sha256": digests[i]},
            )
            for i in range(len(part.images_NHWC))
        )
    blocks = []
    for at in range(0, len(part.images_NHWC), block_images):
        some = slice(at, at + block_images)
        labels = None if part.labels_N is None else part.labels_N[some]
        blocks.append(Block(part.images_NHWC[some], part.keys_N[some], labels, names[some], digests[some]))
    return write_blocks(blocks)


def made_dataset(
    store: Store,
    parts: Sequence[Part],
    layout: Layout = "block",
    name: str = "made",
    labelled: tuple[str, ...] = CLASSES,
) -> Dataset:
    """Write the parts as shards; gives their record, which is not written."""
    shards = []
    for part in parts:
        data = shard_bytes(part, layout)
        entry = file_entry("", data)
        counts: dict[str, int] = {} if part.labels_N is None else Counter(map(str, part.labels_N.tolist()))
        shards.append(
            Shard(
                name=f"{part.split}-{entry.sha256[:16]}.tar",
                bytes=entry.bytes,
                sha256=entry.sha256,
                split=part.split,
                samples=len(part.images_NHWC),
                labels=dict(counts),
            )
        )
        store.put(f"datasets/{name}/shards/{shards[-1].name}", data)
    classes = () if parts[0].labels_N is None else labelled
    return record_of(shards, parts[0].images_NHWC.shape[1:], layout, name, classes)


def record_of(
    shards: Sequence[Shard],
    shape: tuple[int, ...],
    layout: Layout = "block",
    name: str = "made",
    classes: tuple[str, ...] = CLASSES,
) -> Dataset:
    """A dataset's record that names these shards; `shape` is an image's (h, w, c)."""
    height, width, channels = shape
    fields: dict[str, Any] = dict.fromkeys(("num_inputs", "num_rejected", "num_duplicates", "num_near_duplicates"), 0)
    return Dataset(
        code_version="0",
        id="0123456789abcdef",
        name=name,
        channels=channels,
        height=height,
        width=width,
        layout=layout,
        classes=classes,
        splits=dict(_per_split(shards)),
        shards=tuple(shards),
        files=(),
        statistics=Statistics(mean=(0.0,), std=(1.0,), labels={}, source_sides={}, source_bytes=0),
        rejected=(),
        spec={},
        source={},
        source_fingerprint="",
        parent=None,
        changes=Changes(added=0, removed=0, decoded_images=0, reused_shards=0, new_shards=len(shards)),
        dropped=(),
        **fields,
    )


def _per_split(shards: Sequence[Shard]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        counts[shard.split] += shard.samples
    return counts
