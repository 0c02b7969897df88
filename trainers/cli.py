"""The verbs `train`, `evaluate`, `sample` and `plan`, plugged into the command line by the group `atelier.verbs`.

Importing this file imports no torch: the command line does so to show its help.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts import Dataset, Run
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
from pipeline.records import Located, open_record, split_uri
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


def plan(
    recipe: RecipeArgument,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="GPUs.", show_default="the recipe's")] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="Which: h200, h100, a100, l4 ...")] = "h100",
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="To train on: for how long the first epoch takes.", show_default=False),
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=0, help="Of the labels.")] = 0,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", min=1)] = 8,
    network: Annotated[float, typer.Option("--network", min=0.001, help="GB/s that a GPU sends.")] = 50.0,
    mfu: Annotated[float, typer.Option("--mfu", min=0.001, max=1.0, help="Share of the peak that is reached.")] = 0.35,
    price: Annotated[float | None, typer.Option("--price", min=0.0, help="Of a GPU-hour.", show_default=False)] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Say what a recipe needs on so many GPUs: memory by ZeRO stage, network, store, time and cost."""
    from pipeline.gpus import named
    from trainers import planning

    parsed = read_recipe(recipe, set_, Settings.from_environment())
    machine = planning.Machine(
        named(gpu), workers or parsed.cluster.workers, gpus_per_node, network, mfu, images, price
    )
    plans = planning.plan_recipe(parsed, machine, classes)
    report(json_, {"models": [one.record() for one in plans]}, *planning.tables(plans))


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
    from trainers import sampleset

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
    recipe = read_recipe(target, set_, settings)
    with opened_store(_root(run), settings) as place:
        record = open_record(run, Run)[1]
        assert isinstance(record, Run)
        located = Located.of(place, sampleset.sample_set(place, recipe, record, settings, say))
        report_record(json_, located, f"samples   {located.uri}")


def _root(uri: str) -> str:
    """The store that a record's URI lies in."""
    return split_uri(uri)[0]
