"""A pair of DAGs for each recipe: `<name>_dataset` ingests; its asset event starts `<name>_models`.

    <name>_dataset   ingest                     by the recipe's schedule (cron, or a watch on its source), or by hand
    <name>_models    dataset, chosen
                     model[i], by its name:     train >> [evaluate, sample] >> publish >> promote

The recipes are those that ship and those in the folders of ATELIER_RECIPES; broken_recipes.py tells of the ones that
cannot be read. A model is an instance of a mapped group: a run trains the models that its parameter `models` names, and
one that fails spoils no other. What travels between tasks are URIs of records.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Asset, Param, get_current_context, task, task_group
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowFailException

from dags.links import RayJobLink, RecordLink, ReleaseLink, TensorBoardLink
from dags.notifiers import Webhook
from dags.ray_job import RayJobOperator, nonce_of
from dags.shelf import read_recipes
from dags.watch import source_asset
from pipeline.artifacts import digest_of
from pipeline.errors import UserError
from pipeline.recipe import Recipe, WatchSpec
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

MAX_RETRY_DELAY = timedelta(hours=1)


class TrainOperator(RayJobOperator):
    """Trains one model as the run's parameters say. One that is cleared after it succeeded trains again."""

    operator_extra_links = (RayJobLink(), RecordLink(), TensorBoardLink())

    def more_options(self, context: "Context") -> "Mapping[str, Any]":
        params: Any = context["params"]
        model = self.options["model"]
        changes = {
            f"models.{model}.steps": params["steps"],
            f"models.{model}.seed": params["seed"],
            "cluster.workers": params["workers"],
        }
        again = nonce_of(context, force=params["force"])
        return {
            "set": [f"{path}={value}" for path, value in changes.items() if value is not None],
            **({"again": again} if again else {}),
        }


def dataset_dag(recipe: Recipe, asset: Asset, store: str | None) -> DAG:
    """Images to shards: one task."""
    watched = isinstance(recipe.schedule, WatchSpec)
    with DAG(
        f"{recipe.name}_dataset",
        schedule=[source_asset(recipe)] if watched else recipe.schedule,
        doc_md=f"Ingests the images of {about(recipe)} and tells `{recipe.name}_models`.",
        **common(recipe),
    ) as dag:
        ray_job(recipe, "ingest", {"store": store} if store else {}, outlets=[asset])
    return dag


def models_dag(recipe: Recipe, asset: Asset) -> DAG:
    """A dataset to releases, each model by itself."""
    with DAG(
        f"{recipe.name}_models",
        schedule=[asset],
        params=model_params(recipe),
        doc_md=models_doc(recipe),
        **common(recipe),
    ) as dag:
        dataset_uri = dataset()

        @task_group(group_id="model")
        def of_model(model: Any) -> None:
            model_tasks(recipe, model, dataset_uri)

        of_model.expand(model=chosen())
    return dag


def common(recipe: Recipe) -> dict[str, Any]:
    """What both DAGs of a recipe share. Several events of an asset while a run is busy start one more run."""
    asked = recipe.airflow
    policy = ExceptionRetryPolicy([RetryRule(UserError, RetryAction.FAIL, reason="the user's mistake: no retry helps")])
    options: dict[str, Any] = {
        "catchup": False,
        "max_active_runs": 1,
        "tags": ["atelier", recipe.name, *asked.tags],
        "default_args": {
            "owner": asked.owner,
            "retries": asked.retries,
            "retry_delay": timedelta(seconds=asked.retry_seconds),
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": MAX_RETRY_DELAY,
            "retry_policy": policy,
        },
    }
    if asked.notify:
        options["on_failure_callback"] = [Webhook(asked.notify, "failed")]
    if asked.notify and asked.late_after_minutes:
        late = AsyncCallback(Webhook, kwargs={"connection_id": asked.notify, "what": "is late"})
        interval = timedelta(minutes=asked.late_after_minutes)
        options["deadline"] = DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, interval, late)
    return options


