"""Make images from a trained network: any by their seeds, or a picture from a release.

Every image comes from a seed of its own and, where the model is conditional, a class: the same seed and class give the
same image again (on one machine bit for bit), whatever else is in the batch.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from pipeline import pictures, releases
from pipeline.artifacts import Release, Run
from pipeline.errors import RecordError, UserError
from pipeline.latents import image_seed
from pipeline.records import load, read_file
from pipeline.release import provenance
from pipeline.store import Store, open_store
from trainers import export, families
from trainers.export import Sampler

BATCH_IMAGES = 256

Images = npt.NDArray[np.uint8]


def open_sampler(store: Store, record: Run | Release, device: torch.device) -> Sampler:
    """The sampling network of a run or a release, its files checked against the record's digests."""
    files = {entry.name: entry for entry in record.files}
    if not {export.CONFIG, export.WEIGHTS} <= files.keys():
        raise RecordError(
            f"{store.uri}/{record.ref}: expected {export.CONFIG} and {export.WEIGHTS}, got {sorted(files)}"
        )
    config = read_file(store, record, files[export.CONFIG])
    return export.load(config, read_file(store, record, files[export.WEIGHTS]), device, f"{store.uri}/{record.ref}")


@lru_cache(maxsize=1)
def opened_here(store: str, run: str, threads: int) -> Sampler:
    """The sampling network of a run, by the URI of the store and the run's ref: opened once in a worker."""
    torch.set_num_threads(threads)
    place = open_store(store)
    return open_sampler(place, load(place, run, Run), torch.device("cpu"))


@dataclass(frozen=True)
class ReleaseSampler:
    """A release's network as `pipeline.release.runtime` asks for it."""

    sampler: Sampler
    made_with: str

    def images(self, seeds: Sequence[int], labels: Sequence[int]) -> Images:
        """Images (B, H, W, C) for seeds and class indices."""
        return np.concatenate(list(generate(self.sampler, seeds, labels)))


def release_sampler(where: str, read: Callable[[str], bytes]) -> ReleaseSampler:
    """The sampler of a release whose checked files `read` gives by their names."""
    sampler = export.load(read(export.CONFIG), read(export.WEIGHTS), torch.device("cpu"), where)
    return ReleaseSampler(sampler, made_with())


def classes_for(sampler: Sampler, count: int) -> list[int]:
    """Class indices in equal parts, in turn; zeros for an unconditional model."""
    return [index % max(1, len(sampler.config.classes)) for index in range(count)]


def generate(sampler: Sampler, seeds: Sequence[int], classes: Sequence[int]) -> Iterator[Images]:
    """Images (B, H, W, C) in batches, one for each seed and class."""
    for start in range(0, len(seeds), BATCH_IMAGES):
        part = slice(start, start + BATCH_IMAGES)
        z_BZ = families.latents(seeds[part], sampler.model.latent_size)
        yield sampler.images(z_BZ, torch.tensor(classes[part])).permute(0, 2, 3, 1).numpy()


def regenerate(store: Store, release: Release, seeds: Sequence[int], classes: Sequence[int]) -> tuple[Images, str]:
    """Images (B, H, W, C) of a release again, and what made them: as in its sample set's `made_with`."""
    sampler = open_sampler(store, release, torch.device("cpu"))
    return np.concatenate(list(generate(sampler, seeds, classes))), made_with()


def made_with() -> str:
    """What images on the CPU depend on beside the network: the library and the processor's kind."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.machine()}, {capability}"


def picture(store: Store, target: str, count: int, seed: int, class_name: str | None) -> tuple[bytes, Release]:
    """A PNG grid of new images from a release named by `NAME@ALIAS`, and that release. Raises UserError."""
    release = releases.resolve(store, target)
    sampler = open_sampler(store, release, torch.device("cpu"))
    known = sampler.config.classes
    if class_name is not None and class_name not in known:
        choices = ", ".join(known) or "none: the model is unconditional"
        raise UserError(f"--class: expected one of {choices}; got {class_name!r}")
    classes = classes_for(sampler, count) if class_name is None else [known.index(class_name)] * count
    seeds = [image_seed(seed, index) for index in range(count)]
    images = np.concatenate(list(generate(sampler, seeds, classes)))
    return grid_png(sampler, images, classes, f"{release.name}/{release.number}"), release


def grid_png(sampler: Sampler, images: Images, classes: Sequence[int], origin: str) -> bytes:
    """A row for each class where there are several, else a square."""
    names = sampler.config.classes
    if len(set(classes)) > 1:
        grid = pictures.grid_by_class(images, classes, names)
    else:
        grid = pictures.grid(images, columns=max(1, round(len(images) ** 0.5)))
    return pictures.png_bytes(grid, provenance.made_by(origin))
