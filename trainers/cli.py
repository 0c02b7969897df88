"""The verbs `train`, `evaluate` and `sample`, plugged into the command line by the entry-point group `atelier.verbs`.

Importing this file imports no torch: the command line does so to show its help.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts import Dataset, Located, Run, open_record, split_uri
from pipeline.console import (
    JsonOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    opened_store,
    read_recipe,
    report,
    report_record,
    say,
)
from pipeline.errors import RecordError, UserError
from pipeline.settings import Settings

RunOption = Annotated[str, typer.Option("--run", help="URI of the run.", show_default=False)]


def train(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Option("--model", help="Which model of the recipe.", show_default=False)],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="URI of the dataset.", show_default="the one that ingest made"),
    ] = None,
    again: Annotated[
        str | None,
        typer.Option("--again", help="Train anew what is done: a word that names the new run.", show_default=False),
    ] = None,
    store: StoreOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Train one model of a recipe on a dataset; a run that was cut short goes on from its last checkpoint."""
    from pipeline.ingest import find_dataset
    from trainers import launch

    settings = Settings.from_environment()
    parsed = read_recipe(recipe, set_, settings)
    with opened_store(store or (dataset and _root(dataset)), settings) as place:
        found = open_record(dataset, Dataset)[1] if dataset else find_dataset(place, parsed)
        if not isinstance(found, Dataset):
            raise RecordError(
                f"expected an ingested dataset of {parsed.name}, found none; run `atelier ingest {recipe}` first"
            )
        run = launch.train(place, parsed, model, found, settings, say, again)
        located = Located.of(place, run)
        report_record(json_, located, f"run       {located.uri}")


def evaluate(
    recipe: RecipeArgument,
    run: RunOption,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure a run against its dataset's held-out split."""
    from trainers import evaluate as evaluation

    settings = Settings.from_environment()
    parsed = read_recipe(recipe, set_, settings)
    with opened_store(_root(run), settings) as place:
        record = open_record(run, Run)[1]
        assert isinstance(record, Run)
        located = Located.of(place, evaluation.evaluate(place, parsed, record, settings, say))
        report_record(json_, located, f"evaluation {located.uri}")


def sample(
    target: Annotated[str, typer.Argument(help="NAME@ALIAS or NAME@NUMBER; with --run, a recipe.", show_default=False)],
    run: Annotated[
        str | None,
        typer.Option("--run", help="Write this run's sample set to the store.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=100_000, help="Images.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the set.")] = 0,
    class_: Annotated[str | None, typer.Option("--class", help="Only this class.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", help="The picture to write.")] = Path("grid.png"),
    store: StoreOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a picture of new images from a release, or (with --run) a run's sample set as its recipe says."""
    from trainers import sample as sampling

    settings = Settings.from_environment()
    if run is None:
        if not out.absolute().parent.is_dir():
            raise UserError(f"--out: expected a file in a folder that exists, got {out}")
        with opened_store(store, settings) as place:
            png, release = sampling.picture(place, target, count, seed, class_)
            out.write_bytes(png)
            result = {
                "out": str(out.absolute()),
                "release": f"{place.uri}/{release.ref}",
                "count": count,
                "seed": seed,
            }
            report(json_, result, f"{count} images of {release.name} {release.number} in {out}")
        return
    wanted = read_recipe(target, set_, settings).release
    with opened_store(_root(run), settings) as place:
        record = open_record(run, Run)[1]
        assert isinstance(record, Run)
        located = Located.of(place, sampling.sample_run(place, record, wanted.num_samples, wanted.seed))
        report_record(json_, located, f"samples   {located.uri}")


def _root(uri: str) -> str:
    """The store that a record's URI lies in."""
    return split_uri(uri)[0]
