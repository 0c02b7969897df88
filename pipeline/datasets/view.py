"""`atelier show DATASET_URI`: a version's figures, its histograms, and its contact sheets as local files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.artifacts import Dataset
from pipeline.datasets.checks import label_counts
from pipeline.records import read_file
from pipeline.store import Store

SHEETS = ("samples.png", "rejects.png")
BAR_CELLS = 32
BAR_MARKS = ("\u2591", "\u2588")  # of the splits in their order
MAX_CLASSES = 24  # of more, the largest and the smallest are shown
MAX_REASONS = 10


def save_sheets(store: Store, dataset: Dataset, folder: Path) -> list[Path]:
    """Write the version's contact sheets to the folder; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for entry in dataset.files:
        if entry.name in SHEETS:
            path = folder / f"{dataset.name}-{dataset.id}-{entry.name}"
            path.write_bytes(read_file(store, dataset, entry))
            files.append(path)
    return files


def dataset_view(uri: str, dataset: Dataset) -> list[RenderableType]:
    """Tables for a person: figures, labels, sizes, rejects."""
    views: list[RenderableType] = [_figures(uri, dataset)]
    if dataset.classes:
        views.append(_labels(dataset))
    views.append(_sides(dataset))
    if dataset.rejected:
        views.append(_rejects(dataset))
    return views


def _figures(uri: str, dataset: Dataset) -> Table:
    table = _table(uri, header=False)
    table.add_column("field", no_wrap=True)
    table.add_column("value", overflow="fold")
    statistics, changes = dataset.statistics, dataset.changes
    rows = {
        "id": dataset.id,
        "images": ", ".join(f"{count:,} {split}" for split, count in dataset.splits.items()),
        "shape": f"{dataset.height} x {dataset.width} pixels, {'grey' if dataset.channels == 1 else 'colour'}",
        "classes": f"{len(dataset.classes):,}" if dataset.classes else "none: unlabelled",
        "layout": dataset.layout,
        "shards": f"{len(dataset.shards):,} of {_size(sum(shard.bytes for shard in dataset.shards))}",
        "pixel mean": ", ".join(f"{value:.1f}" for value in statistics.mean),
        "pixel std": ", ".join(f"{value:.1f}" for value in statistics.std),
        "inputs": f"{dataset.num_inputs:,}; the samples came from {_size(statistics.source_bytes)}",
        "duplicates": f"{dataset.num_duplicates:,} exact, {dataset.num_near_duplicates:,} near",
        "rejected": f"{dataset.num_rejected:,} ({dataset.num_rejected / max(dataset.num_inputs, 1):.2%})",
        "taken down": f"{len(dataset.dropped):,}",
        "source": ", ".join(f"{key}: {value}" for key, value in dataset.source.items() if value is not None),
        "parent": dataset.parent or "none: the first version",
    }
    if dataset.parent:
        rows["since then"] = (
            f"{changes.added:,} added, {changes.removed:,} removed; {changes.decoded_images:,} decoded; "
            f"{changes.reused_shards:,} shards used again, {changes.new_shards:,} written"
        )
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _labels(dataset: Dataset) -> Table:
    """Samples of each class; of many classes, the largest and the smallest."""
    counts = label_counts(dataset)
    most = max(counts.values(), default=1)
    order, half, title = list(dataset.classes), MAX_CLASSES // 2, "labels"
    if len(order) > MAX_CLASSES:
        order.sort(key=lambda name: -counts[name])
        title = f"labels: the {half} largest and the {half} smallest of {len(order):,} classes"
        order = [*order[:half], *order[-half:]]
    table = _table(title)
    table.add_column("class", overflow="fold")
    for split in dataset.splits:
        table.add_column(split, justify="right")
    table.add_column(", ".join(f"{mark} {split}" for split, mark in _marks(dataset).items()), no_wrap=True)
    for row, name in enumerate(order):
        own = {split: dataset.statistics.labels[split].get(name, 0) for split in dataset.splits}
        ends_section = len(dataset.classes) > MAX_CLASSES and row == half - 1
        bar = _bar([(_marks(dataset)[split], count) for split, count in own.items()], most)
        table.add_row(name, *(f"{count:,}" for count in own.values()), bar, end_section=ends_section)
    return table


def _marks(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.splits, BAR_MARKS, strict=False))


def _sides(dataset: Dataset) -> Table:
    table = _table("sizes")
    table.add_column("longer side of the source", no_wrap=True)
    table.add_column("images", justify="right")
    table.add_column("", no_wrap=True)
    sides = {int(side): count for side, count in dataset.statistics.source_sides.items()}
    for side in range(min(sides).bit_length() - 1, max(sides).bit_length()) if sides else ():
        count = sides.get(2**side, 0)
        bar = _bar([(BAR_MARKS[-1], count)], max(sides.values()))
        table.add_row(f"{2**side:,} to {2 * 2**side - 1:,} pixels", f"{count:,}", bar)
    return table


def _rejects(dataset: Dataset) -> Table:
    """Rejected inputs by reason, as far as the record lists them."""
    reasons = Counter(rejected.reason for rejected in dataset.rejected)
    first = {rejected.reason: rejected.name for rejected in reversed(dataset.rejected)}
    listed = len(dataset.rejected)
    few = f", the first {listed} by reason; index.parquet has all" if listed < dataset.num_rejected else ""
    table = _table(f"rejected: {dataset.num_rejected:,}{few}")
    table.add_column("reason", overflow="fold", ratio=3)
    table.add_column("inputs", justify="right")
    table.add_column("the first", overflow="fold", ratio=2)
    for reason, count in reasons.most_common(MAX_REASONS):
        table.add_row(reason, f"{count:,}", first[reason])
    if len(reasons) > MAX_REASONS:
        table.add_row(f"{len(reasons) - MAX_REASONS:,} other reasons", "", "")
    return table


def _table(title: str, *, header: bool = True) -> Table:
    """A table whose title is taken as it is: names and addresses may have square brackets."""
    return Table(title=Text(title), title_justify="left", show_header=header)


def _bar(parts: Sequence[tuple[str, int]], most: int) -> str:
    """Counts as a bar of one mark each, BAR_CELLS long where they sum to `most`; whatever there is has a cell."""
    bar, total = "", 0
    for mark, count in parts:
        total += count
        end = round(BAR_CELLS * total / max(most, 1))
        bar += mark * max(end - len(bar), 1 if count else 0)
    return bar


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 100_000 else f"{num_bytes / 1e3:,.1f} kB"
