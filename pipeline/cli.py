"""The command line `atelier`: its own verbs, those of releases, and those that other rooms plug in (`atelier.verbs`).

Verbs are imported when they are called, so that the help stays quick and needs neither torch, ray nor airflow.
"""

import sys
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from pipeline import __version__
from pipeline.artifacts import Dataset
from pipeline.console import (
    JsonOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    console,
    opened_store,
    read_recipe,
    report,
    report_record,
    run_main,
    say,
)
from pipeline.records import Located, open_record, split_uri
from pipeline.release import verbs
from pipeline.settings import Settings

ORDER = (
    "run",
    "check",
    "ingest",
    "train",
    "evaluate",
    "sample",
    "publish",
    "promote",
    "rollback",
    "retract",
    "verify",
    "lineage",
    "list",
    "show",
    "gallery",
    "repair",
    "gc",
    "up",
    "down",
)


class Verbs(TyperGroup):
    """The verbs of this file and the plugged ones, in the order of a recipe's stages."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order that the help shows."""
        plugged = [entry.name for entry in entry_points(group="atelier.verbs")]
        names = {*super().list_commands(ctx), *plugged}
        return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb of this file, or a plugged one, loaded now."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in entry_points(group="atelier.verbs", name=cmd_name):
            plugged = typer.Typer(add_completion=False)
            plugged.command(name=cmd_name)(entry.load())
            return get_command(plugged)
        return None


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a folder of images to a published, measured generative model.",
    epilog="Add --debug to any verb for tracebacks.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"atelier {__version__}")
        raise typer.Exit


for _verb in verbs.VERBS:
    app.command()(_verb)


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: RecipeArgument,
    store: StoreOption = None,
    set_: SetOption = None,
    airflow: Annotated[bool, typer.Option("--airflow", help="Through Airflow's DAGs, on the embedded stack.")] = False,
    json_: JsonOption = False,
) -> None:
    """Run every stage of a recipe that is not done yet: ingest, then train, evaluate, sample, publish, promote."""
    from pipeline import run as here
    from pipeline.plan import plan
    from pipeline.run import Seconds
    from pipeline.summary import summary

    settings = Settings.from_environment()
    parsed = read_recipe(recipe, set_, settings)
    with opened_store(store, settings) as place:
        stages = plan(place, parsed)
        todo = here.unfinished(stages)
        if not todo:
            say("everything is done, skipped: " + ", ".join(here.task_name(s.verb, s.model) for s in stages))
        seconds: Seconds = {} if airflow or not todo else here.run_recipe(place, parsed, settings, console, say)
        if not (airflow and todo):
            _show(summary(place, parsed, seconds, settings.home / "grids"), json_)
            return
    from pipeline.follow import run_on_airflow

    with run_on_airflow(settings, parsed, console) as (place, seconds):
        _show(summary(place, parsed, seconds, settings.home / "grids"), json_)


def _show(result: tuple[dict[str, Any], list[Any]], as_json: bool) -> None:
    if as_json:  # a person may watch, too
        for part in result[1]:
            console.print(part, markup=False)
    report(as_json, result[0], *result[1])


