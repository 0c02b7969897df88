"""Does the model repeat its training images? Figures, and the worst pairs as a picture.

Every training image is looked at once. Its features lie in a file of this machine for as long as the evaluation takes
(4 bytes a value), so that memory does not grow with their number.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import pictures
from pipeline.artifacts import Figure
from trainers.evaluation.eyes import Eyes
from trainers.evaluation.measured import Measured, images_of
from trainers.metrics import copies, intervals
from trainers.metrics.copies import Nearest
from trainers.metrics.intervals import Estimate
from trainers.readers import Reader

BLOCK_ROWS = 4_096
MAX_CELLS = 10  # of the C_T score ...
CELL_IMAGES = 60  # ... of about so many held-out images at least
PAIRS, PAIRS_A_ROW = 24, 8
UNITS = {
    "authenticity": "share of samples further from a training image than that is from the others",
    "near_copies": "share of samples closer to a training image than 99% of real ones are",
    "copying_score": "C_T, in deviations; below -3 copied",
}


@dataclass(frozen=True)
class Training:
    """The features of the training images, on disk."""

    path: Path
    rows: int
    width: int

    def blocks(self) -> Iterator[Tensor]:
        """All of them in order, (T, D)."""
        for start in range(0, self.rows, BLOCK_ROWS):
            yield torch.from_numpy(np.array(self._mapped()[start : start + BLOCK_ROWS]))

    def of(self, rows: Tensor) -> Tensor:
        """Those of some images, (len(rows), D)."""
        return torch.from_numpy(np.array(self._mapped()[rows.numpy()]))

    def _mapped(self) -> "np.memmap[tuple[int, int], np.dtype[np.float32]]":
        return np.memmap(self.path, np.float32, "r", shape=(self.rows, self.width))


@contextmanager
def training_features(reader: Reader, eyes: Eyes) -> Iterator[Training]:
    """Look at all training images; their features are gone when the block ends."""
    rows = sum(reader.shard_sizes)
    with tempfile.TemporaryDirectory(prefix="atelier-") as folder:
        path = Path(folder) / "training.f32"
        with path.open("wb") as file:
            for images_BCHW, _ in images_of(reader, np.arange(rows)):
                file.write(eyes.features.features(images_BCHW).numpy().tobytes())
        yield Training(path, rows, eyes.width)


@dataclass(frozen=True)
class Pairs:
    """Samples, by their numbers, and the training images nearest to them; the closest first."""

    samples: list[int]
    training: list[int]


def copy_figures(real: Measured, made: Measured, training: Training, seed: int) -> tuple[dict[str, Figure], Pairs]:
    """Authenticity, C_T score and share of near copies, with held-out images' as floors; and the closest pairs.

    All in feature space, of the kept images. Raises MetricInputError for fewer training images than NEAREST.
    """
    num_made = len(made.features_KD)
    both = copies.nearest(torch.cat([made.features_KD, real.features_KD]), training.blocks())
    ours, theirs = (
        Nearest(both.distances_QK[part], both.rows_QK[part]) for part in (slice(num_made), slice(num_made, None))
    )
    authentic = copies.authentic(both.distances_QK[:, 0], _to_others(both.rows_QK[:, 0], training))
    closeness_M, closeness_N = copies.closeness(ours), copies.closeness(theirs)
    near_M = copies.near_copies(closeness_M, closeness_N)
    cells_M, cells_N = _cells(made.features_KD, real.features_KD, seed)
    distances_M, distances_N = (found.distances_QK[:, 0].contiguous() for found in (ours, theirs))
    score = copies.copying_score_estimate((distances_M, cells_M), (distances_N, cells_N), seed)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    floors = {
        "authenticity": float(authentic[num_made:].mean()),
        "near_copies": float(copies.near_copies(closeness_N[even], closeness_N[odd]).mean()),
        "copying_score": _halves_score(distances_N, even, odd),
    }
    estimates: dict[str, Estimate] = {
        "authenticity": intervals.mean(authentic[:num_made], seed),
        "near_copies": intervals.mean(near_M, seed),
        "copying_score": score,
    }
    figures = {
        name: Figure(
            value=one.value, unit=UNITS[name], num_samples=num_made, num_real=len(theirs.rows_QK),
            low=one.low, high=one.high, floor=floors[name],
        )
        for name, one in estimates.items()
    }  # fmt: skip
    closest = closeness_M.argsort(stable=True)[:PAIRS]
    return figures, Pairs(made.kept_K[closest].tolist(), ours.rows_QK[closest, 0].tolist())


def picture(made_NCHW: Tensor, training_NCHW: Tensor) -> bytes:
    """Pairs as a PNG: rows of samples, under each row the training images nearest to them. uint8 images."""
    blank = torch.full_like(made_NCHW[:1], pictures.PAPER[0])
    rows, labels = [], []
    for start in range(0, len(made_NCHW), PAIRS_A_ROW):
        for label, images in (("sample", made_NCHW), ("training", training_NCHW)):
            row = images[start : start + PAIRS_A_ROW]
            rows.append(torch.cat([row, blank.expand(PAIRS_A_ROW - len(row), -1, -1, -1)]))
            labels.append(label)
    sheet = pictures.grid(torch.cat(rows).permute(0, 2, 3, 1).numpy(), PAIRS_A_ROW, row_labels=labels)
    return pictures.png_bytes(sheet, {"Comment": "rows `sample` were generated by a model; `training` is real"})


def _to_others(rows_Q: Tensor, training: Training) -> Tensor:
    """The distance of each of these training images to the nearest other one, (Q,)."""
    rows, back = torch.unique(rows_Q, return_inverse=True)
    return copies.nearest_other(rows, copies.nearest(training.of(rows), training.blocks(), k=2))[back]


def _cells(made_MD: Tensor, real_ND: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The cell of each image: the nearest of some centres of the held-out images (k-means)."""
    from sklearn.cluster import KMeans

    num = max(1, min(MAX_CELLS, len(real_ND) // CELL_IMAGES))
    means = KMeans(num, n_init=1, random_state=seed).fit(real_ND.numpy())
    found = [torch.from_numpy(means.predict(x.numpy())).long() for x in (made_MD, real_ND)]
    return found[0], found[1]


def _halves_score(distances_N: Tensor, even: slice, odd: slice) -> float:
    """The C_T score of half the held-out images against the other half, in one cell."""
    ours, theirs = distances_N[even], distances_N[odd]
    return copies.standardised_rank_sum(ours, theirs)
