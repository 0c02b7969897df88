"""MNIST as the papers use it: its own 60,000 training and 10,000 test images, and stacked by threes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Dataset, Rejected
from pipeline.errors import SourceError, UserError
from pipeline.sources import parse_source
from pipeline.store import Store, open_store
from tests.made import Part, made_dataset

CLASSES = tuple("0123456789")
SHARD_IMAGES = 2000


@dataclass(frozen=True)
class Images:
    """uint8 images (N, C, H, W) and int64 labels (N,)."""

    images_NCHW: Tensor
    labels_N: Tensor


@dataclass(frozen=True)
class Digits:
    """The two parts."""

    train: Images
    test: Images


@dataclass(frozen=True)
class Stored:
    """A data set in a store."""

    store: Store
    dataset: Dataset


def read(folder: Path | None) -> Digits:
    """Read the IDX files of a folder. Raises UserError where none is given, SourceError for what is not MNIST."""
    if folder is None:
        raise UserError("--mnist: expected the folder of MNIST's four IDX files, got none; name it")
    source = parse_source({"kind": "idx", "path": str(folder)})
    found: dict[str, tuple[list[np.ndarray], list[int]]] = {"train": ([], []), "test": ([], [])}
    for piece in source.pieces():
        for item in () if isinstance(piece, Rejected) else source.read_piece(piece):
            if isinstance(item, Rejected):
                raise SourceError(f"{folder}: expected whole images, got {item.name}: {item.reason}")
            images, labels = found[item.name.partition("/")[0]]
            assert isinstance(item.data, np.ndarray)  # what this source gives
            images.append(item.data)
            labels.append(int(item.label or 0))
    parts = {name: _images(np.stack(images), labels) for name, (images, labels) in found.items()}
    return Digits(parts["train"], parts["test"])


def _images(images_NHWC: np.ndarray, labels: list[int]) -> Images:
    return Images(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2), torch.tensor(labels))


def stored(digits: Digits, folder: Path, name: str, labelled: bool) -> Stored:
    """Both parts as a data set, with or without their labels."""
    store = open_store(f"file://{folder.absolute()}/store")
    parts, first_key = [], 0
    for split, part in (("train", digits.train), ("test", digits.test)):
        images_NHWC = part.images_NCHW.permute(0, 2, 3, 1).numpy()
        labels_N = part.labels_N.numpy() if labelled else None
        keys_N = np.arange(first_key, first_key + len(images_NHWC), dtype=np.uint64)
        first_key += len(images_NHWC)
        for at in range(0, len(images_NHWC), SHARD_IMAGES):
            some = slice(at, at + SHARD_IMAGES)
            parts.append(Part(images_NHWC[some], None if labels_N is None else labels_N[some], keys_N[some], split))
    return Stored(store, made_dataset(store, parts, name=name, labelled=CLASSES))


def stacked(images: Images, count: int, seed: int) -> Images:
    """Images of three digits drawn at random, one a channel (Metz et al. 2017); the label is the number they make."""
    random = torch.Generator().manual_seed(seed)
    rows_N3 = torch.randint(len(images.labels_N), (count, 3), generator=random)
    labels_N = images.labels_N[rows_N3] @ torch.tensor([100, 10, 1])
    return Images(images.images_NCHW[rows_N3].squeeze(2), labels_N)
