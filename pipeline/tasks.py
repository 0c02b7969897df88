"""Run one function over many arguments: in threads of this process where that is little work, else as Ray tasks on all
nodes.

    with pool(recipe.cluster, work_seconds, threads, settings, say) as run:
        for result in run(function, arguments): ...      # as they finish, with a bounded number under way

A task whose worker dies is run again (Ray, `RETRIES` times); an error that the function raises ends the whole. The
only importer of ray beside `trainers.launch`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from pipeline.errors import AtelierError
from pipeline.sections import ClusterSpec
from pipeline.settings import RAY_ON_LOOPBACK, Settings, update_environment

RAY_PAYS_SECONDS = 20.0  # of work on one core: starting Ray takes 5 to 10
UNDER_WAY_PER_CPU = 2
RETRIES = 3

A = TypeVar("A")
R = TypeVar("R")


class Run(Protocol):
    """Runs a function of one argument over many; results come as they finish."""

    def __call__(self, function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[R]:
        """The results, in any order."""


@contextmanager
def pool(
    cluster: ClusterSpec, work_seconds: float, threads: int, settings: Settings, say: Callable[[str], None]
) -> Iterator[Run]:
    """Workers for about so much work, in seconds of one core. A Ray that this starts ends with the block.

    Without Ray, `threads` of this process: more than one pays where the work is in libraries that leave Python's lock.
    """
    if work_seconds < RAY_PAYS_SECONDS or cluster.launcher == "local" or find_spec("ray") is None:
        yield partial(_in_threads, threads)
        return
    with _connected(settings):
        import ray

        say(f"tasks on Ray, {ray.cluster_resources().get('CPU', 0):g} CPUs")
        yield _on_ray


def _in_threads(most: int, function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[R]:
    waiting: set[Future[R]] = set()
    with ThreadPoolExecutor(most) as threads:
        for argument in arguments:
            waiting.add(threads.submit(function, argument))
            if len(waiting) > most:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


@contextmanager
def _connected(settings: Settings) -> Iterator[None]:
    """The job's cluster, one that this process has joined already, or one for this block."""
    if not connect(settings):
        yield
        return
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def connect(settings: Settings, more: Mapping[str, str] | None = None) -> bool:
    """Join the job's cluster, or start one that lives as long as this process; False where one was joined before.

    `more` variables are for Ray, here and in its workers, which read them when they import it. A cluster of this
    process asks for a token, and so does one that is joined, unless RAY_AUTH_MODE says otherwise.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token") if settings.ray_address else "token"
    variables = {"RAY_AUTH_MODE": mode, **(more or {})}
    update_environment(variables)
    if settings.ray_address is None:
        update_environment(RAY_ON_LOOPBACK)
    import ray

    if ray.is_initialized():
        return False
    here = {} if settings.ray_address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(
        address=settings.ray_address or "local",
        runtime_env={"env_vars": variables},
        log_to_driver=False,  # progress comes from the driver, errors by exception; the rest stays in Ray's own logs
        logging_level="error",
        **here,
    )
    return True


def _on_ray(function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[R]:
    import ray

    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
    waiting: list[Any] = []
    for argument in arguments:
        waiting.append(remote.remote(argument))
        most = UNDER_WAY_PER_CPU * int(ray.cluster_resources().get("CPU", 1))  # the cluster may grow
        while len(waiting) >= max(most, 2):
            done, waiting = ray.wait(waiting)
            yield from _results(done)
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from _results(done)


def _results(done: list[Any]) -> Iterator[Any]:
    """The results; the function's own error instead of Ray's, which wraps it in a traceback."""
    import ray

    for reference in done:
        try:
            yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AtelierError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise AtelierError(f"a task was lost {RETRIES + 1} times: {first:.300}; run again to go on") from error
