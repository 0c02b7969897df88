"""Read from the store what a release's page shows.

    content = gather(store, release, Around(others=..., rival=...))

Everything but the release's own files may be missing (a run's previews are no part of a record): its section is left
out. Files of records are checked against their digests.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from pipeline import pictures, shards
from pipeline.artifacts import Dataset, Evaluation, Release, Run
from pipeline.errors import IntegrityError
from pipeline.pages import charts, drawn, shown
from pipeline.pages.content import Link, Panel, Report, Standing, Step
from pipeline.pages.shown import Picture
from pipeline.protocol import differences, reason_of
from pipeline.records import load, read_file
from pipeline.release.records import Retraction
from pipeline.store import Store

SHOWN_SAMPLES = 200
SAMPLES_BYTES = 400_000  # as PNG or WebP; in the page a third more
PANEL_CLASSES, PANEL_IMAGES, PANEL_SIDE = 10, 6, 96
PANEL_BYTES = 120_000
SAMPLE_SIDE = 256
FILM_FRAMES = 8
FILM_SIDES, FILM_CHARACTERS = (1000, 640, 400, 200), 450_000
COPIES_SIDE = 1000
MOST_OTHERS = 3

ABOUT = {
    "model.safetensors": "the weights",
    "config.json": "what network they are of",
    "model.onnx": "the sampler for onnxruntime: latent and label to image",
    "README.md": "the model card",
    "samples.json": "index of the sample set: key, seed and class of each image",
    "metrics.jsonl": "what training logged",
    "grid.png": "the first samples as one picture",
    "manifest.json": "the record: every file with its digest, the parents, the signature",
}


@dataclass(frozen=True)
class Around:
    """What stands around a release when its page is made."""

    others: Sequence[Release] = ()  # the newest releases of the recipe's other models
    rival: Release | None = None  # the champion, or the one before
    standing: Standing = field(default_factory=Standing)
    retraction: Retraction | None = None
    description: str = ""
    files_at: str = ""
    pages_at: str = ""  # the way to other releases' pages; empty: they are not linked


def gather(store: Store, release: Release, around: Around) -> Report:
    """What the page of a release shows. Of one that was taken back no image is shown. Raises IntegrityError."""
    run = load(store, release.run, Run)
    dataset = load(store, release.dataset, Dataset)
    evaluation = load(store, release.evaluation, Evaluation)
    index = json.loads(_own(store, release, "samples.json") or b"{}")
    rival, standing = _comparable(release, around)
    hidden = around.retraction is not None
    return Report(
        release=release,
        run=run,
        dataset=dataset,
        description=around.description,
        lead=_lead(release, run, dataset),
        classes=dataset.classes,
        sample_count=int(index.get("count", 0)),
        samples=() if hidden else _samples(store, release, dataset.classes),
        panels=() if hidden else _panels(store, release, dataset, around),
        film=() if hidden else _film(store, run),
        drawn=drawn.Drawn(why_not="the release was taken back")
        if hidden
        else drawn.draw(store, release, dataset.classes),
        rows=tuple(charts.rows(release.figures, rival.figures if rival else None)),
        standing=standing,
        curves=tuple(charts.curves(_metrics(store, release))),
        copies=None if hidden else _copies(store, evaluation),
        lineage=tuple(_lineage(release, run, dataset)),
        links=tuple(_links(release, around.files_at)),
        extractor_note=evaluation.extractor_note,
        retraction=around.retraction,
        files_at=around.files_at,
    )


def labelled(store: Store, release: Release) -> Iterator[shards.Sample]:
    """The samples of a release, in order; shards are read as they are needed."""
    for entry in release.files:
        if entry.name.endswith(".tar"):
            yield from shards.read_shard(read_file(store, release, entry))


def sample_pictures(
    samples: Sequence[shards.Sample], classes: Sequence[str], budget_bytes: int, side: int
) -> tuple[Picture, ...]:
    """Samples as pictures, as many as the budget takes."""
    urls = shown.fitting([sample.image for sample in samples], budget_bytes, side)
    return tuple(_picture(sample, url, classes) for sample, url in zip(samples, urls, strict=False))


def _picture(sample: shards.Sample, url: str, classes: Sequence[str]) -> Picture:
    height, width, _ = pictures.decode_png(sample.image).shape
    seed = int(sample.info["seed"])
    label = sample.label if classes else None
    name = classes[label] if label is not None else "image"
    return Picture(url, f"{name}, seed {seed}", width, height, seed, label, name)


def _samples(store: Store, release: Release, classes: Sequence[str]) -> tuple[Picture, ...]:
    first = list(itertools.islice(labelled(store, release), SHOWN_SAMPLES))
    return sample_pictures(first, classes, SAMPLES_BYTES, SAMPLE_SIDE)


def _panels(store: Store, release: Release, dataset: Dataset, around: Around) -> tuple[Panel, ...]:
    panels = [_panel(store, release, dataset.classes, "")]
    for other in around.others[:MOST_OTHERS]:
        href = f"{around.pages_at}{quote(other.name)}/{other.number}.html" if around.pages_at else ""
        with contextlib.suppress(IntegrityError):  # its own page says so
            panels.append(_panel(store, other, dataset.classes, href))
    return (*sorted(panels, key=lambda panel: panel.title), *_real_panel(store, dataset))


def _panel(store: Store, release: Release, classes: Sequence[str], href: str) -> Panel:
    rows: dict[int, list[shards.Sample]] = {}
    for sample in _first_of_each(labelled(store, release), len(classes)):
        rows.setdefault(sample.label or 0, []).append(sample)
    budget = PANEL_BYTES // max(1, len(rows))
    made = (sample_pictures(rows[label], classes, budget, PANEL_SIDE) for label in sorted(rows))
    return Panel(f"{release.name} {release.number}", href, tuple(made))


def _first_of_each(samples: Iterator[shards.Sample], num_classes: int) -> Iterator[shards.Sample]:
    """The first few of each class that is shown; of a shard or two, which hold all classes in turn."""
    left = dict.fromkeys(range(max(1, min(num_classes, PANEL_CLASSES))), PANEL_IMAGES)
    for sample in itertools.islice(samples, 2048):
        label = sample.label or 0
        if left.get(label, 0):
            left[label] -= 1
            yield sample
        if not any(left.values()):
            return


def _real_panel(store: Store, dataset: Dataset) -> list[Panel]:
    """Held-out images, which the model has not seen; none where there is no such shard."""
    most = max(1, min(len(dataset.classes), PANEL_CLASSES))
    found: dict[int, list[Picture]] = {label: [] for label in range(most)}
    for shard in dataset.shards:
        if shard.split != "test" or all(len(row) == PANEL_IMAGES for row in found.values()):
            continue
        decoded = shards.decode_shard(shards.open_shard(store, dataset, shard), dataset, shard)
        for label, pixels in zip(decoded.labels_N.tolist(), decoded.images_NHWC, strict=True):
            row = found.get(label if dataset.classes else 0)
            if row is not None and len(row) < PANEL_IMAGES:
                name = dataset.classes[label] if dataset.classes else "image"
                row.append(Picture(shown.real(pixels, PANEL_SIDE), f"{name}, real", *pixels.shape[1::-1]))
    return [Panel("real, held out", "", tuple(map(tuple, found.values())))] if any(found.values()) else []


def _film(store: Store, run: Run) -> tuple[Picture, ...]:
    """The run's grids of fixed latents, a few of them evenly over the steps with the first and the last."""
    keys = [entry.key for entry in store.list(f"{run.ref}/previews/") if entry.key.endswith(".png")]
    last = len(keys) - 1
    chosen = [keys[round(last * i / (FILM_FRAMES - 1))] for i in range(FILM_FRAMES)] if last >= FILM_FRAMES else keys
    frames: list[Picture] = []
    for side in FILM_SIDES:  # the first that fits
        frames = [frame for key in chosen if (frame := _frame(store, key, side))]
        if sum(len(frame.src) for frame in frames) <= FILM_CHARACTERS:
            break
    return tuple(frames)


