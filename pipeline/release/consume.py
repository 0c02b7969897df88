"""A release in its consumer's hands: its files, its published samples, and new ones; with torch or without.

    from pipeline import releases

    with releases.open("digits-gan@champion") as r:          # or an own URI: s3://, file://, http(s)://
        images = r.sample(64, classes=["3", "7"], seed=0)    # uint8 (64, H, W, C), a 3, a 7, a 3 and so on
        for image, class_name, seed in r.samples(): ...      # the set that was published with it

Every file is checked against the manifest as it is read, and the manifest's signature where keys are trusted
(ATELIER_TRUSTED_KEYS). New images come from torch where it is installed, else from onnxruntime (extra `consume`); the
image at `index` of `sample(seed=S)` has the seed and, without `classes`, the class of that image in a set made with S.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import shards
from pipeline.artifacts import Release
from pipeline.cachefolder import CacheFolder
from pipeline.errors import IntegrityError, UserError
from pipeline.latents import IMAGES_PER_SET, MAX_SETS, image_seed
from pipeline.opening import opened_store
from pipeline.records import split_uri
from pipeline.release import signing
from pipeline.release.contents import Contents
from pipeline.release.resolving import resolve, resolve_uri
from pipeline.release.runtime import Sampler, sampler_of
from pipeline.settings import Settings
from pipeline.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

CONFIG = "config.json"
SAMPLES = "samples/"


class Published(NamedTuple):
    """One image of the published set."""

    image: "Images"  # (H, W, C)
    class_name: str | None  # None: the model is unconditional
    seed: int


class Made(BaseModel):
    """What config.json says of the images that a release makes; how to build the network is the sampler's business."""

    model_config = ConfigDict(frozen=True)

    channels: int = Field(ge=1, le=4)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.height, self.width, self.channels


class OpenRelease:
    """A release that stands and is signed as it should be. Its files are read when they are needed."""

    def __init__(self, store: Store, record: Release, cache: CacheFolder | None, using: contextlib.ExitStack) -> None:
        self.record = record
        self.uri = f"{store.uri}/{record.ref}"
        self._contents = Contents(store, record, cache)
        self._using = using  # what the store needs to go on answering

    def sample(self, count: int = 64, *, classes: str | Sequence[str] | None = None, seed: int = 0) -> "Images":
        """New images, uint8 (N, H, W, C), the same ones for the same arguments.

        `classes` is one name for all, or names that are taken in turn; without it all classes are. Raises UserError,
        IntegrityError.
        """
        if not 1 <= count <= IMAGES_PER_SET:
            raise UserError(f"count: expected 1 to {IMAGES_PER_SET:,} images, got {count:,}")
        if not 0 <= seed < MAX_SETS:
            raise UserError(f"seed: expected 0 to {MAX_SETS - 1:,}, got {seed:,}")
        labels = self._labels(classes)
        seeds = [image_seed(seed, index) for index in range(count)]
        images = self._sampler.images(seeds, [labels[index % len(labels)] for index in range(count)])
        if images.shape[1:] != self._made.shape:
            raise IntegrityError(
                f"{self.uri}: expected images (H, W, C) of {self._made.shape} as {CONFIG} says, got {images.shape[1:]}"
            )
        return images

    def samples(self) -> Iterator[Published]:
        """The published images in their order, a shard fetched ahead. Raises IntegrityError."""
        names = sorted(n for n in self._contents.entries if n.startswith(SAMPLES) and n.endswith(".tar"))
        with ThreadPoolExecutor(1) as ahead:
            waiting = [ahead.submit(self._contents.read, name) for name in names[:1]]
            for name, after in zip(names, [*names[1:], None], strict=True):
                data = waiting.pop().result()
                if after:
                    waiting.append(ahead.submit(self._contents.read, after))
                yield from self._published(name, data)

    def file(self, name: str) -> bytes:
        """One of the release's files, such as README.md. Raises RecordError, IntegrityError."""
        return self._contents.read(name)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, none where the model is unconditional."""
        return self._made.classes

    @property
    def made_with(self) -> str:
        """What makes new images here, such as `onnxruntime 1.27.0`."""
        return self._sampler.made_with

    def close(self) -> None:
        """Let go of the store; an embedded one that was started for this ends. Files already read stay usable."""
        self._using.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OpenRelease({self.uri!r})"

    @cached_property
    def _made(self) -> Made:
        try:
            return Made.model_validate_json(self._contents.read(CONFIG))
        except ValidationError as error:
            first = error.errors()[0]
            raise IntegrityError(
                f"{self.uri}/{CONFIG}: expected what a release's images are like, got "
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from None

    @cached_property
    def _sampler(self) -> Sampler:
        return sampler_of(self.uri, self._contents.read)

    def _labels(self, classes: str | Sequence[str] | None) -> list[int]:
        """Class indices to take in turn."""
        known = self._made.classes
        if classes is None:
            return list(range(max(1, len(known))))
        wanted = [classes] if isinstance(classes, str) else list(classes)
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            choices = ", ".join(known) or "none, as the model is unconditional"
            raise UserError(f"classes: expected some of {choices}; got {unknown[0] if unknown else wanted!r}")
        return [known.index(name) for name in wanted]

    def _published(self, name: str, data: bytes) -> Iterator[Published]:
        from pipeline.decoders import decode_image

        known = self._made.classes
        try:
            for sample in shards.read_shard(data):
                image, label, seed = decode_image(sample.image, sample.extension), sample.label, sample.info.get("seed")
                if image.shape != self._made.shape or not isinstance(seed, int):
                    raise IntegrityError(
                        f"sample {sample.key}: expected an image of {self._made.shape} and its seed, "
                        f"got {image.shape} and {seed!r:.40}"
                    )
                if (label is None) != (not known) or (label or 0) >= max(1, len(known)):
                    raise IntegrityError(f"sample {sample.key}: expected a class of {len(known)}, got {label}")
                yield Published(image, None if label is None else known[label], seed)
        except IntegrityError as error:
            raise IntegrityError(f"{self.uri}/{name}: {error}") from None


def open_release(target: str, store: str | None = None) -> OpenRelease:
    """Open `NAME@ALIAS`, `NAME@NUMBER`, or a release by its own URI (s3://, file://, http:// or https://).

    A name is looked up in `store`, a URI as well, or in the store of the settings (ATELIER_STORE, else the embedded
    one). Raises RecordError where there is no such release or it was retracted, IntegrityError where its manifest is
    another's or not signed as it should be, StoreError.
    """
    settings = Settings.from_environment()
    by_uri = "://" in target
    with contextlib.ExitStack() as using:
        place = using.enter_context(opened_store(split_uri(target)[0] if by_uri else store, settings))
        release = resolve_uri(place, target) if by_uri else resolve(place, target)
        if complaint := signing.check(release, settings.trusted_keys):
            raise IntegrityError(f"{place.uri}/{release.ref}/{release.file_name}: {complaint}")
        return OpenRelease(place, release, _cache(settings), using.pop_all())


def _cache(settings: Settings) -> CacheFolder | None:
    """The node's cache; None where the disk does not even say what is free."""
    with contextlib.suppress(OSError):
        return CacheFolder.of(settings)
    return None