@app.command()
def check(recipe: RecipeArgument, store: StoreOption = None, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Validate a recipe in full and show its plan: the stages, what is done already, sizes."""
    from pipeline.plan import plan
    from pipeline.recipe import check_models
    from pipeline.summary import plan_table

    settings = Settings.from_environment()
    parsed = read_recipe(recipe, set_, settings)
    check_models(parsed)
    with opened_store(store, settings) as place:
        stages = plan(place, parsed)
    result = {"recipe": parsed.name, "stages": [stage.model_dump(mode="json") for stage in stages]}
    report(json_, result, plan_table(parsed, stages))


@app.command()
def ingest(
    recipe: RecipeArgument,
    store: StoreOption = None,
    set_: SetOption = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", help="Take a source image down: its sample's key or its name.", show_default=False),
    ] = None,
    why: Annotated[str, typer.Option("--why", help="Why it is taken down.")] = "taken down by hand",
    json_: JsonOption = False,
) -> None:
    """Read what is new in a recipe's source into shards and a dataset record."""
    from pipeline import ingest as stage
    from pipeline.datasets import takedown
    from pipeline.datasets.versions import ingested_lines
    from pipeline.progress import shown

    settings = Settings.from_environment()
    parsed = read_recipe(recipe, set_, settings)
    with opened_store(store, settings) as place:
        reach = None
        if drop:
            taken, reach = takedown.drop(place, parsed, drop, settings.user, why)
            for line in takedown.lines(place.uri, taken, reach):
                say(line)
        with shown(console, say) as progress:
            dataset = stage.ingest(place, parsed, progress, settings, say)
        located = Located.of(place, dataset)
        for line in ingested_lines(dataset):
            say(line)
        result = {"uri": located.uri, "record": dataset.model_dump(mode="json")}
        report(json_, result | ({"reach": reach.model_dump(mode="json")} if reach else {}), f"dataset   {located.uri}")


@app.command()
def repair(
    dataset: Annotated[str, typer.Argument(help="URI of a dataset.", show_default=False)], json_: JsonOption = False
) -> None:
    """Check every shard of a dataset, and make those that are damaged or gone again from the source."""
    from pipeline.datasets.repair import repair as make_again

    settings = Settings.from_environment()
    with opened_store(split_uri(dataset)[0], settings) as place:
        record = open_record(dataset, Dataset)[1]
        assert isinstance(record, Dataset)
        repaired = make_again(place, record, say)
        found = f"{len(record.shards):,} shards checked, {len(repaired):,} made again"
        report(json_, {"uri": dataset, "repaired": [shard.name for shard in repaired]}, found)


@app.command(name="list")
def list_(store: StoreOption = None, json_: JsonOption = False) -> None:
    """List the records of a store: datasets, runs, evaluations, sample sets, releases and aliases."""
    from pipeline.listing import listing, listing_table

    with opened_store(store, Settings.from_environment()) as place:
        found = listing(place)
        report(json_, {"store": place.uri, "records": found}, listing_table(place.uri, found))


@app.command()
def show(
    target: Annotated[str, typer.Argument(help="URI of a record, or NAME@ALIAS.", show_default=False)],
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """Show one record."""
    from pipeline import releases
    from pipeline.datasets.view import dataset_view, save_sheets
    from pipeline.listing import record_table

    settings = Settings.from_environment()
    by_name = "@" in target and "/" not in target
    with opened_store(store if by_name else split_uri(target)[0], settings) as place:
        record = releases.resolve(place, target, retracted=True) if by_name else open_record(target)[1]
        located = Located.of(place, record)
        if not isinstance(record, Dataset):
            report_record(json_, located, record_table(located))
            return
        files = save_sheets(place, record, settings.home / "sheets")
        result = {"uri": located.uri, "record": record.model_dump(mode="json"), "sheets": [str(file) for file in files]}
        report(json_, result, *dataset_view(located.uri, record), *(f"picture   {file}" for file in files))


@app.command()
def gc(
    days: Annotated[float, typer.Option("--days", min=0, help="Keep what was written to in the last days.")] = 30.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; else it is only shown.")] = False,
    needed: Annotated[
        list[str] | None, typer.Option("--needed", help="URI or ref to keep, as a running job's.", show_default=False)
    ] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """Show the records that no release, alias or recent work needs, and with --delete remove them."""
    from pipeline import gc as collector

    settings = Settings.from_environment()
    with opened_store(store, settings) as place:
        refs = {ref for text in needed or [] for ref in collector.refs_in(text)}
        garbage = collector.collect(place, days, refs, delete=delete)
        total = collector.total(garbage)
        did = "deleted" if delete else "would be deleted (--delete does it)"
        lines = [f"{one.ref}  {one.objects:,} objects, {one.bytes:,} bytes" for one in garbage]
        result = {"deleted": delete, **total, "garbage": [one.model_dump(mode="json") for one in garbage]}
        summary = f"{total['folders']:,} folders and shards of {total['bytes']:,} bytes {did}"
        report(json_, result, *lines, summary)


@app.command()
def up(
    airflow: Annotated[bool, typer.Option(help="With Airflow.")] = True,
    ray_port: Annotated[int | None, typer.Option(help="Port of Ray's dashboard.", show_default="a free one")] = None,
    airflow_port: Annotated[int | None, typer.Option(help="Port of Airflow.", show_default="a free one")] = None,
    json_: JsonOption = False,
) -> None:
    """Start the embedded stack on this machine and leave it running: store, Ray and Airflow."""
    from pipeline import stack
    from pipeline.pools import make_pools_of

    settings = Settings.from_environment()
    state = stack.up(settings.home, airflow=airflow, ray_port=ray_port, airflow_port=airflow_port, say=say)
    if state.airflow:
        for line in make_pools_of(state.airflow, [*settings.recipe_folders, stack.recipes_folder(state.home)]):
            say(line)
    report(json_, stack.public(state), stack.describe(state))


@app.command()
def down(json_: JsonOption = False) -> None:
    """Stop what `atelier up` started."""
    from pipeline import stack

    stopped = stack.down(Settings.from_environment().home)
    report(json_, {"stopped": stopped}, "stopped" if stopped else "nothing was running")


def main() -> None:
    """The console script."""
    sys.exit(run_main(lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
