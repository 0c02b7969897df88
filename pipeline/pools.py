"""The pools that recipes name (`airflow.pool`), made in the embedded stack's Airflow.

Airflow never starts a task whose pool is not there, or is smaller than the task's slots, and says so nowhere near the
task: so `atelier up` and `atelier run --airflow` make the pools that are missing, and tell of those that are too small.
They tell of those that leave deferred tasks out, too: a training waits for its job deferred, and more would start.
A pool that is there is its owner's and stays. Elsewhere: `airflow pools set NAME SLOTS WORDS --include-deferred`.
"""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from pipeline.airflow_client import AirflowClient
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, load_recipe, recipe_files
from pipeline.servers import AirflowServers, ray_cpus

DESCRIPTION = "Made by atelier: a slot for each worker that may train at a time"


def make_pools_of(servers: AirflowServers, folders: Sequence[Path]) -> list[str]:
    """The same for all recipes that ship or lie in the folders, but for broken ones, which Airflow tells of."""
    recipes = []
    for file in recipe_files(folders):
        with contextlib.suppress(RecipeError):
            recipes.append(load_recipe(str(file)))
    if not any(recipe.airflow.pool for recipe in recipes):
        return []
    with AirflowClient(servers) as airflow:
        return make_pools(airflow, recipes)


def make_pools(airflow: AirflowClient, recipes: Iterable[Recipe]) -> list[str]:
    """Make the pools that recipes name and Airflow lacks; gives a line about each that was made or does not do.

    A slot is a GPU of this machine, or without any a CPU of its Ray; at least as many as the largest recipe takes.
    """
    needed: dict[str, Recipe] = {}
    for recipe in recipes:
        pool = recipe.airflow.pool
        if pool and (pool not in needed or needed[pool].cluster.workers < recipe.cluster.workers):
            needed[pool] = recipe
    return [line for pool, recipe in needed.items() for line in _make(airflow, pool, recipe)]


def _make(airflow: AirflowClient, pool: str, recipe: Recipe) -> list[str]:
    workers = recipe.cluster.workers
    found = airflow.ask("GET", f"/pools/{quote(pool, safe='')}", missing_is_none=True)
    if found is None:
        slots = max(num_gpus() or ray_cpus(), workers)
        body = {"name": pool, "slots": slots, "description": DESCRIPTION, "include_deferred": True}
        airflow.ask("POST", "/pools", body)
        return [f"made Airflow's pool {pool} with {slots} slots"]
    lines = []
    if 0 <= found["slots"] < workers:  # -1: without limit
        lines.append(
            f"recipe {recipe.name}: expected a pool {pool} of {workers} slots or more, one for each worker, got "
            f"{found['slots']}: Airflow would never start its training; raise them under Admin, Pools"
        )
    if not found["include_deferred"]:
        lines.append(
            f"recipe {recipe.name}: expected a pool {pool} that includes deferred tasks, got one that does not: its "
            "trainings would share the GPUs; let it include them under Admin, Pools"
        )
    return lines


def num_gpus() -> int:
    """NVIDIA's GPUs of this machine."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
