"""Is a release as it was published? Signature, the digest of every file, and samples made again from their seeds.

A sceptic needs nothing but the release: a share of its images, chosen at random, must come out of its own network
again. Where the library and the processor's kind are those that made the set, bit for bit; elsewhere rounding may
differ, and `SHARE_CLOSE` of the values must lie within `CLOSE_LEVELS` of their 256 levels.
"""

import io
import json
import math
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pipeline import pictures, shards
from pipeline.artifacts import FileEntry, Release, Strict, file_entry
from pipeline.errors import IntegrityError, NotFound
from pipeline.records import read_file
from pipeline.release import provenance, signing
from pipeline.release.card import CARD
from pipeline.release.contents import Contents
from pipeline.release.numbers import CLAIM, retraction_of
from pipeline.release.records import Retraction
from pipeline.release.runtime import OnnxSampler
from pipeline.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]
    # (store, release, seeds, class indices) -> images (B, H, W, C), and what made them
    Regenerate = Callable[[Store, Release, list[int], list[int]], tuple[Images, str]]

CLOSE_LEVELS = 2
SHARE_CLOSE = 0.99
LEAST_IMAGES = 16  # made again of a small set, of which a percent would say little
REMEDY = "the release is not as it was published: retract it, or put the file back from a copy"


class Examined(Strict):
    """What verification found: no faults, or one line for each; notes say what was looked at."""

    faults: tuple[str, ...]
    notes: tuple[str, ...]
    regenerated: int  # images that were made again
    seed: int  # of the choice

    @property
    def summary(self) -> str:
        """How many faults there are, in words."""
        return f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"


@dataclass(frozen=True)
class Made:
    """One image of the set, to be made again."""

    where: str
    png: bytes
    seed: int
    label: int | None


def verify(
    store: Store, release: Release, trusted_keys: tuple[str, ...], share: float, seed: int | None = None
) -> Examined:
    """Check a release; samples are made again only where its files are whole."""
    seed = secrets.randbits(32) if seed is None else seed
    retraction = retraction_of(store, release.name, release.number)
    faults = [*_signature_faults(release, retraction, trusted_keys), *_file_faults(store, release, retraction)]
    faults += _parent_faults(store, release)
    notes = [_signed_note(release), f"files     {len(release.files):,} with the digests of the manifest"]
    if retraction:
        notes.append(f"retracted {retraction.at} by {retraction.who}: {retraction.why}")
    regenerated = 0
    if not faults:
        chosen, made_with = _chosen(store, release, share, random.Random(seed))  # noqa: S311 - no secret
        found, note = _sample_faults(store, release, chosen, made_with)
        faults += found
        notes.append(note)
        regenerated = len(chosen)
    else:
        notes = [note for note in notes if not note.startswith("files")]
        notes.append("samples   none was made again: mend the faults first")
    return Examined(faults=tuple(faults), notes=tuple(notes), regenerated=regenerated, seed=seed)


def _signed_note(release: Release) -> str:
    return f"signed    by {release.signature.public_key}" if release.signature else "signed    by nobody"


def _signature_faults(release: Release, retraction: Retraction | None, trusted_keys: tuple[str, ...]) -> Iterator[str]:
    if complaint := signing.check(release, trusted_keys):
        yield f"{Release.file_name}: {complaint}"
    if retraction and (complaint := signing.check(retraction, trusted_keys)):
        yield f"retraction.json: {complaint}"


def _file_faults(store: Store, release: Release, retraction: Retraction | None) -> Iterator[str]:
    """A file that is missing, changed or not in the manifest."""
    expected = {entry.name: entry for entry in release.files}
    if retraction:
        expected[CARD] = retraction.card
    for entry in expected.values():
        try:
            read_file(store, release, entry, REMEDY)
        except IntegrityError as error:
            yield str(error).removeprefix(f"{store.uri}/{release.ref}/")
    allowed = {*expected, Release.file_name, CLAIM, *(["retraction.json"] if retraction else [])}
    for stored in store.list(f"{release.ref}/"):
        name = stored.key.removeprefix(f"{release.ref}/")
        if name not in allowed:
            yield f"{name}: expected the files of the manifest alone, got this one, too; delete it"


