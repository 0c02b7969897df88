"""Start the training loop where the recipe's `cluster:` says. The only importer of ray.train.

`local` runs one worker in this process and needs torch alone. `ray` hands the loop to Ray Train, on the cluster of
this Ray job (RAY_ADDRESS), or on one that lives as long as this process. A worker group that is lost is started again
and goes on from the newest complete checkpoint; so does a later call for the same run.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from pipeline import ids
from pipeline.artifacts import Dataset, Run
from pipeline.errors import AtelierError, IntegrityError, RecipeError, RecordError, Stopped, TrainingError
from pipeline.nodecache import NodeCache
from pipeline.recipe import Recipe, check_models, load_recipe
from pipeline.records import find, load
from pipeline.sections import ClusterSpec
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from pipeline.tasks import connect
from trainers import checkpoints, loop, warmstart, zero
from trainers.engine import TorchEngine
from trainers.interruption import Interruption, caught, stopped, stopped_kind
from trainers.task import Place, Say, Task

COLLECTIVE_TIMEOUT_SECONDS = 300
START_TIMEOUT_SECONDS = 120
# With fewer workers to be content with, waiting for a node that is gone is lost time: the next try asks who is there.
ELASTIC_START_TIMEOUT_SECONDS = 20
GROW_SECONDS = 60.0  # between looks for room to grow; each growth begins again at the last checkpoint
# 30 tries of 20 s are ten minutes, as long as a node takes to come back; of 120 s an hour, as a large machine may take.
MAX_START_FAILURES, MAX_START_FAILURES_HERE = 30, 3
POLL_SECONDS = 0.5
GRACE_SECONDS = 25.0  # from a signal to the end: Ray gives a job that it stops 30 s, Kubernetes a pod
# A store that is away may come back; these do not, or are meant.
LASTING = (IntegrityError, TrainingError, RecipeError, RecordError, Stopped)

STOP = b"signal"  # the key under which the starter of a run passes a signal on
STOPPED = b"stopped"  # and that of the workers' answer: Ray itself takes 15 s more to take such a run down

RAY_VARIABLES = {  # read when ray is imported, here and in its workers
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(COLLECTIVE_TIMEOUT_SECONDS),
}
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # an actor of 110 MiB a run: on a cluster whose nodes may drain
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


def train(
    store: Store,
    recipe: Recipe,
    model: str,
    dataset: Dataset,
    settings: Settings,
    say: Say,
    again: str | None = None,
) -> Run:
    """Train a model of the recipe on a dataset, or return its run where that is done. Raises TrainingError.

    `again` names one more run of the same inputs.
    """
    recipe.model_named(model)
    cache = NodeCache.of(settings, say)
    task = Task(store, recipe, model, dataset, ids.run_id(recipe, model, dataset.ref, again), cache)
    if done := find(store, task.run_ref, Run):
        return done
    check_models(recipe)
    warmstart.choose(task, say)
    if recipe.cluster.launcher == "local":
        train_here(task, say)
    else:
        _train_on_ray(task, settings, say)
    return load(store, task.run_ref, Run)


def train_here(task: Task, say: Say) -> None:
    """Train with one worker in this process."""
    cluster = task.recipe.cluster
    device = torch.device(_device(cluster, torch.cuda.is_available()))
    torch.set_num_threads(cluster.threads_per_worker)
    with caught() as signals:
        loop.train(task, Place(0, 1, device), TorchEngine, say, signals)


def _device(cluster: ClusterSpec, has_gpu: bool) -> str:
    if cluster.device == "cuda" and not has_gpu:
        raise RecipeError("cluster.device: expected a CUDA device, found none; choose device: cpu or auto")
    return "cuda" if has_gpu and cluster.device != "cpu" else "cpu"


def _train_on_ray(task: Task, settings: Settings, say: Say) -> None:
    try:
        connect(settings, _ray_variables(task.recipe.cluster, settings))
        import ray
        from ray import train as ray_train
        from ray.train.torch import TorchConfig, TorchTrainer
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"cluster.launcher: ray needs {error.name}, which is not installed; install atelier with its extra "
            "`train`, or choose launcher: local, engine: torch and workers: 1"
        ) from None

    cluster = task.recipe.cluster
    there, joined = ray.cluster_resources(), settings.ray_address is not None
    # A cluster that somebody else keeps may get GPUs once they are asked for: there `cuda` is taken at its word.
    has_gpu = there.get("GPU", 0) > 0 or (joined and cluster.device == "cuda")
    use_gpu = _device(cluster, has_gpu) == "cuda"
    if joined:
        for line in _notes(cluster, use_gpu, ray.available_resources()):
            say(f"train {task.model}: {line}")
    else:
        _check_size(cluster, use_gpu, there)
    config = {
        "store": task.store.uri,
        "recipe": task.recipe.to_json(),
        "model": task.model,
        "dataset": task.dataset.ref,
        "run_id": task.run_id,
        "cache": str(settings.cache_folder),
        "cache_gb": settings.cache_gb,
        "drains": joined,
    }
    may_grow = joined or cluster.elastic
    storage_path, filesystem = _storage(task.store, f"{task.run_ref}/ray")
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=ray_train.ScalingConfig(
            num_workers=(cluster.min_workers, cluster.workers) if cluster.elastic else cluster.workers,
            elastic_resize_monitor_interval_s=GROW_SECONDS,
            placement_strategy="SPREAD" if cluster.elastic else "PACK",
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray_train.RunConfig(
            name=task.run_id,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=ray_train.FailureConfig(
                max_failures=cluster.max_failures,
                controller_failure_limit=MAX_START_FAILURES if may_grow else MAX_START_FAILURES_HERE,
            ),
            callbacks=[_give_up_early()],
        ),
    )
    _fit(trainer, task, say)


def _ray_variables(cluster: ClusterSpec, settings: Settings) -> dict[str, str]:
    """What Ray reads from the environment, here and in its workers."""
    timeout = ELASTIC_START_TIMEOUT_SECONDS if cluster.elastic else START_TIMEOUT_SECONDS
    return {**RAY_VARIABLES, START_TIMEOUT: str(timeout), WATCHER: "1" if settings.ray_address else "0"}


def _fit(trainer: Any, task: Task, say: Say) -> None:
    """Follow Ray's controller: say the workers' lines, pass a signal on to them. Raises what ended the run.

    It runs in a thread: in the main one it would take SIGINT for itself and end the workers in the middle of a step.
    """
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

    failed: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - raised below, in the main thread
            failed.append(error)

    for key in (STOP, STOPPED):  # an earlier attempt's
        _internal_kv_del(key, namespace=_stop_of(task.run_id))
    controller = threading.Thread(target=fit, daemon=True)
    controller.start()
    with caught() as signals:
        told = 0.0
        while controller.is_alive():
            controller.join(POLL_SECONDS)
            _say_lines(task.run_id, say)
            if signals.number and not told:
                told = time.monotonic()
                _internal_kv_put(STOP, str(int(signals.number)), namespace=_stop_of(task.run_id))
            if told and (answer := _internal_kv_get(STOPPED, namespace=_stop_of(task.run_id))):
                raise stopped_kind(signals.number)(answer.decode())
            if told and time.monotonic() - told > GRACE_SECONDS:
                good = checkpoints.last_good(task.store, task.run_ref)
                raise stopped(signals.number, f"train {task.model}: not stopped within {GRACE_SECONDS:g} s; {good}")
    if failed:  # Ray wraps what a worker raised: give the user the cause, in one line
        raise _cause(failed[0]) from failed[0]


def _needs(cluster: ClusterSpec, workers: int, use_gpu: bool) -> dict[str, float]:
    """CPUs and GPUs of so many workers."""
    return {"CPU": workers * cluster.cpus_per_worker, "GPU": workers if use_gpu else 0}


def _check_size(cluster: ClusterSpec, use_gpu: bool, there: Mapping[str, float]) -> None:
    """A cluster of this process cannot grow: say so before Ray waits for what will not come."""
    workers = cluster.min_workers or cluster.workers
    for name, needed in _needs(cluster, workers, use_gpu).items():
        if needed > there.get(name, 0):
            each = f" x cpus_per_worker {cluster.cpus_per_worker:g}" if name == "CPU" else ""
            raise RecipeError(
                f"cluster: expected at most {there.get(name, 0):g} {name}s (this machine's), got workers "
                f"{workers}{each} = {needed:g}; lower it, or run on a larger Ray cluster"
            )


def _notes(cluster: ClusterSpec, use_gpu: bool, free: Mapping[str, float]) -> Iterator[str]:
    """What somebody who waits wants to know: that machines are yet to come, or that nobody asked for GPUs."""
    for name, needed in _needs(cluster, cluster.min_workers or cluster.workers, use_gpu).items():
        if needed > free.get(name, 0):
            yield f"waits for {needed:g} {name}s; {free.get(name, 0):g} are free now"
    if cluster.device == "auto" and not use_gpu:
        yield "on CPUs, as the cluster has no GPU now; where GPUs come on demand, cluster.device: cuda asks for them"


def _storage(store: Store, key: str) -> tuple[str, Any]:
    """Where Ray Train keeps its own state, in the words of its two options: beside the run, in the same store."""
    place = urlparse(store.uri)
    if place.scheme == "file":
        return f"{place.path}/{key}", None
    from pyarrow import fs

    return f"{place.netloc}{place.path}/{key}", fs.S3FileSystem(
        endpoint_override=Settings.from_environment().s3_endpoint
    )


def _cause(error: BaseException) -> AtelierError:
    """The project's own error inside Ray's, or one line about what else happened."""
    if own := _own_error(error):
        return own
    last = str(error).strip().splitlines()[-1]
    return TrainingError(
        f"training did not finish: {type(error).__name__}: {last:.300}; a rerun goes on from the last checkpoint"
    )


def _own_error(error: BaseException) -> AtelierError | None:
    """The project's own error among those that Ray has wrapped: of any worker, of the controller."""
    if isinstance(error, AtelierError):
        return error
    inner = [*getattr(error, "worker_failures", {}).values(), error.__cause__]
    inner += [getattr(error, name, None) for name in ("controller_failure", "_base_exc", "cause")]
    found = (_own_error(one) for one in inner if isinstance(one, BaseException))
    return next((own for own in found if own), None)


