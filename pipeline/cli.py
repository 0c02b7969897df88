"""The command line `atelier`: its own verbs, and those that other rooms plug in (entry points `atelier.verbs`).

Verbs are imported when they are called, so that the help stays quick and needs neither torch, ray nor airflow.
"""

import contextlib
import sys
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from pipeline import __version__
from pipeline.artifacts import Dataset, Located, Release, open_record, split_uri
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
from pipeline.errors import IntegrityError
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


@app.command()
def publish(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Option("--model", show_default=False)],
    run_uri: Annotated[str, typer.Option("--run", show_default=False)],
    evaluation: Annotated[str, typer.Option("--evaluation", show_default=False)],
    samples: Annotated[str, typer.Option("--samples", show_default=False)],
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Publish a run with its evaluation and its sample set as a release."""
    from pipeline import releases
    from pipeline.release.signing import load_signer

    settings = Settings.from_environment()
    parsed = read_recipe(recipe, set_, settings)
    with opened_store(split_uri(run_uri)[0], settings) as place:
        refs = (split_uri(run_uri)[1], split_uri(evaluation)[1], split_uri(samples)[1])
        located = Located.of(place, releases.publish(place, parsed, model, *refs, load_signer(settings)))
        report_record(json_, located, f"release   {located.uri}")


@app.command()
def promote(
    target: Annotated[str, typer.Argument(help="NAME@NUMBER.", show_default=False)],
    alias: Annotated[str, typer.Option("--alias")] = "champion",
    why: Annotated[str, typer.Option("--why")] = "promoted by hand",
    gate: Annotated[
        str | None,
        typer.Option("--gate", help="Ask the gate of this recipe, which says the alias, too.", show_default=False),
    ] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """Move an alias to a release: by hand, or with --gate where it is better than the one that has the alias."""
    from pipeline import releases

    settings = Settings.from_environment()
    recipe = read_recipe(gate, None, settings) if gate else None
    with opened_store(store, settings) as place:
        release = releases.resolve(place, target)
        name, number, uri = release.name, release.number, f"{place.uri}/{release.ref}"
        if recipe:
            alias = recipe.release.alias
            verdict = releases.promote_if_better(place, recipe, release, who=settings.user, why=why)
            shown = f"{name}@{alias} is release {number}" if verdict.promoted else f"{name}@candidate is {number}"
            report(json_, {"uri": uri, "verdict": verdict.model_dump(mode="json")}, f"{shown}: {verdict.reason}")
            return
        moved = releases.promote(place, name, number, alias, who=settings.user, why=why)
        report(json_, {"uri": uri, "alias": moved.model_dump(mode="json")}, f"{name}@{alias} is release {number}")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="NAME of the releases, such as digits-gan.", show_default=False)],
    to: Annotated[int | None, typer.Option("--to", help="Number.", show_default="the release before")] = None,
    alias: Annotated[str, typer.Option("--alias")] = "champion",
    why: Annotated[str, typer.Option("--why")] = "rolled back by hand",
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """Move an alias back to the release that it named before."""
    from pipeline import releases

    settings = Settings.from_environment()
    with opened_store(store, settings) as place:
        moved = releases.roll_back(place, name, alias, to, who=settings.user, why=why)
        result = {"uri": f"{place.uri}/releases/{name}/{moved.number}", "alias": moved.model_dump(mode="json")}
        report(json_, result, f"{name}@{alias} is release {moved.number}")


@app.command()
def retract(
    target: Annotated[str, typer.Argument(help="NAME@NUMBER.", show_default=False)],
    why: Annotated[str, typer.Option("--why", help="Why, for everybody to read.", show_default=False)],
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """Take a release back for ever: consumers refuse it, its card says so, and every alias moves off it."""
    from pipeline import releases
    from pipeline.release.signing import load_signer

    settings = Settings.from_environment()
    with opened_store(store, settings) as place:
        release = releases.resolve(place, target, retracted=True)
        signer = load_signer(settings)
        done = releases.retract(place, release.name, release.number, signer, who=settings.user, why=why)
        result = {"uri": f"{place.uri}/{release.ref}", "retraction": done.model_dump(mode="json")}
        report(json_, result, f"{done.name}@{done.number} is retracted: {done.why}")


@app.command()
def verify(
    target: Annotated[str, typer.Argument(help="URI of a release, or NAME@ALIAS.", show_default=False)],
    share: Annotated[float, typer.Option("--share", min=0, max=1, help="Of the samples to make again.")] = 0.01,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the choice.", show_default="a random one")] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """Check a release: its signature, the digest of every file, and that samples can be made again from their seeds."""
    from pipeline import releases
    from pipeline.release.verify import verify as examine

    settings = Settings.from_environment()
    by_name = "@" in target and "/" not in target
    with opened_store(store if by_name else split_uri(target)[0], settings) as place:
        found = releases.resolve(place, target, retracted=True) if by_name else open_record(target, Release)[1]
        assert isinstance(found, Release)
        examined = examine(place, found, settings.trusted_keys, share, seed)
        uri = f"{place.uri}/{found.ref}"
        lines = [*(f"fault     {fault}" for fault in examined.faults), *examined.notes]
        report(json_, {"uri": uri, **examined.model_dump(mode="json")}, *lines)
        if examined.faults:
            raise IntegrityError(f"{uri}: expected a release as it was published, found {examined.summary}")


@app.command()
def lineage(
    target: Annotated[
        str,
        typer.Argument(help="URI of a record, NAME@ALIAS, or a source image's name or key.", show_default=False),
    ],
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what a record was made of, down to its source images, and what came of it, up to releases and aliases."""
    from pipeline import releases
    from pipeline.lineage import image_lineage, names_release
    from pipeline.lineage import lineage as trace
    from pipeline.lineage.nodes import tree

    by_uri = "://" in target
    with opened_store(split_uri(target)[0] if by_uri else store, Settings.from_environment()) as place:
        if by_uri:
            found = trace(place, open_record(target)[1])
        elif names_release(place, target):
            found = trace(place, releases.resolve(place, target, retracted=True))
        else:
            found = image_lineage(place, target)
        report(json_, {"store": place.uri, **found.model_dump(mode="json")}, tree(found))
        if found.changed:
            names = ", ".join(node.name for node in found.changed)
            raise IntegrityError(f"{place.uri}: expected everything as it was named, found {names} changed")


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
def gallery(
    store: StoreOption = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8420,
    serve: Annotated[bool, typer.Option(help="Serve it on 127.0.0.1 until Ctrl-C.")] = True,
    json_: JsonOption = False,
) -> None:
    """Make a page of every release and one over all, as files in the store, and serve them on this machine."""
    from pipeline.pages import gallery as pages
    from pipeline.pages.serve import GalleryServer

    with opened_store(store, Settings.from_environment()) as place:
        count = pages.build(place, say)
        result = {"uri": f"{place.uri}/{pages.HOME}", "releases": count}
        if not serve:
            report(json_, result, f"gallery   {result['uri']}  ({count} releases)")
            return
        with GalleryServer(place, port) as server:
            report(json_, {**result, "url": server.url}, f"gallery   {server.url}  ({count} releases; Ctrl-C ends it)")
            with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
                server.serve_forever()


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

    settings = Settings.from_environment()
    state = stack.up(settings.home, airflow=airflow, ray_port=ray_port, airflow_port=airflow_port, say=say)
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
