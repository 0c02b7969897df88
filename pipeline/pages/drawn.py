"""What only a release's network can make for its page, by its ONNX file: a walk and the directions of the sliders.

Without onnxruntime or an ONNX file a page does without them and says so.

Shape legend: B images, Z latent size, D values of an image, K directions, F frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import pictures
from pipeline.artifacts import Release
from pipeline.errors import RecordError, UserError
from pipeline.latents import latents
from pipeline.pages.shown import Picture, fitting
from pipeline.release import provenance
from pipeline.release.contents import Contents
from pipeline.release.runtime import OnnxSampler
from pipeline.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

WALK_FRAMES, WALK_ROWS = 12, 6
WALK_BYTES, WALK_SIDE = 200_000, 96
DIRECTIONS = 5
STUDIED_IMAGES = 256  # of which the directions are found
NOTHING = 1e-6  # of the largest component's size: what is smaller is rounding
MAX_STUDIED_VALUES = 1024  # of an image; a larger one is thinned out first


@dataclass(frozen=True)
class Drawn:
    """Rows of the walk, directions (K, Z) of length 1 by decreasing effect, and why there is neither."""

    walk: tuple[tuple[Picture, ...], ...] = ()
    directions: tuple[tuple[float, ...], ...] = ()
    latent_size: int = 0
    why_not: str = ""


def draw(store: Store, release: Release, classes: Sequence[str]) -> Drawn:
    """Draw with the release's sampler. Raises IntegrityError where its file is not what the manifest states."""
    try:
        where = f"{store.uri}/{release.ref}"
        sampler = OnnxSampler(where, Contents(store, release, None).read)
    except (RecordError, UserError) as error:
        return Drawn(why_not=str(error).removeprefix(f"{store.uri}/{release.ref}: "))
    return Drawn(
        walk=_walk(sampler, release, classes),
        directions=_rounded(directions(sampler, len(classes))),
        latent_size=sampler.latent_size,
    )


def directions(sampler: OnnxSampler, num_classes: int) -> "Floats":
    """Directions (K, Z) that change images most: the latents, regressed on their principal components.

    As GANSpace does with a layer's activations (Härkönen et al. 2020, equation 2), here with the pixels themselves;
    what a class has in common is taken off first.
    """
    import numpy as np

    labels_B = np.arange(STUDIED_IMAGES) % max(1, num_classes)
    z_BZ = latents(range(STUDIED_IMAGES), sampler.latent_size).astype(np.float64)
    images_BD = sampler.images(range(STUDIED_IMAGES), labels_B.tolist()).reshape(STUDIED_IMAGES, -1).astype(np.float64)
    images_BD = images_BD[:, :: max(1, images_BD.shape[1] // MAX_STUDIED_VALUES)]
    for label in range(max(1, num_classes)):
        images_BD[labels_B == label] -= images_BD[labels_B == label].mean(axis=0)
    scores_BB, sizes_B, _ = np.linalg.svd(images_BD, full_matrices=False)
    wanted = min(DIRECTIONS, sampler.latent_size, int((sizes_B > sizes_B[0] * NOTHING).sum()))
    found_KZ, *_ = np.linalg.lstsq(scores_BB[:, :wanted] * sizes_B[:wanted], z_BZ, rcond=None)
    unit_KZ: Floats = (found_KZ / np.linalg.norm(found_KZ, axis=1, keepdims=True)).astype(np.float32)
    return unit_KZ


def _rounded(directions_KZ: "Floats") -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 4) for value in row) for row in directions_KZ)


def _walk(sampler: OnnxSampler, release: Release, classes: Sequence[str]) -> tuple[tuple[Picture, ...], ...]:
    """From one latent to another on the sphere where both lie (White 2016, 'Sampling generative networks')."""
    import numpy as np

    pngs, alts = [], []
    for row in range(WALK_ROWS):
        label = row * len(classes) // WALK_ROWS if classes else 0
        start, end = latents([2 * row, 2 * row + 1], sampler.latent_size)
        z_FZ = np.stack([_between(start, end, frame / (WALK_FRAMES - 1)) for frame in range(WALK_FRAMES)])
        words = f"from seed {2 * row} to seed {2 * row + 1}"
        text = provenance.made_by(f"{release.name}/{release.number}", walk=words)
        pngs += [pictures.encode_png(pixels, text) for pixels in sampler.images_of(z_FZ, [label] * WALK_FRAMES)]
        name = classes[label] if classes else "image"
        alts += [f"{name}, step {frame + 1} of {WALK_FRAMES} {words}" for frame in range(WALK_FRAMES)]
    height, width, _ = pictures.decode_png(pngs[0]).shape
    urls = fitting(pngs, WALK_BYTES, WALK_SIDE)
    frames = [Picture(url, alt, width, height) for url, alt in zip(urls, alts, strict=False)]
    return tuple(tuple(frames[at : at + WALK_FRAMES]) for at in range(0, len(frames), WALK_FRAMES))


def _between(start: "Floats", end: "Floats", share: float) -> "Floats":
    import numpy as np

    cosine = float(start @ end) / float(np.linalg.norm(start) * np.linalg.norm(end))
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if angle < 1e-4:
        return start
    weights = np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
    between: Floats = (weights[0] * start + weights[1] * end).astype(np.float32)
    return between
