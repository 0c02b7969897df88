"""Recipes that cannot be read, shown as this file's import error. The others' DAGs are in recipes.py and stay.

Airflow keeps import errors by file, and a file that raises has no DAGs: so a broken recipe is told of from here.
"""

from dags.shelf import read_recipes
from pipeline.errors import RecipeError
from pipeline.settings import Settings

# Airflow looks for DAGs in files only that have the words `airflow` and `dag` in them.
_, problems = read_recipes(Settings.from_environment())
if problems:
    raise RecipeError("\n".join(problems))
