"""What the verbs of the command line share: their options, the store that they open, and how they end.

A verb says what it does on stderr, so that stdout carries its result alone: with `--json` one JSON object as the last
line. An error is one line; exit status 2 is the user's mistake, 1 a failure.
"""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from pipeline.errors import AtelierError
from pipeline.opening import opened_store as opened_store  # noqa: PLC0414 - verbs take what they share from here
from pipeline.recipe import Recipe, load_recipe
from pipeline.records import Located
from pipeline.settings import Settings

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe's name, the path of a YAML file, or JSON.", show_default=False)
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="s3://bucket/prefix or file:///folder.",
        show_default="ATELIER_STORE, or the embedded store",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a field: models.vae.steps=500.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, last.")]

PIPE_COLUMNS = 200  # a pipe has no width of its own, and a URI that is cut in two cannot be found or copied
console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Tell the person one line."""
    console.print(line, markup=False)


def report(as_json: bool, result: dict[str, Any], *shown: RenderableType) -> None:
    """A verb's result on stdout: what is `shown` for a person, one JSON object for a program."""
    if as_json:
        print(json.dumps(result, sort_keys=True), flush=True)
        return
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    stdout = Console(highlight=False, emoji=False, soft_wrap=True, width=width)
    for part in shown:
        stdout.print(part, markup=False)


def report_record(as_json: bool, located: Located, shown: RenderableType) -> None:
    """A verb's result where it is a record."""
    report(as_json, {"uri": located.uri, "record": located.record.model_dump(mode="json")}, shown)


def read_recipe(reference: str, overrides: list[str] | None, settings: Settings) -> Recipe:
    """Load a recipe as the command line names it."""
    return load_recipe(reference, overrides or [], settings.recipe_folders)


def run_main(command: Callable[[], Any]) -> int:
    """Run the command line and turn errors into one line and an exit status."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        status = command()
        return status if isinstance(status, int) else 0  # typer gives 130 for an interrupt
    except typer.TyperException as error:  # an unknown verb or option, a missing or malformed argument
        if message := getattr(error, "format_message", lambda: "")():  # empty where the help was shown instead
            console.print(f"error: {message.rstrip('.')}. See `atelier --help`.", markup=False, style="red")
        return 2
    except AtelierError as error:
        if debug:
            traceback.print_exc()
        console.print(f"error: {error}", markup=False, style="red")
        return error.exit_status
    except KeyboardInterrupt:
        console.print("stopped", markup=False)
        return 130
    except Exception as error:
        if debug:
            raise
        name = type(error).__name__
        console.print(f"error: {name}: {error}; run it again with --debug for the traceback", markup=False, style="red")
        return 1
