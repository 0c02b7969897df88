"""What a person reads of a recipe's DAGs in Airflow: their pages, and the form that starts a run of the models."""

from airflow.sdk import Param

from pipeline.artifacts import digest_of
from pipeline.recipe import Recipe


def model_params(recipe: Recipe) -> dict[str, Param]:
    """What a run by hand may say. Airflow's form shows it and refuses what the schema does not allow."""
    names = list(recipe.models)
    most = recipe.cluster.workers if recipe.airflow.pool else 4096  # slots of the pool are taken before a run is known
    integer = ["null", "integer"]
    steps = ", ".join(f"{name} {spec.steps:,}" for name, spec in recipe.models.items())
    seeds = ", ".join(f"{name} {spec.seed}" for name, spec in recipe.models.items())
    return {
        "dataset": Param(
            None,
            type=["null", "string"],
            description=f"URI of a dataset; empty: the newest that {recipe.name}_dataset has made",
        ),
        "models": Param(
            names,
            type="array",
            items={"type": "string", "enum": names},
            examples=names,
            minItems=1,
            uniqueItems=True,
            description="Which models to train",
        ),
        "steps": Param(None, type=integer, minimum=1, description=f"Steps of each; empty: the recipe's ({steps})"),
        "seed": Param(
            None,
            type=integer,
            minimum=0,
            maximum=2**31 - 1,
            description=f"Seed of each; empty: the recipe's ({seeds})",
        ),
        "workers": Param(
            None,
            type=integer,
            minimum=1,
            maximum=most,
            description=f"Workers of each; empty: the recipe's ({recipe.cluster.workers})",
        ),
        "force": Param(False, type="boolean", description="Train again what is trained already"),
    }


def about(recipe: Recipe) -> str:
    """Which recipe, to the letter: by its digest `atelier run --airflow` knows that Airflow has read the same one."""
    return f"the recipe `{recipe.name}` ({digest_of(recipe.to_json())})"


def models_doc(recipe: Recipe) -> str:
    """What the DAG does, for its page."""
    rows = [
        f"| `{name}` | {spec.family} | {spec.steps:,} of {spec.batch_size} images | `{recipe.release_name(name)}` |"
        for name, spec in recipe.models.items()
    ]
    return "\n".join(
        [
            f"Trains, measures and publishes the models of {about(recipe)}.\n",
            "| model | family | steps | release |",
            "| --- | --- | --- | --- |",
            *rows,
            f"\nA release takes the alias `{recipe.release.alias}` where its {recipe.gate.metric} is "
            f"{recipe.gate.direction} than the champion's, beyond the 95% interval. Clear `train` to train again, "
            "`publish` to publish the same release again. A run by hand takes the newest dataset, or the one that it "
            "is given.",
            *pool_doc(recipe),
        ]
    )


def pool_doc(recipe: Recipe) -> list[str]:
    """What Airflow must have before it starts a training: it waits for a missing pool without a word."""
    pool, workers = recipe.airflow.pool, recipe.cluster.workers
    if not pool:
        return []
    return [
        f"\nA training takes {workers} slots of the pool `{pool}`, and is not started where the pool is missing or "
        f"smaller (`atelier up` makes it; else: `airflow pools set {pool} {workers} GPUs --include-deferred`)."
    ]
