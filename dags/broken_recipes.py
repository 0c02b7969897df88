"""Recipes that give no DAGs, shown as this file's import error. The others' DAGs are in recipes.py and stay.

Airflow keeps import errors by file, and a file that raises has no DAGs: so a broken recipe is told of from here.
"""

from dags.recipes import problems
from pipeline.errors import RecipeError

# Airflow looks for DAGs in files only that have the words `airflow` and `dag` in them.
if problems:
    raise RecipeError("\n".join(problems))
