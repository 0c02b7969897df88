"""Make images from a trained network: the sample set of a run, or a picture from a release.

Every image comes from a seed of its own and, where the model is conditional, a class: the same seed and class give the
same image again (on one machine bit for bit), whatever else is in the batch.
"""

import platform
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pipeline import __version__, ids, pictures, releases, shards
from pipeline.artifacts import FileEntry, Release, Run, SampleSet, commit, file_entry, find, read_file
from pipeline.errors import RecordError, UserError
from pipeline.recipe import Recipe
from pipeline.release import provenance
from pipeline.store import Store
from trainers import export, families, onnx_export
from trainers.export import Sampler

BATCH_IMAGES = 256
SHARD_IMAGES = 1024
GRID_IMAGES = 256  # at most, in a set's picture
SEEDS_PER_SET = 2**32

Images = npt.NDArray[np.uint8]


def image_seed(seed: int, index: int) -> int:
    """The seed of the image at `index` of a set made with `seed`."""
    return seed * SEEDS_PER_SET + index


def open_sampler(store: Store, record: Run | Release, device: torch.device) -> Sampler:
    """The sampling network of a run or a release, its files checked against the record's digests."""
    files = {entry.name: entry for entry in record.files}
    if not {export.CONFIG, export.WEIGHTS} <= files.keys():
        raise RecordError(
            f"{store.uri}/{record.ref}: expected {export.CONFIG} and {export.WEIGHTS}, got {sorted(files)}"
        )
    config = read_file(store, record, files[export.CONFIG])
    return export.load(config, read_file(store, record, files[export.WEIGHTS]), device, f"{store.uri}/{record.ref}")


def classes_for(sampler: Sampler, count: int) -> list[int]:
    """Class indices in equal parts, in turn; zeros for an unconditional model."""
    return [index % max(1, len(sampler.config.classes)) for index in range(count)]


def generate(sampler: Sampler, seeds: Sequence[int], classes: Sequence[int]) -> Iterator[Images]:
    """Images (B, H, W, C) in batches, one for each seed and class."""
    for start in range(0, len(seeds), BATCH_IMAGES):
        part = slice(start, start + BATCH_IMAGES)
        z_BZ = families.latents(seeds[part], sampler.model.latent_size)
        yield sampler.images(z_BZ, torch.tensor(classes[part])).permute(0, 2, 3, 1).numpy()


def sample_set(store: Store, recipe: Recipe, run: Run) -> SampleSet:
    """The sample set that a recipe publishes with a run."""
    return sample_run(store, run, recipe.release.num_samples, recipe.release.seed)


def sample_run(store: Store, run: Run, count: int, seed: int) -> SampleSet:
    """Write a run's sample set, or return it where it is done. Raises IntegrityError.

    Shard by shard, so that memory does not grow with the set; the grid shows the first images.
    """
    wanted = ids.samples_id(run.ref, count, seed)
    if done := find(store, f"samples/{wanted}", SampleSet):
        return done
    sampler = open_sampler(store, run, torch.device("cpu"))
    entries: list[FileEntry] = []

    def put(name: str, data: bytes) -> None:
        store.put(f"samples/{wanted}/{name}", data)
        entries.append(file_entry(name, data))

    put(onnx_export.MODEL, onnx_export.to_onnx(sampler, f"{store.uri}/{run.ref}"))
    for number, start in enumerate(range(0, count, SHARD_IMAGES)):
        indices = range(start, min(start + SHARD_IMAGES, count))
        images, classes = _made(sampler, seed, indices)
        if number == 0:
            put("grid.png", _grid_png(sampler, images[:GRID_IMAGES], classes[:GRID_IMAGES], run.ref))
        put(f"samples-{number:06d}.tar", _shard(sampler, images, classes, seed, indices, run.ref))
    record = SampleSet(
        code_version=__version__,
        id=wanted,
        run=run.ref,
        count=count,
        seed=seed,
        made_with=made_with(),
        files=tuple(entries),
    )
    return commit(store, record)


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
    return _grid_png(sampler, images, classes, f"{release.name}/{release.number}"), release


def _made(sampler: Sampler, seed: int, indices: range) -> tuple[Images, list[int]]:
    """The images (B, H, W, C) of a set at these indices, and their class indices."""
    classes = [index % max(1, len(sampler.config.classes)) for index in indices]
    return np.concatenate(list(generate(sampler, [image_seed(seed, index) for index in indices], classes))), classes


def _shard(
    sampler: Sampler, images_NHWC: Images, classes: Sequence[int], seed: int, indices: range, origin: str
) -> bytes:
    """The images as a shard, each with its class and seed beside it and inside."""
    names = sampler.config.classes
    samples = []
    for image, label, index in zip(images_NHWC, classes, indices, strict=True):
        info: dict[str, str | int] = {"seed": image_seed(seed, index), **({"class": names[label]} if names else {})}
        png = pictures.encode_png(image, provenance.made_by(origin, **info))
        samples.append(shards.Sample.of(f"{index:09d}", png, label if names else None, info))
    return shards.write_shard(samples)


def _grid_png(sampler: Sampler, images: Images, classes: Sequence[int], origin: str) -> bytes:
    """A row for each class where there are several, else a square."""
    names = sampler.config.classes
    if len(set(classes)) > 1:
        grid = pictures.grid_by_class(images, classes, names)
    else:
        grid = pictures.grid(images, columns=max(1, round(len(images) ** 0.5)))
    return pictures.png_bytes(grid, provenance.made_by(origin))
