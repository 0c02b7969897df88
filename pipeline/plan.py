"""What a recipe would still have to do: what `atelier check` prints and a rerun skips.

ingest -> for each model: train -> evaluate, sample -> publish -> promote
"""

from typing import Literal

from pipeline.artifacts import AnyRecord, Dataset, Evaluation, Run, SampleSet, Strict
from pipeline.ids import evaluation_id, release_id, run_id, samples_id
from pipeline.ingest import find_dataset
from pipeline.recipe import Recipe
from pipeline.records import Located, find
from pipeline.release.aliases import judged
from pipeline.releases import find_release
from pipeline.store import Store

Verb = Literal["ingest", "train", "evaluate", "sample", "publish", "promote"]


class Stage(Strict):
    """One stage of a recipe: `located` is its finished record, None where it is still to be done."""

    verb: Verb
    model: str | None
    size: str  # what it is about, in words
    located: Located | None
    done: bool


def plan(store: Store, recipe: Recipe) -> list[Stage]:
    """Every stage of the recipe in order, with the record of each that is finished."""
    dataset = find_dataset(store, recipe)
    spec = recipe.dataset
    size = f"{recipe.source.kind} to {spec.channels}x{spec.height}x{spec.width}"
    if dataset:
        size += ", " + ", ".join(f"{count:,} {split}" for split, count in dataset.splits.items())
    stages = [_stage(store, "ingest", None, size, dataset)]
    for model in recipe.models:
        stages += _model_stages(store, recipe, model, dataset)
    return stages


def _model_stages(store: Store, recipe: Recipe, model: str, dataset: Dataset | None) -> list[Stage]:
    spec = recipe.models[model]
    run = find(store, f"runs/{run_id(recipe, model, dataset.ref)}", Run) if dataset else None
    evaluation = find(store, f"evaluations/{evaluation_id(recipe, run.ref, run.dataset)}", Evaluation) if run else None
    release = recipe.release
    wanted = samples_id(run.ref, release.num_samples, release.seed) if run else ""
    samples = find(store, f"samples/{wanted}", SampleSet) if run else None
    name = recipe.release_name(model)
    published = None
    if run and evaluation and samples:
        published = find_release(store, name, release_id(recipe, run.ref, evaluation.ref, samples.ref))
    promoted = bool(published and judged(store, name, published.number, release.alias))
    return [
        _stage(store, "train", model, f"{spec.family}, {spec.steps:,} steps of {spec.batch_size} images", run),
        _stage(store, "evaluate", model, f"{recipe.evaluation.num_samples:,} samples", evaluation),
        _stage(store, "sample", model, f"{release.num_samples:,} images", samples),
        _stage(store, "publish", model, name, published),
        Stage(
            verb="promote",
            model=model,
            size=f"{name}@{release.alias}",
            located=Located.of(store, published) if promoted and published else None,
            done=promoted,
        ),
    ]


def _stage(store: Store, verb: Verb, model: str | None, size: str, record: AnyRecord | None) -> Stage:
    located = Located.of(store, record) if record else None
    return Stage(verb=verb, model=model, size=size, located=located, done=record is not None)