def _frame(store: Store, key: str, side: int) -> Picture | None:
    step = key.rpartition("/")[2].removesuffix(".png")
    if not step.isdigit():
        return None
    try:
        src, width, height = shown.sheet(store.get(key), side, generated=True)
    except IntegrityError:  # no part of a record: a picture that is broken is no reason not to publish
        return None
    words = f"step {int(step):,}"
    return Picture(src, f"the same latents at {words}", width, height, caption=words)


def _copies(store: Store, evaluation: Evaluation) -> Picture | None:
    entry = next((entry for entry in evaluation.files if entry.name == "copies.png"), None)
    if entry is None:
        return None
    src, width, height = shown.sheet(read_file(store, evaluation, entry), COPIES_SIDE, generated=False)
    return Picture(src, "samples, and under each the training image nearest to it", width, height)


def _metrics(store: Store, release: Release) -> list[dict[str, float]]:
    lines = (_own(store, release, "metrics.jsonl") or b"").decode().splitlines()
    return [json.loads(line) for line in lines]


def _own(store: Store, release: Release, name: str) -> bytes | None:
    """One of the release's files, None where it has none of that name."""
    entry = next((entry for entry in release.files if entry.name == name), None)
    return None if entry is None else read_file(store, release, entry)


def _comparable(release: Release, around: Around) -> tuple[Release | None, Standing]:
    """The rival where its figures may be compared; else what stands in its place is a note that says why not."""
    rival, standing = around.rival, around.standing
    if rival is None:
        return None, standing
    if found := differences(release.protocol, rival.protocol):
        note = (
            f"{rival.name}@{rival.number} was measured by another protocol ({found[0]}), and {reason_of(found)}: it is "
            "not shown beside this one."
        )
        return None, replace(standing, rival="", note=note)
    return rival, standing


