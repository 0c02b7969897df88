"""Which figures may be compared: those of one protocol, and no others.

    check_comparable(challenger.protocol, champion.protocol)      # raises ProtocolMismatch with the reason
    figure, other = figures_of(challenger, champion, "frechet_distance")

A distance depends on the features, on the held-out images and on how many images there are on either side (its bias is
about 1/N), so that a difference between figures of two protocols says nothing about the models.
"""

from pipeline.artifacts import Evaluation, Figure, Protocol
from pipeline.errors import ProtocolMismatch, RecordError

WHY = {
    "name": "they were computed in different ways",
    "dataset": "they were held against other images",
    "split": "they were held against other images",
    "preprocessing": "their extractors saw the images differently",
    "extractor": "their features come from different networks",
    "extractor_sha256": "their features come from different networks",
    "classifier": "their classes were read by different networks",
    "classifier_sha256": "their classes were read by different networks",
    "num_samples": "the bias of a distance depends on the number of samples",
    "num_real": "the bias of a distance depends on the number of real images",
    "seed": "their samples come from other seeds",
    "importance_samples": "the bound of a likelihood is the tighter the more draws it is of",
}


def differences(ours: Protocol, theirs: Protocol) -> list[str]:
    """The fields in which two protocols differ, as `field: ours, not theirs`; none where figures may be compared."""
    mine, other = ours.model_dump(), theirs.model_dump()
    return [f"{name}: {mine[name]}, not {other[name]}" for name in mine if mine[name] != other[name]]


def reason_of(found: list[str]) -> str:
    """Why figures of two protocols with these differences say nothing of each other: for the first of them."""
    return WHY[found[0].partition(":")[0]]


def check_comparable(ours: Protocol, theirs: Protocol) -> None:
    """Raise ProtocolMismatch, with the reason, where figures of the two protocols may not be compared."""
    found = differences(ours, theirs)
    if found:
        reason = reason_of(found)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ProtocolMismatch(
            f"expected figures of one protocol, got two that differ in {found[0]}{more}: {reason}; "
            "evaluate both runs with the same recipe sections `dataset` and `evaluation` and the same version"
        )


def figures_of(ours: Evaluation, theirs: Evaluation, name: str) -> tuple[Figure, Figure]:
    """A figure of two evaluations, to compare. Raises ProtocolMismatch, RecordError listing what both have."""
    check_comparable(ours.protocol, theirs.protocol)
    for evaluation in (ours, theirs):
        if name not in evaluation.figures:
            both = ", ".join(sorted(ours.figures.keys() & theirs.figures.keys())) or "none"
            raise RecordError(f"{evaluation.ref}: expected a figure that both evaluations have ({both}), got {name!r}")
    return ours.figures[name], theirs.figures[name]
