"""Which recipes become DAGs: every recipe that can be read, and one line about each that cannot."""

from pathlib import Path

from croniter import CroniterError, croniter  # type: ignore[import-untyped]  # comes with Airflow

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
        except Exception as error:  # noqa: BLE001 - told of by broken_recipes.py; the other recipes' DAGs stay
            problems.append(problem_of(str(file), "a recipe", error))
        else:
            recipes[recipe.name] = recipe
    return list(recipes.values()), problems


def _check(recipe: Recipe, file: Path, others: dict[str, Recipe]) -> None:
    """What Airflow asks of a recipe beyond its own rules."""
    if recipe.name in others:
        raise RecipeError(f"{file}: expected a name that no other recipe has, got {recipe.name!r}")
    if isinstance(recipe.schedule, str) and not _comes(recipe.schedule):
        raise RecipeError(f"{recipe.at('schedule')}: expected cron such as '0 3 * * *', got {recipe.schedule!r}")


def _comes(cron: str) -> bool:
    """Whether it is cron, and of a day that comes."""
    try:
        return bool(croniter.is_valid(cron) and croniter(cron).get_next())
    except CroniterError:  # '0 0 31 2 *': no such day in 50 years
        return False


def problem_of(where: str, what: str, error: Exception) -> str:
    """One line about an error that no check of ours has foreseen."""
    words = " ".join(str(error).split())
    return f"{where}: expected {what}, got {type(error).__name__}: {words:.200}; this recipe is left out"
