"""The verbs about releases: publish, promote and back, retract, verify, trace, look at."""

import contextlib
from typing import Annotated

import typer

from pipeline.artifacts import Release
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
from pipeline.errors import IntegrityError
from pipeline.records import Located, open_record, split_uri
from pipeline.settings import Settings


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


VERBS = (publish, promote, rollback, retract, verify, lineage, gallery)
