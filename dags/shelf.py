"""Which recipes become DAGs: every recipe that can be read, and one line about each that cannot."""

from pathlib import Path

from croniter import croniter  # type: ignore[import-untyped]  # comes with Airflow

from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, load_recipe, recipe_files
from pipeline.settings import Settings


def read_recipes(settings: Settings) -> tuple[list[Recipe], list[str]]:
    """All recipes that ship or lie in the folders of ATELIER_RECIPES, and what is wrong with the others.

    A file takes the place of one of the same name in an earlier folder, as it does on the command line.
    """
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    files = {file.name: file for file in recipe_files(settings.recipe_folders)}
    for file in files.values():
        try:
            recipe = load_recipe(str(file))
            _check(recipe, file, recipes)
        except RecipeError as error:
            problems.append(str(error))
        else:
            recipes[recipe.name] = recipe
    return list(recipes.values()), problems


def _check(recipe: Recipe, file: Path, others: dict[str, Recipe]) -> None:
    """What Airflow asks of a recipe beyond its own rules."""
    if recipe.name in others:
        raise RecipeError(f"{file}: expected a name that no other recipe has, got {recipe.name!r}")
    if isinstance(recipe.schedule, str) and not croniter.is_valid(recipe.schedule):
        raise RecipeError(f"{recipe.at('schedule')}: expected cron such as '0 3 * * *', got {recipe.schedule!r}")
