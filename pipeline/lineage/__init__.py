"""`atelier lineage URI|NAME@ALIAS|IMAGE`: what a record was made of, and what came of it.

    source image -> shards -> dataset -> run -> evaluation, samples -> release -> alias

From a record both ways; from a source image (its name, or its sample's key) to every version that had it among its
inputs, the runs that were trained on it and their releases. Where a parent is named with a digest, its bytes are held
against it: `changed` is what is no longer what was named. One that is gone is named as gone, and proves nothing.
"""

from collections.abc import Iterator, Sequence

from pipeline.artifacts import AnyRecord
from pipeline.datasets import seen
from pipeline.datasets.versions import takedowns
from pipeline.errors import RecordError
from pipeline.lineage.nodes import Lineage, Node
from pipeline.lineage.origins import Origins
from pipeline.lineage.outcomes import Outcomes
from pipeline.listing import about
from pipeline.store import Store

__all__ = ["Lineage", "Node", "image_lineage", "lineage", "names_release"]


def names_release(store: Store, target: str) -> bool:
    """Whether a target reads as NAME@ALIAS or NAME@NUMBER of a name with releases: an image may have an `@`, too."""
    name, at, which = target.partition("@")
    return bool(at and name and which) and "/" not in target and any(store.list(f"releases/{name}/"))


def lineage(store: Store, record: AnyRecord) -> Lineage:
    """The lineage of a record. Raises RecordError, IntegrityError for what cannot be read."""
    target = Node(kind=record.kind, name=record.ref, about=about(record))
    return Lineage(target=target, made_of=Origins(store).of(record), became=Outcomes(store).of(record))


def image_lineage(store: Store, image: str) -> Lineage:
    """The lineage of a source image, by an input's name or a sample's key. Raises RecordError where none is known."""
    outcomes = Outcomes(store)
    found = seen.sightings(store, outcomes.datasets, image)
    if not found:
        known = ", ".join(sorted({dataset.name for dataset in outcomes.datasets})) or "none"
        raise RecordError(
            f"{store.uri}: expected a record's URI, NAME@ALIAS, or a source image's name or key (20 digits) in one of "
            f"the datasets ({known}), got {image!r}; each version's index.parquet lists its images by name and key"
        )
    rows = [row for _, inputs in found for row in inputs]
    others = sorted({row.name for row in rows} - {image})
    said = [f"SHA-256 {digest}" for digest in sorted({row.source_sha256 for row in rows if row.source_sha256})]
    if others:
        said.insert(0, f"the name is {others[0]}" if len(others) == 1 else f"its names are {', '.join(others)}")
    return Lineage(
        target=Node(kind="image", name=image, about="; ".join(said)),
        made_of=tuple(_takedowns(store, {dataset.name for dataset, _ in found}, rows)),
        became=tuple(outcomes.of_image(dataset, inputs) for dataset, inputs in found),
    )


def _takedowns(store: Store, names: set[str], rows: Sequence[seen.Sighting]) -> Iterator[Node]:
    """That the image may be in no version any more, by the datasets that it was taken down from."""
    sources = {row.source_sha256 for row in rows if row.source_sha256}
    pixels = {row.pixel for row in rows if row.pixel}
    for name in sorted(names):
        for one in takedowns(store, name).taken_down:
            if one.source_sha256 in sources or one.pixel in pixels:
                said = f"on {one.at} by {one.who}: {one.why}"
                yield Node(kind="taken down", name=f"{one.name} of {name}", about=said)