def _give_up_early() -> Any:
    """A callback of Ray Train's controller: an error that another attempt would meet again ends the run at once."""
    from ray.train import UserCallback

    class GiveUp(UserCallback):  # type: ignore[misc]  # ray ships no types
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(own := _own_error(error), LASTING):
                    raise own  # Ray tries no failure again that a callback raised

    return GiveUp()


def _teller(run_id: str) -> Say:
    """How a worker says a line to whoever started the run: through the cluster's key-value table, which is there
    already (an actor of our own would take 190 MiB)."""
    from ray.experimental.internal_kv import _internal_kv_put

    def tell(line: str) -> None:
        _internal_kv_put(f"{time.time_ns():020d}", line, namespace=_lines_of(run_id))

    return tell


def _lines_of(run_id: str) -> bytes:
    return f"atelier-lines-{run_id}".encode()


def _stop_of(run_id: str) -> bytes:
    return f"atelier-stop-{run_id}".encode()


def _say_lines(run_id: str, say: Say) -> None:
    """Say the lines that workers have told since the last time."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list

    namespace = _lines_of(run_id)
    for key in sorted(_internal_kv_list(b"", namespace=namespace)):
        say(_internal_kv_get(key, namespace=namespace).decode())
        _internal_kv_del(key, namespace=namespace)


class FromRay(Interruption):
    """A signal that the starter of the run passed on, and the drains that Ray Train tells of."""

    def __init__(self, run_id: str, drains: bool) -> None:
        self._run_id, self._drains = run_id, drains
        self._number = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_get

        while not self._number:
            time.sleep(POLL_SECONDS)
            self._number = int(_internal_kv_get(STOP, namespace=_stop_of(self._run_id)) or 0)

    def signal_number(self) -> int:
        return self._number

    def draining(self) -> bool:
        from ray import train as ray_train

        return self._drains and ray_train.get_preemption_info() is not None


def _cache_of_node(config: dict[str, Any], say: Say) -> NodeCache:
    """The cache that this node's environment names, else in the folder that the starter's names."""
    own = Settings.from_environment()
    gigabytes = config["cache_gb"] if own.cache_gb is None else own.cache_gb
    return NodeCache.of(replace(own, cache=own.cache or Path(config["cache"]), cache_gb=gigabytes), say)


def _worker(config: dict[str, Any]) -> None:
    """One worker of a Ray Train group."""
    from ray import train as ray_train
    from ray.experimental.internal_kv import _internal_kv_put
    from ray.train.torch import get_device

    context = ray_train.get_context()
    store = open_store(config["store"])
    recipe = load_recipe(config["recipe"])
    say = _teller(config["run_id"])
    dataset = load(store, config["dataset"], Dataset)
    task = Task(store, recipe, config["model"], dataset, config["run_id"], _cache_of_node(config, say))
    cluster = recipe.cluster
    torch.set_num_threads(cluster.threads_per_worker)

    place = Place(context.get_world_rank(), context.get_world_size(), get_device())
    try:
        loop.train(task, place, zero.maker(cluster), say, FromRay(config["run_id"], config["drains"]))
    except Stopped as error:
        _internal_kv_put(STOPPED, str(error), namespace=_stop_of(config["run_id"]))
        raise
