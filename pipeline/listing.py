"""What a store holds, and one record, for a person to read."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from pipeline.artifacts import AnyRecord, Dataset, Evaluation, Release, Run, SampleSet
from pipeline.records import Located, every
from pipeline.release.records import Alias
from pipeline.store import Store

_KINDS: tuple[type[AnyRecord], ...] = (Dataset, Run, Evaluation, SampleSet, Release)


def listing(store: Store) -> list[dict[str, Any]]:
    """Every record of the store, kind by kind, and every alias."""
    found: list[dict[str, Any]] = []
    for kind in _KINDS:
        for record in every(store, kind):
            found.append({"kind": record.kind, "uri": f"{store.uri}/{record.ref}", "about": about(record)})
    for entry in store.list("aliases/"):
        alias = Alias.model_validate_json(store.get(entry.key))
        about_it = "no release" if alias.number is None else f"release {alias.number}"
        found.append({"kind": "alias", "uri": f"{alias.name}@{alias.alias}", "about": about_it})
    return found


def about(record: AnyRecord) -> str:
    """A record in a few words."""
    match record:
        case Dataset():
            splits = ", ".join(f"{count:,} {split}" for split, count in record.splits.items())
            return f"{record.name}, {record.channels}x{record.height}x{record.width}, {splits}"
        case Run():
            return f"{record.recipe} {record.model} ({record.family}), {record.steps:,} steps"
        case Evaluation():
            shown = [f"{name} {figure.value:.3g}" for name, figure in list(record.figures.items())[:3]]
            return f"{record.run}: {', '.join(shown)}"
        case SampleSet():
            return f"{record.run}: {record.count:,} images"
        case Release():
            return f"{record.name} {record.number} ({record.family})"


def listing_table(uri: str, found: list[dict[str, Any]]) -> Table:
    """The listing as a table."""
    table = Table(title=uri, title_justify="left", box=None, pad_edge=False)
    table.add_column("kind", no_wrap=True)
    table.add_column("uri", no_wrap=True)  # whole on any terminal: it is there to be copied
    table.add_column("about", overflow="fold")
    for row in found:
        table.add_row(row["kind"], row["uri"], row["about"])
    return table


def record_table(located: Located) -> Table:
    """One record's fields; long lists are counted."""
    table = Table(title=located.uri, title_justify="left")
    table.add_column("field")
    table.add_column("value", overflow="fold")
    for name, value in located.record.model_dump(mode="json").items():
        if name == "figures":
            for figure, stated in value.items():
                table.add_row(figure, _stated(stated))
        elif name in ("files", "shards"):
            total = sum(entry["bytes"] for entry in value)
            table.add_row(name, f"{len(value)} files, {total:,} bytes")
        else:
            table.add_row(name, "\n".join(_lines(value)))
    return table


def _stated(figure: Mapping[str, Any]) -> str:
    """A figure with its 95% interval, where it has one."""
    interval = "" if figure["low"] is None else f" ({figure['low']:.4g} to {figure['high']:.4g})"
    return f"{figure['value']:.4g}{interval} {figure['unit']}"


def _lines(value: Any, path: str = "") -> list[str]:
    """A value as lines of `path value`: a record that is meant by its ref, a list by its entries, nothing as `-`."""
    match value:
        case {"ref": ref, "sha256": _}:
            return _lines(ref, path)
        case dict() if value:
            return [line for name, inner in value.items() for line in _lines(inner, f"{path}.{name}" if path else name)]
        case list() if value:
            return [line for inner in value for line in _lines(inner, path)]
        case None | [] | {} | "":
            value = "-"
        case float():
            value = f"{value:.6g}"
    return [f"{path} {value}" if path else str(value)]
