"""The second half of an ingest: one new shard is gathered from staged parts and from shards of the parent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Dataset, Shard, file_entry
from pipeline.datasets.parts import key_of
from pipeline.sections import DatasetSpec
from pipeline.shards import Block, Sample, decode_shard, open_shard, read_shard, write_blocks, write_shard
from pipeline.store import Store, open_store

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_NAME_HEX_DIGITS = 16


@dataclass(frozen=True)
class Job:
    """The work of one task: `rows` are the samples in the shard's order, `parent` has the shards that hold some now."""

    store: str
    name: str
    spec: DatasetSpec
    classes: tuple[str, ...]
    number: int
    rows: "pa.Table"
    parent: Dataset | None


def pack(job: Job) -> tuple[int, Shard]:
    """Write the shard of a job; gives the job's number and the shard. Raises IntegrityError, StoreError."""
    store = open_store(job.store)
    columns = job.rows.to_pydict()
    index_of = {name: index for index, name in enumerate(job.classes)}
    labels = [index_of[label] for label in columns["label"]] if job.classes else None
    payloads = _payloads(store, job, columns)
    if job.spec.resolved_layout == "block":
        data = write_blocks(_blocks(job, columns, labels, payloads))
    else:
        data = write_shard(_samples(job, columns, labels, payloads))
    split = columns["split"][0]
    entry = file_entry("", data)
    name = f"{split}-{entry.sha256[:SHARD_NAME_HEX_DIGITS]}.tar"
    store.put(f"datasets/{job.name}/shards/{name}", data)
    counts = Counter(labels or [])
    by_text = {str(label): counts[label] for label in sorted(counts)}
    return job.number, Shard(
        name=name, bytes=entry.bytes, sha256=entry.sha256, split=split, samples=len(payloads), labels=by_text
    )


def _payloads(store: Store, job: Job, columns: dict[str, list[Any]]) -> list[bytes]:
    """Each sample's image as it stands in shards, by one range read a part and one read a shard of the parent."""
    found: list[bytes] = [b""] * job.rows.num_rows
    by_origin: dict[str, list[int]] = {}
    by_shard: dict[str, list[int]] = {}
    for row, (old_shard, origin) in enumerate(zip(columns["old_shard"], columns["origin"], strict=True)):
        if old_shard is not None:
            by_shard.setdefault(old_shard, []).append(row)
        else:
            by_origin.setdefault(origin, []).append(row)
    starts, lengths = columns["start"], columns["length"]
    for origin, rows in by_origin.items():
        low = min(starts[row] for row in rows)
        high = max(starts[row] + lengths[row] for row in rows)
        data = store.get_range(origin, low, high - low)
        for row in rows:
            found[row] = data[starts[row] - low : starts[row] - low + lengths[row]]
    for name, rows in by_shard.items():
        assert job.parent is not None, name
        shard = next(shard for shard in job.parent.shards if shard.name == name)
        images = images_of(store, job.parent, shard)
        for row in rows:
            found[row] = images[columns["old_pos"][row]]
    return found


def images_of(store: Store, dataset: Dataset, shard: Shard) -> list[bytes]:
    """The images of a shard in its order: plain pixels in layout `block`, else encoded. Raises IntegrityError."""
    data = open_shard(store, dataset, shard)
    if dataset.layout == "block":
        return [image.tobytes() for image in decode_shard(data, dataset, shard).images_NHWC]
    return [sample.image for sample in read_shard(data)]


def _samples(job: Job, columns: dict[str, list[Any]], labels: list[int] | None, payloads: list[bytes]) -> list[Sample]:
    return [
        Sample.of(
            f"{key_of(columns['digest'][row]):020d}",
            payload,
            None if labels is None else labels[row],
            {"name": columns["name"][row], "sha256": columns["source_sha256"][row].hex()},
            job.spec.encoding,
        )
        for row, payload in enumerate(payloads)
    ]


def _blocks(
    job: Job, columns: dict[str, list[Any]], labels: list[int] | None, payloads: Sequence[bytes]
) -> list[Block]:
    import numpy as np

    spec, blocks = job.spec, []
    for at in range(0, len(payloads), spec.block_images):
        part = slice(at, at + spec.block_images)
        images = np.frombuffer(b"".join(payloads[part]), np.uint8)
        blocks.append(
            Block(
                images.reshape(-1, spec.height, spec.width, spec.channels),
                np.array([key_of(digest) for digest in columns["digest"][part]], np.uint64),
                None if labels is None else np.array(labels[part], np.int64),
                columns["name"][part],
                [digest.hex() for digest in columns["source_sha256"][part]],
            )
        )
    return blocks
