"""What a dataset must be before anything is trained on it: the recipe's `checks:`, on the record alone.

Drift is against the parent version. Of the labels: the total variation distance of the two label histograms, half the
sum of the differences of shares (Levin and Peres, Markov Chains and Mixing Times, 4.1), which is the largest difference
that any set of classes shows. Of the pixels: the difference of the means in the parent's standard deviations (Cohen's
d, with the parent's deviation in place of the pooled one), of the channel where it is largest.
"""

from collections import Counter

from pipeline.artifacts import Dataset
from pipeline.errors import SourceError
from pipeline.sections import ChecksSpec

MIN_SPLIT_IMAGES = 2
NAMED = 3  # examples in a message


def refuse(dataset: Dataset, parent: Dataset | None, checks: ChecksSpec) -> None:
    """Raise SourceError, one line, where a check fails."""
    if found := failures(dataset, parent, checks):
        raise SourceError(f"{dataset.name}: {'; '.join(found)}")


def failures(dataset: Dataset, parent: Dataset | None, checks: ChecksSpec) -> list[str]:
    """Each failing check in words: what was expected, the figure, what to do."""
    found = [_rejected(dataset, checks), _images(dataset, checks), _classes(dataset, checks)]
    if parent is not None:
        found += [_label_drift(dataset, parent, checks), _pixel_drift(dataset, parent, checks)]
    return [failure for failure in found if failure]


def _rejected(dataset: Dataset, checks: ChecksSpec) -> str:
    if dataset.num_rejected <= checks.max_rejected * dataset.num_inputs:
        return ""
    share = checks.max_rejected
    first = "; ".join(f"{rejected.name}: {rejected.reason}" for rejected in dataset.rejected[:NAMED])
    return (
        f"expected at most {share:.1%} of {dataset.num_inputs:,} inputs to be rejected, got "
        f"{dataset.num_rejected:,} ({first}); mend or remove them, or raise checks.max_rejected ({share:g})"
    )


def _images(dataset: Dataset, checks: ChecksSpec) -> str:
    num_images = sum(dataset.splits.values())
    if num_images < checks.min_images:
        return f"expected {checks.min_images:,} images or more (checks.min_images), got {num_images:,}; add images"
    if min(dataset.splits.values(), default=0) < MIN_SPLIT_IMAGES:
        counts = ", ".join(f"{split} {count}" for split, count in dataset.splits.items())
        return (
            f"expected {MIN_SPLIT_IMAGES} different images or more in each split, got {counts}; add images, or change "
            f"dataset.held_out ({dataset.spec['held_out']})"
        )
    return ""


def _classes(dataset: Dataset, checks: ChecksSpec) -> str:
    counts = label_counts(dataset)
    few = [name for name in dataset.classes if counts[name] < checks.min_images_per_class]
    if not few:
        return ""
    named = ", ".join(f"{counts[name]} of {name}" for name in few[:NAMED])
    more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
    return (
        f"expected {checks.min_images_per_class} images or more of each class (checks.min_images_per_class), got "
        f"{named}{more}; add some, or remove the class"
    )


def label_counts(dataset: Dataset) -> Counter[str]:
    """Samples of each class by name, over all splits."""
    counts: Counter[str] = Counter()
    for of_split in dataset.statistics.labels.values():
        counts.update(of_split)
    return counts


def label_drift(dataset: Dataset, parent: Dataset) -> float:
    """Total variation distance of the label histograms, 0 to 1; 1 too where only one of the two has labels."""
    one, other = label_counts(dataset), label_counts(parent)
    if not one.total() or not other.total():
        return float(one.total() != other.total())
    shares = (abs(one[name] / one.total() - other[name] / other.total()) for name in one.keys() | other.keys())
    return sum(shares) / 2


def pixel_drift(dataset: Dataset, parent: Dataset) -> float:
    """Distance of the means in the parent's standard deviations, of the worst channel; in pixel values where all of the
    parent's pixels are the same."""
    before, now = parent.statistics, dataset.statistics
    channels = zip(now.mean, before.mean, before.std, strict=True)
    return max(abs(mean - mean_before) / (std or 1.0) for mean, mean_before, std in channels)


def _label_drift(dataset: Dataset, parent: Dataset, checks: ChecksSpec) -> str:
    drift = label_drift(dataset, parent)
    if checks.max_label_drift is None or drift <= checks.max_label_drift:
        return ""
    return (
        f"expected a total variation distance of the labels to {parent.ref} of at most {checks.max_label_drift:g}, got "
        f"{drift:.4g}; look at `atelier show`, mend the source, or raise checks.max_label_drift"
    )


def _pixel_drift(dataset: Dataset, parent: Dataset, checks: ChecksSpec) -> str:
    drift = pixel_drift(dataset, parent)
    if checks.max_pixel_drift is None or drift <= checks.max_pixel_drift:
        return ""
    return (
        f"expected a mean pixel within {checks.max_pixel_drift:g} standard deviations of that of {parent.ref}, got "
        f"{drift:.4g}; look at `atelier show`, mend the source, or raise checks.max_pixel_drift"
    )
