"""A pair of DAGs for each recipe: `<name>_dataset` ingests; its asset event starts `<name>_models`.

    <name>_dataset   ingest                     by the recipe's schedule (cron, or a watch on its source), or by hand
    <name>_models    dataset, chosen
                     model[i], by its name:     train >> [evaluate, sample] >> publish >> promote

The recipes are those that ship and those in the folders of ATELIER_RECIPES; broken_recipes.py tells of the ones that
cannot be read or built. A model is an instance of a mapped group: a run trains the models that its parameter `models`
names, and one that fails spoils no other. What travels between tasks are URIs of records.
"""

import contextlib
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import DAG, Asset, get_current_context, task, task_group
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError

from dags.links import RayJobLink, RecordLink, ReleaseLink, TensorBoardLink
from dags.notifiers import Webhook
from dags.ray_job import RayJobOperator, nonce_of
from dags.shelf import problem_of, read_recipes
from dags.watch import source_asset
from dags.words import about, model_params, models_doc
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.sections import WatchSpec
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

MAX_RETRY_DELAY = timedelta(hours=1)
_log = logging.getLogger(__name__)
CHOSEN = "chosen"  # in a task's state store: the dataset that it gave
TOLD = "told"  # in a dataset's asset state store: the last event, as the URI and the run that made it


class IngestOperator(RayJobOperator):
    """Makes a dataset, and tells of it where it is news.

    A scheduled run that finds the dataset that was told of last makes no event, so that a cron over a source at rest
    starts no training. A run by hand always makes one: whoever starts it wants to see the models follow (of those only
    what is not done yet is done), such as those whose DAG was paused before. So does a run that is cleared.
    """

    def is_news(self, context: "Context", asset: Asset, uri: str) -> bool:
        run: Any = context["dag_run"]
        notes = context["asset_state_store"][asset]
        last = cast("dict[str, str]", notes.get(TOLD, {}))
        if run.run_type != "manual" and last.get("uri") == uri and self._was_told(context, last["run_id"]):
            self.log.info("the source is unchanged: %s is the dataset that was told of last, no event is made", uri)
            return False
        notes.set(TOLD, {"uri": uri, "run_id": run.run_id})
        return True

    def _was_told(self, context: "Context", run_id: str) -> bool:
        """Whether another run that noted to make an event has made it: it may have died in between."""
        instance: Any = context["ti"]
        if run_id == instance.run_id:
            return False
        try:
            return bool(instance.get_dagrun_state(instance.dag_id, run_id) == "success")
        except AirflowRuntimeError:  # somebody has deleted the run: one event too many does no harm
            return False


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
        ray_job(recipe, "ingest", {"store": store} if store else {}, IngestOperator, outlets=[asset])
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
        dataset_uri = dataset.override(inlets=[asset])()

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
        "auto_register": False,  # or they would be broken_recipes.py's as well, which imports this file
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
def dataset(
    params: Any = None,
    triggering_asset_events: Any = None,
    inlet_events: Any = None,
    asset_state_store: Any = None,
    task_state_store: Any = None,
) -> str:
    """The dataset to train on: the newest that there is an event of where events started this run, else the run's
    parameter `dataset`, else the newest that the recipe's other DAG has told of. Cleared, it gives the same again."""
    uri = task_state_store.get(CHOSEN)
    if not uri and triggering_asset_events:
        uri = newest_uri(triggering_asset_events, inlet_events)
    if not uri:
        uri = params["dataset"] or asset_state_store.get(TOLD, {}).get("uri")
    if not uri:
        words = (
            "expected the URI of a dataset, got none, and this recipe has none yet: run the DAG that ingests it, or "
            "start the run with the parameter `dataset` (a URI such as s3://bucket/datasets/NAME/ID)"
        )
        _log.error(words)  # above the traceback, which cannot be left out
        raise AirflowFailException(words)
    task_state_store.set(CHOSEN, uri)
    _log.info("training on %s", uri)
    return str(uri)


def newest_uri(triggering: Any, inlet_events: Any) -> str | None:
    """The dataset of the newest event, which need not be one of those that Airflow names as the run's.

    Of several that come while a run is busy, Airflow 3.3.2 starts the next run for the first, and starts none for the
    others (apache/airflow#56050).
    """
    events = [event for of_asset in triggering.values() for event in of_asset]
    with contextlib.suppress(AirflowRuntimeError):  # it cannot list events while a run of theirs is queued
        events += inlet_events[0].ascending(False).limit(1)
    told = [event for event in events if (event.extra or {}).get("uri")]
    newest = max(told, key=lambda event: event.timestamp, default=None)
    return str(newest.extra["uri"]) if newest else None


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


def dags_of(settings: Settings) -> tuple[dict[str, DAG], list[str]]:
    """The DAGs of all recipes by their ids, and a line about each recipe that gives none: it spoils no other."""
    recipes, problems = read_recipes(settings)
    dags: dict[str, DAG] = {}
    for recipe in recipes:
        asset = Asset(name=recipe.name, uri=f"{settings.store or 'atelier:/'}/datasets/{recipe.name}")
        try:
            pair = [dataset_dag(recipe, asset, settings.store), models_dag(recipe, asset)]
        except Exception as error:  # noqa: BLE001 - told of by broken_recipes.py
            problems.append(problem_of(recipe.at("name"), f"the DAGs of {recipe.name}", error))
        else:
            dags |= {dag.dag_id: dag for dag in pair}
    return dags, problems


_dags, problems = dags_of(Settings.from_environment())
globals().update(_dags)  # Airflow finds the DAGs that are globals of a file
