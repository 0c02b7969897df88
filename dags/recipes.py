"""A pair of DAGs for each recipe: `<name>_dataset` ingests; its asset event starts `<name>_models`.

    <name>_dataset   ingest                     on the recipe's schedule, or by hand
    <name>_models    dataset
                     for each model:            train >> [evaluate, sample] >> publish >> promote

The recipes are those that ship and those in the folders of ATELIER_RECIPES; broken_recipes.py tells of the ones that
cannot be read. The models do not depend on each other: one that fails spoils no other.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, Param, TaskGroup, task
from airflow.sdk.exceptions import AirflowFailException

from dags.ray_job import RayJobOperator
from dags.shelf import FIRST_TASK, read_recipes
from pipeline.artifacts import digest_of
from pipeline.recipe import Recipe
from pipeline.settings import Settings

RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=10), "retry_exponential_backoff": 2.0}


def dataset_dag(recipe: Recipe, asset: Asset, store: str | None) -> DAG:
    """Images to shards: one task."""
    with DAG(
        f"{recipe.name}_dataset",
        schedule=recipe.schedule,
        catchup=False,
        max_active_runs=1,
        default_args=RETRIES,
        tags=["atelier", recipe.name],
        doc_md=f"Ingests the images of {about(recipe)} and tells `{recipe.name}_models`.",
    ) as dag:
        ray_job(recipe, "ingest", {"store": store} if store else {}, outlets=[asset])
    return dag


def models_dag(recipe: Recipe, asset: Asset) -> DAG:
    """A dataset to releases, each model by itself."""
    with DAG(
        f"{recipe.name}_models",
        schedule=[asset],
        catchup=False,
        max_active_runs=1,
        default_args=RETRIES,
        params={"dataset": Param(None, type=["null", "string"], description="URI of the dataset, for a run by hand")},
        tags=["atelier", recipe.name],
        doc_md=f"Trains, measures and publishes the models of {about(recipe)}.",
    ) as dag:
        dataset_uri = dataset()
        for model in recipe.models:
            with TaskGroup(model):
                model_tasks(recipe, model, dataset_uri)
    return dag


def about(recipe: Recipe) -> str:
    """Which recipe, to the letter: by its digest `atelier run --airflow` knows that Airflow has read the same one."""
    return f"the recipe `{recipe.name}` ({digest_of(recipe.to_json())})"


def model_tasks(recipe: Recipe, model: str, dataset_uri: Any) -> None:
    """The story of one model. URIs travel as XComs."""
    run: Any = ray_job(recipe, "train", {"model": model, "dataset": dataset_uri}).output
    evaluation: Any = ray_job(recipe, "evaluate", {"run": run}).output
    samples: Any = ray_job(recipe, "sample", {"run": run}).output
    release: Any = publish(recipe.to_json(), model, run, evaluation, samples)
    promote(recipe.to_json(), release)


def ray_job(recipe: Recipe, verb: str, options: dict[str, Any], **airflow_options: Any) -> RayJobOperator:
    """One verb of this recipe as a Ray job; the task has the verb's name."""
    return RayJobOperator(
        task_id=verb,
        verb=verb,
        recipe_json=recipe.to_json(),
        options=options,
        deadline_seconds=recipe.cluster.timeout_minutes * 60,
        **airflow_options,
    )


@task(task_id=FIRST_TASK)
def dataset(params: Any = None, triggering_asset_events: Any = None) -> str:
    """The dataset to train on: of the newest asset event that started this run, or the run's parameter `dataset`."""
    events = [event for of_asset in triggering_asset_events.values() for event in of_asset]
    newest = max(events, key=lambda event: event.timestamp, default=None)
    uri = newest.extra.get("uri") if newest else params["dataset"]
    if not uri:
        raise AirflowFailException(
            "expected the URI of a dataset, got none: start the run with the parameter `dataset` (a URI such as "
            "s3://bucket/datasets/NAME/ID), or run the DAG that ingests it"
        )
    return str(uri)


@task
def publish(recipe_json: str, model: str, run_uri: str, evaluation_uri: str, samples_uri: str) -> str:
    """Publish a run; gives the URI of the release."""
    from pipeline.releases import publish_uris

    return publish_uris(recipe_json, model, run_uri, evaluation_uri, samples_uri)


@task
def promote(recipe_json: str, release_uri: str, run_id: Any = None) -> str:
    """Give the release the recipe's alias, if the gate finds it better than the one that has it; gives the reason."""
    from pipeline.releases import promote_uri

    return promote_uri(recipe_json, release_uri, who="airflow", why=f"Airflow's run {run_id}")


_settings = Settings.from_environment()
for _recipe in read_recipes(_settings)[0]:
    _asset = Asset(name=_recipe.name, uri=f"{_settings.store or 'atelier:/'}/datasets/{_recipe.name}")
    globals()[f"{_recipe.name}_dataset"] = dataset_dag(_recipe, _asset, _settings.store)
    globals()[f"{_recipe.name}_models"] = models_dag(_recipe, _asset)
