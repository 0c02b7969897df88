"""Sets of images, measured: what is kept of real images, of samples and of training images.

A set is cut into groups of consecutive images, whose moments give the intervals of the Frechet distance; a group is
also what one worker measures. Which groups there are depends on the set's size alone, so the figures do not depend on
the number of workers.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.evaluation.eyes import Eyes
from trainers.extractors.inputs import to_unit
from trainers.metrics import appearance, frechet
from trainers.metrics.frechet import Moments
from trainers.order import Chunk
from trainers.readers import Reader

BATCH_IMAGES = 256
MAX_KEPT = 10_000  # images whose features are kept, evenly over the set: kernel and neighbour figures are of these

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """What is kept of a set of N images, of K of them with their features."""

    moments: Moments  # of all features, in groups
    features_KD: Tensor  # float32
    kept_K: Tensor  # int64: the numbers of the kept images in the set
    classes_N: Tensor  # int64: of the image, or the one that was asked for
    read_N: Tensor | None  # int64: the class that was read
    sharpness_N: Tensor  # float64

    @property
    def count(self) -> int:
        """N."""
        return len(self.classes_N)

    @property
    def kept_classes(self) -> Tensor:
        """The classes of the kept images."""
        return self.classes_N[self.kept_K]


def spread_evenly(num: int, most: int) -> Rows:
    """`most` numbers below `num`, or all of them where they are fewer, evenly apart."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(np.int64))


def groups_of(num: int, width: int) -> list[range]:
    """The groups that a set of `num` images with features of this width is measured in."""
    groups = max(1, frechet.num_groups(num, width))
    bounds = [num * group // groups for group in range(groups + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]


def measure_group(images: Iterable[tuple[Tensor, Tensor]], rows: range, kept: Rows, eyes: Eyes) -> Measured:
    """Measure one group: batches of (uint8 or float images (B, C, H, W), classes (B,)), which are images `rows`.

    `kept` are the numbers of the whole set's kept images. Raises UserError for images that are not finite.
    """
    moments = Moments.none(eyes.width)
    is_kept = np.isin(np.arange(rows.start, rows.stop), kept)
    features, classes, read, sharpness = [], [], [], []
    start = 0
    for images_BCHW, classes_B in images:
        features_BD, read_B = eyes.look(images_BCHW)
        moments = moments.with_rows(features_BD)
        stop = start + len(images_BCHW)
        features.append(features_BD[torch.from_numpy(is_kept[start:stop])])
        classes.append(classes_B.cpu())
        sharpness.append(appearance.sharpness(to_unit(images_BCHW)))
        if read_B is not None:
            read.append(read_B)
        start = stop
    return Measured(
        moments,
        torch.cat(features),
        torch.from_numpy(np.flatnonzero(is_kept) + rows.start),
        torch.cat(classes),
        torch.cat(read) if read else None,
        torch.cat(sharpness),
    )


def joined(groups: Sequence[Measured]) -> Measured:
    """The whole set from its groups, in their order."""
    read = [group.read_N for group in groups if group.read_N is not None]
    return Measured(
        Moments.groups([group.moments for group in groups]),
        torch.cat([group.features_KD for group in groups]),
        torch.cat([group.kept_K for group in groups]),
        torch.cat([group.classes_N for group in groups]),
        torch.cat(read) if read else None,
        torch.cat([group.sharpness_N for group in groups]),
    )


def measure_real(reader: Reader, rows: Rows, eyes: Eyes) -> Measured:
    """Measure the images `rows` of a split; the numbers of the set count these."""
    kept = spread_evenly(len(rows), MAX_KEPT)
    return joined(
        [
            measure_group(images_of(reader, rows[group.start : group.stop]), group, kept, eyes)
            for group in groups_of(len(rows), eyes.width)
        ]
    )


def images_of(reader: Reader, rows: Rows, batch_size: int = BATCH_IMAGES) -> Iterator[tuple[Tensor, Tensor]]:
    """The images `rows` of a split with their classes, a batch at a time: uint8 (B, C, H, W), int64 (B,)."""
    batches = (Chunk(0, rows[None, start : start + batch_size]) for start in range(0, len(rows), batch_size))
    with closing(reader.read(batches)) as steps:
        for raw in steps:
            yield raw.images_BCHW, raw.labels_B
