"""The ids of the stages' records: each is the digest of what goes in, so that the same work is found again.

What goes in: the parent's ref, the part of the recipe that the stage reads, the code's version. The cluster is in none.
"""

from pipeline import __version__
from pipeline.artifacts import digest_of
from pipeline.recipe import Recipe

PROTOCOL = "atelier-2"  # how figures are computed: a new number with each change (1 had no floors)


def run_id(recipe: Recipe, model: str, dataset: str, again: str | None = None) -> str:
    """The id of a model's training run on the dataset with this ref; `again` tells one more run of the same apart."""
    spec = recipe.model_named(model).identity
    inputs = {"dataset": dataset, "recipe": recipe.name, "model": model, "spec": spec, "code": __version__}
    return digest_of(inputs | ({"again": again} if again else {}))


def evaluation_id(recipe: Recipe, run: str, dataset: str) -> str:
    """The id of the evaluation of the run with this ref against the dataset with this ref."""
    spec = recipe.evaluation.model_dump(mode="json")
    return digest_of({"run": run, "dataset": dataset, "evaluation": spec, "protocol": PROTOCOL, "code": __version__})


def samples_id(run: str, count: int, seed: int) -> str:
    """The id of the sample set of the run with this ref."""
    return digest_of({"run": run, "count": count, "seed": seed, "code": __version__})


def release_id(recipe: Recipe, run: str, evaluation: str, samples: str) -> str:
    """The id of what a publisher means to publish; a second attempt at it ends with the same release."""
    spec = recipe.release.model_dump(mode="json", exclude={"alias"})
    parents = {"run": run, "evaluation": evaluation, "samples": samples}
    return digest_of({**parents, "release": spec, "code": __version__})
