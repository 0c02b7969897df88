"""`atelier run` without Airflow: every stage of a recipe in order, in this process and the Ray cluster of this process.

The stages that need torch belong to another room, which plugs them in by the entry-point group `atelier.stages`.
"""

import time
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, cast

from rich.console import Console

from pipeline import ingest, releases
from pipeline.artifacts import AnyRecord, Dataset, Evaluation, Release, Run, SampleSet
from pipeline.errors import RecipeError
from pipeline.plan import Stage, plan
from pipeline.progress import shown
from pipeline.recipe import Recipe, check_models
from pipeline.records import Located
from pipeline.release.signing import load_signer
from pipeline.settings import Settings
from pipeline.store import Store

Say = Callable[[str], None]
Seconds = Mapping[str, float]  # by task: `ingest`, `vae.train` ...


def task_name(verb: str, model: str | None) -> str:
    """A stage's name among the stages of its recipe, the same as its task's in Airflow."""
    return f"{model}.{verb}" if model else verb


def stage_function(name: str) -> Callable[..., Any]:
    """A stage that another room plugs in. Raises RecipeError where it is not installed."""
    for entry in entry_points(group="atelier.stages", name=name):
        try:
            return cast(Callable[..., Any], entry.load())
        except ModuleNotFoundError as error:
            missing = error.name
            raise RecipeError(
                f"{name} needs {missing}, which is not installed; install atelier with its extra `train`"
            ) from None
    raise RecipeError(f"{name} is not installed; install atelier with its extra `train`")


def run_recipe(store: Store, recipe: Recipe, settings: Settings, console: Console, say: Say) -> Seconds:
    """Run what is not done yet, one stage after the other; gives the seconds of the stages that ran."""
    check_models(recipe)
    seconds: dict[str, float] = {}
    done = {task_name(stage.verb, stage.model): stage for stage in plan(store, recipe)}

    def stage(verb: str, model: str | None, function: Callable[[], AnyRecord]) -> AnyRecord:
        name = task_name(verb, model)
        earlier = done.get(name)
        if earlier and earlier.located:
            say(f"{name}: done earlier, skipped  {earlier.located.uri}")
            return earlier.located.record
        start = time.perf_counter()
        record = function()
        seconds[name] = time.perf_counter() - start
        say(f"{name}: {seconds[name]:.1f} s  {Located.of(store, record).uri}")
        return record

    def read() -> AnyRecord:
        with shown(console, say) as progress:
            return ingest.ingest(store, recipe, progress, settings, say)

    dataset = stage("ingest", None, read)
    assert isinstance(dataset, Dataset)
    for model in recipe.models:
        _run_model(store, recipe, settings, model, dataset, stage, say)
    return seconds


def _run_model(
    store: Store,
    recipe: Recipe,
    settings: Settings,
    model: str,
    dataset: Dataset,
    stage: Callable[[str, str | None, Callable[[], AnyRecord]], AnyRecord],
    say: Say,
) -> None:
    run: AnyRecord = stage(
        "train", model, lambda: stage_function("train")(store, recipe, model, dataset, settings, say)
    )
    assert isinstance(run, Run)
    evaluation = stage("evaluate", model, lambda: stage_function("evaluate")(store, recipe, run, settings, say))
    samples = stage("sample", model, lambda: stage_function("sample")(store, recipe, run, settings, say))
    assert isinstance(evaluation, Evaluation) and isinstance(samples, SampleSet)

    def publish() -> AnyRecord:
        signer = load_signer(settings)
        return releases.publish(store, recipe, model, run.ref, evaluation.ref, samples.ref, signer)

    release = stage("publish", model, publish)
    assert isinstance(release, Release)

    def promote() -> AnyRecord:
        verdict = releases.promote_if_better(store, recipe, release, who=settings.user, why="atelier run")
        say(f"{model}.promote: {'promoted' if verdict.promoted else 'kept as candidate'}: {verdict.reason}")
        return release

    stage("promote", model, promote)


def unfinished(stages: list[Stage]) -> list[Stage]:
    """The stages that are still to be done."""
    return [stage for stage in stages if not stage.done]
