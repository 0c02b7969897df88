"""What a finished recipe shows: the releases with their figures, the seconds of each stage, the grids as files."""

from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.artifacts import Release, read_file
from pipeline.plan import Stage, plan
from pipeline.recipe import Recipe
from pipeline.run import Seconds, task_name
from pipeline.store import Store

SHOWN = ("label_agreement", "frechet_distance", "kernel_distance", "precision", "recall", "negative_elbo")


def plan_table(recipe: Recipe, stages: list[Stage]) -> Table:
    """The stages of a recipe: what is done, what is to be done."""
    table = Table(title=f"recipe {recipe.name}", title_justify="left")
    for column in ("stage", "about", "state"):
        table.add_column(column)
    for stage in stages:
        state = f"done  {stage.located.record.ref}" if stage.located else "to do"
        table.add_row(task_name(stage.verb, stage.model), stage.size, state)
    return table


def published(stages: list[Stage]) -> list[Release]:
    """The releases among the finished stages."""
    records = [stage.located.record for stage in stages if stage.verb == "publish" and stage.located]
    return [record for record in records if isinstance(record, Release)]


def save_grids(store: Store, releases: list[Release], folder: Path) -> list[Path]:
    """Write each release's grid to the folder as NAME-NUMBER.png; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for release in releases:
        entry = next(entry for entry in release.files if entry.name == "grid.png")
        path = folder / f"{release.name}-{release.number}.png"
        path.write_bytes(read_file(store, release, entry))
        files.append(path)
    return files


def figures_table(releases: list[Release]) -> Table:
    """The figures of the releases side by side, with 95% intervals where there are any."""
    table = Table(title="published", title_justify="left")
    table.add_column("figure", no_wrap=True)
    for release in releases:
        table.add_column(f"{release.name} {release.number}", justify="right")
    names = {name for release in releases for name in release.figures}
    for name in [*(shown for shown in SHOWN if shown in names), *sorted(names - set(SHOWN))]:
        table.add_row(name, *(_cell(release, name) for release in releases))
    return table


def _cell(release: Release, name: str) -> str:
    figure = release.figures.get(name)
    if figure is None:
        return ""
    interval = "" if figure.low is None or figure.high is None else f" ({figure.low:.2g}, {figure.high:.2g})"
    return f"{figure.value:.3g}{interval}"


def seconds_table(seconds: Seconds) -> Table:
    """Seconds of each stage that ran."""
    table = Table(title="seconds", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    return table


def summary(store: Store, recipe: Recipe, seconds: Seconds, folder: Path) -> tuple[dict[str, Any], list[Table | str]]:
    """What `atelier run` ends with: for a program one object, for a person tables and lines."""
    stages = plan(store, recipe)
    releases = published(stages)
    grids = save_grids(store, releases, folder)
    result = {
        "uri": [f"{store.uri}/{release.ref}" for release in releases],
        "releases": [release.model_dump(mode="json", exclude={"files"}) for release in releases],
        "grids": [str(path) for path in grids],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "skipped": [
            task_name(stage.verb, stage.model) for stage in stages if task_name(stage.verb, stage.model) not in seconds
        ],
    }
    shown: list[Table | str] = [figures_table(releases)]
    if seconds:
        shown.append(seconds_table(seconds))
    for release, path in zip(releases, grids, strict=True):
        alias = recipe.release.alias
        shown.append(f"{store.uri}/{release.ref}  ({release.name}@{alias})  grid: {path}")
    return result, shown