def _lead(release: Release, run: Run, dataset: Dataset) -> str:
    kind = "class-conditional" if dataset.classes else "unconditional"
    colour = "grey" if dataset.channels == 1 else "colour"
    return (
        f"A {kind} {release.family.upper()} of {dataset.width}\N{MULTIPLICATION SIGN}{dataset.height} images in "
        f"{colour}, trained for {run.steps:,} steps on {dataset.splits.get('train', 0):,} images of {dataset.name}."
    )


def _lineage(release: Release, run: Run, dataset: Dataset) -> Iterator[Step]:
    digests = {parent.ref: parent.sha256 for parent in release.parents}
    yield Step("source", dataset.source_fingerprint[:32] or "unknown", "", "fingerprint of the source's listing")
    splits = ", ".join(f"{count:,} {split}" for split, count in dataset.splits.items())
    yield Step("dataset", dataset.ref, digests.get(dataset.ref, ""), f"{splits}, in {len(dataset.shards)} shards")
    about = f"{run.family}, {run.steps:,} steps, seed {run.config.get('seed')}, atelier {run.code_version}"
    yield Step("run", run.ref, digests.get(run.ref, ""), about)
    yield Step("evaluation", release.evaluation, digests.get(release.evaluation, ""), f"protocol {release.protocol}")
    yield Step("samples", release.samples, digests.get(release.samples, ""), "each image from a seed of its own")
    yield Step("release", release.ref, "", f"licence {release.license}")


def _links(release: Release, files_at: str) -> Iterator[Link]:
    first = list(ABOUT)
    entries = sorted(
        release.files, key=lambda entry: (first.index(entry.name) if entry.name in first else 99, entry.name)
    )
    for entry in entries:
        about = ABOUT.get(entry.name, "a shard of the sample set" if entry.name.endswith(".tar") else "")
        yield Link(entry.name, f"{files_at}{quote(entry.name)}", entry.bytes, entry.sha256, about)
    yield Link("manifest.json", f"{files_at}manifest.json", 0, "", ABOUT["manifest.json"])
