"""The data that is measured on, made up here: nothing is downloaded, and the same numbers give the same images.

`strokes` are like handwritten digits (their PNGs take about as many bytes as MNIST's), `scenes` like photographs:
noise of all scales with the amplitudes that fall with the frequency (Field 1987), and edges.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_CLASSES = 10
JPEG_QUALITY = 90
# Of each class, the corners of its stroke in the unit square.
_STROKES = (
    ((0.5, 0.1), (0.2, 0.35), (0.25, 0.75), (0.5, 0.92), (0.78, 0.7), (0.75, 0.3), (0.5, 0.1)),
    ((0.35, 0.25), (0.55, 0.08), (0.5, 0.92)),
    ((0.22, 0.3), (0.5, 0.1), (0.76, 0.32), (0.25, 0.88), (0.8, 0.88)),
    ((0.25, 0.15), (0.75, 0.15), (0.45, 0.45), (0.78, 0.7), (0.5, 0.92), (0.22, 0.8)),
    ((0.3, 0.1), (0.22, 0.55), (0.8, 0.55), (0.68, 0.1), (0.64, 0.92)),
    ((0.75, 0.1), (0.3, 0.12), (0.26, 0.48), (0.7, 0.5), (0.68, 0.88), (0.24, 0.88)),
    ((0.68, 0.1), (0.28, 0.5), (0.3, 0.88), (0.7, 0.85), (0.7, 0.55), (0.3, 0.6)),
    ((0.2, 0.12), (0.8, 0.12), (0.42, 0.92)),
    ((0.5, 0.48), (0.25, 0.28), (0.5, 0.1), (0.75, 0.28), (0.25, 0.75), (0.5, 0.92), (0.75, 0.75), (0.5, 0.48)),
    ((0.72, 0.35), (0.4, 0.48), (0.28, 0.25), (0.6, 0.1), (0.72, 0.35), (0.66, 0.92)),
)


def strokes(count: int, side: int = 28, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Grey images (count, side, side) of drawn figures, and their classes (count,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, NUM_CLASSES, count)
    images = np.zeros((count, side, side), np.uint8)
    turns = random.normal(0, 0.15, count)
    sizes = random.normal(0.78, 0.05, (count, 2))
    shifts = random.normal(0.5, 0.02, (count, 2))
    inks = random.integers(200, 256, count)
    corners = [np.array(stroke) - 0.5 for stroke in _STROKES]
    for i in range(count):
        points = corners[labels[i]] + random.normal(0, 0.03, corners[labels[i]].shape)
        cosine, sine = np.cos(turns[i]), np.sin(turns[i])
        placed = (points * sizes[i]) @ np.array([[cosine, -sine], [sine, cosine]]) + shifts[i]
        fixed = np.round(placed * side * 16).astype(np.int32)  # cv2 takes sixteenths of a pixel
        width = max(1, side // 14)
        cv2.polylines(images[i], [fixed], False, int(inks[i]), width, cv2.LINE_AA, 4)
    return images, labels


def scenes(count: int, side: int, seed: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Colour images (count, side, side, 3) that compress like photographs, and their classes (count,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, NUM_CLASSES, count)
    images = np.empty((count, side, side, 3), np.uint8)
    grey = random.standard_normal((4 * side, 4 * side, 1), np.float32)
    grain = grey + 0.3 * random.standard_normal((4 * side, 4 * side, 3), np.float32)
    for i in range(count):
        images[i] = _scene(random, side, grain)
    return images, labels


def _scene(random: np.random.Generator, side: int, grain: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One scene; its noise is cut from `grain` (4 side, 4 side, 3)."""
    picture = np.full((side, side, 3), random.uniform(70, 180, 3), np.float32)
    scale = 2
    while scale <= side:
        top, left = random.integers(0, 4 * side - scale, 2)
        noise = grain[top : top + scale, left : left + scale]
        picture += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC) * (60 / scale**0.65)
        scale *= 2
    for _ in range(3):
        corners = random.uniform(0, side, (4, 2)).astype(np.int32)
        edge = np.zeros((side, side), np.float32)
        cv2.fillConvexPoly(edge, cv2.convexHull(corners), 1.0, cv2.LINE_AA)
        picture += edge[:, :, None] * random.normal(0, 35, 3).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_pngs(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> int:
    """`folder/CLASS/NUMBER.png`; gives their bytes."""
    return _write_files(folder, images, labels, ".png", [])


def write_jpegs(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> int:
    """`folder/CLASS/NUMBER.jpg`; gives their bytes."""
    return _write_files(folder, images, labels, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _write_files(
    folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], ending: str, options: list[int]
) -> int:
    for label in range(NUM_CLASSES):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    total = 0
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        data = cv2.imencode(ending, image[..., ::-1] if image.ndim == 3 else image, options)[1]
        (folder / str(label) / f"{number:07d}{ending}").write_bytes(data.tobytes())
        total += len(data)
    return total


def write_noise(path: Path, count: int, side: int, seed: int = 2) -> None:
    """An npz of grey noise images (count, side, side), each another one, and of their classes."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, side, side), np.uint8)
    np.savez(path, images=images, labels=random.integers(0, NUM_CLASSES, count))