def _parent_faults(store: Store, release: Release) -> Iterator[str]:
    """A parent's record that is not the one that was published from. One that is gone proves nothing."""
    names = {
        "runs": "run.json",
        "evaluations": "evaluation.json",
        "samples": "samples.json",
        "datasets": "dataset.json",
    }
    for parent in release.parents:
        key = f"{parent.ref}/{names[parent.ref.partition('/')[0]]}"
        try:
            found = file_entry(key, store.get(key)).sha256
        except NotFound:
            continue
        if found != parent.sha256:
            yield f"{key}: expected SHA-256 {parent.sha256} of the release's parent, got {found}"


def _chosen(store: Store, release: Release, share: float, chance: random.Random) -> tuple[list[Made], str]:
    """Images chosen at random, and what made the set."""
    files = {entry.name: entry for entry in release.files}
    index = json.loads(read_file(store, release, files["samples.json"]))
    places = [(shard["name"], at) for shard in index["shards"] for at in range(len(shard["keys"]))]
    count = min(len(places), max(LEAST_IMAGES, math.ceil(share * len(places)))) if share else 0
    wanted: dict[str, set[int]] = {}
    for name, at in chance.sample(places, count):
        wanted.setdefault(name, set()).add(at)
    made = [one for name, positions in sorted(wanted.items()) for one in _read(store, release, files[name], positions)]
    return made, str(index["made_with"])


def _read(store: Store, release: Release, entry: FileEntry, positions: set[int]) -> Iterator[Made]:
    for at, sample in enumerate(shards.read_shard(read_file(store, release, entry))):
        if at in positions:
            yield Made(f"{entry.name}, {sample.key}", sample.image, int(sample.info["seed"]), sample.label)


def _sample_faults(store: Store, release: Release, chosen: list[Made], made_with: str) -> tuple[list[str], str]:
    """What is wrong with the chosen images, and a note of how they were made again."""
    if not chosen:
        return [], "samples   none was asked for"
    seeds, labels = [one.seed for one in chosen], [one.label or 0 for one in chosen]
    again, by = _regenerator()(store, release, seeds, labels)
    exact = by == made_with
    faults = [fault for one in chosen for fault in _metadata_faults(release, one)]
    same = 0
    for one, pixels in zip(chosen, again, strict=True):
        complaint, equal = _compare(pictures.decode_png(one.png), pixels, exact)
        same += equal
        if complaint:
            faults.append(f"{one.where}: expected the image of seed {one.seed}, class {one.label}, {complaint}")
    how = "bit for bit" if exact else f"within {CLOSE_LEVELS} of 256 levels, as {made_with} made them"
    return faults, f"samples   {len(chosen):,} made again by {by}, {same:,} of them the same bits; asked for {how}"


def _compare(published: "Images", again: "Images", exact: bool) -> tuple[str | None, bool]:
    """What is wrong with an image that was made again, None where nothing is; and whether it has the same bits."""
    import numpy as np

    if published.shape != again.shape:
        return f"{published.shape}, got {again.shape}", False
    distance = np.abs(published.astype(int) - again)
    if not distance.any():
        return None, True
    close = float((distance <= CLOSE_LEVELS).mean())
    if exact:
        return f"bit for bit, got {int((distance > 0).sum()):,} other values, by up to {distance.max()} levels", False
    if close < SHARE_CLOSE:
        return f"with {SHARE_CLOSE:.0%} of its values within {CLOSE_LEVELS} levels, got {close:.1%}", False
    return None, False


def _metadata_faults(release: Release, one: Made) -> Iterator[str]:
    """What an image does not say of itself."""
    from PIL import Image

    with Image.open(io.BytesIO(one.png), formats=("PNG",)) as image:
        says: dict[Any, Any] = dict(image.info)
    wanted = {"atelier:release": f"{release.name}/{release.number}", "atelier:seed": str(one.seed)}
    for name, value in wanted.items():
        if says.get(name) != value:
            yield f"{one.where}: expected {name} {value} in its own metadata, got {says.get(name)!r}"
    if provenance.SOURCE_TYPE not in str(says.get(provenance.XMP_KEYWORD, "")):
        yield f"{one.where}: expected IPTC's digital source type in its own metadata, got none"


def _regenerator() -> "Regenerate":
    """torch where it is installed, as it made the set; else onnxruntime."""
    for entry in entry_points(group="atelier.stages", name="regenerate"):
        try:
            loaded: Regenerate = entry.load()
        except ModuleNotFoundError:
            break
        return loaded
    return _by_onnx


def _by_onnx(store: Store, release: Release, seeds: list[int], labels: list[int]) -> "tuple[Images, str]":
    contents = Contents(store, release, None)
    sampler = OnnxSampler(contents.where, contents.read)
    return sampler.images(seeds, labels), sampler.made_with