def model_params(recipe: Recipe) -> dict[str, Param]:
    """What a run by hand may say. Airflow's form shows it and refuses what the schema does not allow."""
    names = list(recipe.models)
    most = recipe.cluster.workers if recipe.airflow.pool else 4096  # slots of the pool are taken before a run is known
    integer = ["null", "integer"]
    return {
        "dataset": Param(None, type=["null", "string"], description="URI of the dataset, for a run by hand"),
        "models": Param(
            names,
            type="array",
            items={"type": "string", "enum": names},
            examples=names,
            minItems=1,
            uniqueItems=True,
            description="Which models to train",
        ),
        "steps": Param(None, type=integer, minimum=1, description="Steps of each; empty: as the recipe says"),
        "seed": Param(None, type=integer, minimum=0, maximum=2**31 - 1, description="Seed; empty: the recipe's"),
        "workers": Param(None, type=integer, minimum=1, maximum=most, description="Workers; empty: the recipe's"),
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
            "`publish` to publish the same release again.",
        ]
    )


def model_tasks(recipe: Recipe, model: Any, dataset_uri: Any) -> None:
    """The story of one model."""
    pooled = {"pool": recipe.airflow.pool, "pool_slots": recipe.cluster.workers} if recipe.airflow.pool else {}
    named = {"shown_as": model, "map_index_template": "{{ task.shown_as }}"}
    one = {**named, **pooled, **({"pool_slots": 1} if pooled else {})}
    options = {"model": model, "dataset": dataset_uri}
    run: Any = ray_job(recipe, "train", options, TrainOperator, **named, **pooled).output
    evaluation: Any = ray_job(recipe, "evaluate", {"run": run}, **one).output
    samples: Any = ray_job(recipe, "sample", {"run": run}, **one).output
    release: Any = publish(recipe.to_json(), model, run, evaluation, samples)
    release.operator.operator_extra_links = (ReleaseLink(),)
    promote(recipe.to_json(), model, release)


def ray_job(
    recipe: Recipe,
    verb: str,
    options: dict[str, Any],
    kind: type[RayJobOperator] = RayJobOperator,
    **airflow_options: Any,
) -> RayJobOperator:
    """One verb of this recipe as a Ray job; the task has the verb's name."""
    return kind(
        task_id=verb,
        verb=verb,
        recipe_json=recipe.to_json(),
        options=options,
        deadline_seconds=recipe.cluster.timeout_minutes * 60,
        doc_md=f"`atelier {verb}` as a Ray job; its log is this task's, and it returns the URI of the record it made.",
        **airflow_options,
    )


@task
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
def chosen(params: Any = None) -> list[str]:
    """The models to train: the run's parameter `models`."""
    return list(params["models"])


@task(map_index_template="{{ model }}")
def publish(recipe_json: str, model: str, run_uri: str, evaluation_uri: str, samples_uri: str) -> str:
    """Publish a run; gives the URI of the release."""
    from pipeline.releases import publish_uris

    _name_instance(model)
    return publish_uris(recipe_json, model, run_uri, evaluation_uri, samples_uri)


@task(map_index_template="{{ model }}")
def promote(recipe_json: str, model: str, release_uri: str, run_id: Any = None) -> str:
    """Give the release the recipe's alias, if the gate finds it better than the one that has it; gives the reason."""
    from pipeline.releases import promote_uri

    _name_instance(model)
    return promote_uri(recipe_json, release_uri, who="airflow", why=f"Airflow's run {run_id}")


def _name_instance(model: str) -> None:
    """Let Airflow's pages call this instance of a mapped task by its model."""
    get_current_context()["model"] = model  # type: ignore[typeddict-unknown-key]  # `map_index_template` reads it


_settings = Settings.from_environment()
for _recipe in read_recipes(_settings)[0]:
    _asset = Asset(name=_recipe.name, uri=f"{_settings.store or 'atelier:/'}/datasets/{_recipe.name}")
    globals()[f"{_recipe.name}_dataset"] = dataset_dag(_recipe, _asset, _settings.store)
    globals()[f"{_recipe.name}_models"] = models_dag(_recipe, _asset)
