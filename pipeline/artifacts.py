"""The records: frozen, versioned statements that a stage is finished, and the ids that name them.

A stage writes its bytes first and its record last, so a record that is there means that the stage is done; a finished
record never changes. Parents are named by `ref`, the key of their folder relative to the store's root
(`datasets/digits/3f2a...`), so a store can be copied elsewhere whole. A record's URI is the store's URI, a slash, and
its ref.

Records carry no times: the same inputs give the same bytes, on a rerun too (the store keeps the times of its objects,
and an alias, which is the one thing that changes, keeps its history with times: `pipeline.release.records`).
"""

import hashlib
import json
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

ID_HEX_DIGITS = 16


class Strict(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """The model as canonical JSON, the same bytes for the same values."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()


class FileEntry(Strict):
    """One file of a record's folder: its name relative to the folder, and what its bytes must be."""

    name: str
    bytes: int
    sha256: str


class Shard(FileEntry):
    """One WebDataset tar of a dataset: `labels` counts the samples of each class index (as text)."""

    split: str
    samples: int
    labels: dict[str, int]


class Rejected(Strict):
    """An input that did not become a sample, and why."""

    name: str
    reason: str


class Figure(Strict):
    """One measured value: how many generated (or real) images it is of, and how many real ones it was held against.

    `low` and `high` bound the 95% interval where one was computed. `floor` is the same figure of real images in the
    place of the generated ones (of the training split, as many as there are), held against the same test images.
    """

    value: float
    unit: str
    num_samples: int
    num_real: int = 0
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    protocol: str | None = None  # the id of the Protocol that it was measured by


class Protocol(Strict):
    """What figures were measured by. Those of two protocols are not comparable: `pipeline.protocol` refuses them."""

    name: str  # the version of how figures are computed
    dataset: str  # the ref
    split: str
    preprocessing: str  # from a stored image to what the extractor sees
    extractor: str  # what gave the features: a ref, or `file NAME`
    extractor_sha256: str  # of its bytes
    classifier: str | None  # what read the classes: a ref; None: the dataset has no classes
    classifier_sha256: str | None
    num_samples: int
    num_real: int
    seed: int
    importance_samples: int | None = None  # K of a likelihood's bound; None: not stated, in records of before

    @property
    def id(self) -> str:
        """The digest of all of it."""
        return digest_of(self.model_dump(mode="json"))

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


class Record(Strict):
    """What all records share. Each subclass names its kind and its file."""

    file_name: ClassVar[str]
    schema_number: Literal[1] = 1
    code_version: str

    @property
    def ref(self) -> str:
        """The key of this record's folder in the store."""
        raise NotImplementedError

    def key_of(self, entry: FileEntry) -> str:
        """Where one of this record's files lies in the store."""
        return f"{self.ref}/{entry.name}"


class Statistics(Strict):
    """What the samples of a dataset are like. Pixel values are 0 to 255."""

    mean: tuple[float, ...]  # of each channel, over all samples
    std: tuple[float, ...]
    labels: dict[str, dict[str, int]]  # by split, then by class name
    source_sides: dict[str, int]  # samples by the longer side of their source image: {"32": those of 32 to 63 pixels}
    source_bytes: int  # of the source images that became samples


class Changes(Strict):
    """How a dataset's version differs from its parent, in samples and shards."""

    added: int
    removed: int
    decoded_images: int  # inputs that were read anew; all others are known from the parent
    reused_shards: int
    new_shards: int


class Dataset(Record):
    """An immutable version of a dataset. Images are (height, width, channels) uint8 in its shards.

    Shards are named by their content and lie beside the versions, which share them. `files` lie in the version's own
    folder: index.parquet (each input: its digest, sample key, split, shard, or why it is none), croissant.json,
    samples.png and rejects.png.
    """

    file_name: ClassVar[str] = "dataset.json"
    kind: Literal["dataset"] = "dataset"
    id: str
    name: str
    channels: int
    height: int
    width: int
    layout: Literal["sample", "block"]
    classes: tuple[str, ...]  # empty: the images carry no labels
    splits: dict[str, int]  # samples of each split
    shards: tuple[Shard, ...]
    files: tuple[FileEntry, ...]
    statistics: Statistics
    rejected: tuple[Rejected, ...]  # the first of them; `num_rejected` counts all
    num_inputs: int
    num_rejected: int
    num_duplicates: int
    num_near_duplicates: int
    spec: dict[str, Any]  # the recipe's dataset section
    source: dict[str, Any]  # the recipe's source section
    source_fingerprint: str  # digest of the source's listing
    parent: str | None  # the ref of the version before
    changes: Changes
    dropped: tuple[str, ...]  # digests of the pixels that were taken down, in this version or before

    @property
    def ref(self) -> str:
        return f"datasets/{self.name}/{self.id}"

    def key_of(self, entry: FileEntry) -> str:
        """Shards lie beside the versions of a dataset."""
        return f"datasets/{self.name}/shards/{entry.name}" if isinstance(entry, Shard) else super().key_of(entry)


class Run(Record):
    """One finished training run: the resolved model section of the recipe, and the exported sampling network."""

    file_name: ClassVar[str] = "run.json"
    kind: Literal["run"] = "run"
    id: str
    recipe: str
    model: str  # the model's name in the recipe
    family: str
    config: dict[str, Any]
    dataset: str
    steps: int
    images_seen: int
    files: tuple[FileEntry, ...]  # model.safetensors, config.json, metrics.jsonl
    metrics: dict[str, float]  # the last logged losses

    @property
    def ref(self) -> str:
        return f"runs/{self.id}"


class Evaluation(Record):
    """Figures of one run against one split of its dataset, and the protocol that they were measured by."""

    file_name: ClassVar[str] = "evaluation.json"
    kind: Literal["evaluation"] = "evaluation"
    id: str
    run: str
    dataset: str
    protocol: Protocol
    extractor_note: str  # the extractor in words
    figures: dict[str, Figure]
    files: tuple[FileEntry, ...] = ()  # copies.png: the samples that are nearest to a training image, beside it

    @property
    def ref(self) -> str:
        return f"evaluations/{self.id}"

    @property
    def split(self) -> str:
        """The split that the samples were held against."""
        return self.protocol.split


class SampleSet(Record):
    """Images made by one run: WebDataset shards (png, class, seed of each image), a grid, and the sampler as ONNX."""

    file_name: ClassVar[str] = "samples.json"
    kind: Literal["samples"] = "samples"
    id: str
    run: str
    count: int
    seed: int
    made_with: str  # the library and the processor's kind: where they are the same, so are the pixels, bit for bit
    files: tuple[FileEntry, ...]

    @property
    def ref(self) -> str:
        return f"samples/{self.id}"


class Parent(Strict):
    """A record that this one stands on, and what its bytes were."""

    ref: str
    sha256: str


class Signature(Strict):
    """An Ed25519 signature (RFC 8032) of a record's canonical bytes with an empty `value`; both are in hexadecimal."""

    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str = Field(pattern="^[0-9a-f]{64}$")
    value: str = Field(pattern="^([0-9a-f]{128})?$")


class Release(Record):
    """A published version: everything a consumer needs, with the digest of every file.

    The signature stands in the record, so that the two appear at once and cannot be taken apart by two publishers.
    """

    file_name: ClassVar[str] = "manifest.json"
    kind: Literal["release"] = "release"
    id: str
    name: str
    number: int
    run: str
    evaluation: str
    samples: str
    dataset: str
    family: str
    license: str
    protocol: Protocol  # of the figures
    figures: dict[str, Figure]
    parents: tuple[Parent, ...]  # run, evaluation, samples and dataset
    files: tuple[FileEntry, ...]
    signature: Signature | None = None

    @property
    def ref(self) -> str:
        return f"releases/{self.name}/{self.number}"


AnyRecord = Dataset | Run | Evaluation | SampleSet | Release


def digest_of(value: Any) -> str:
    """The id of what went in: the head of the SHA-256 of its canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_HEX_DIGITS]


def file_entry(name: str, data: bytes) -> FileEntry:
    """State what `data` is under `name`."""
    return FileEntry(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
