"""The recipe: one YAML file that says all of it, validated in full before anything runs. `pipeline.sections` has its
sections.

`load_recipe` takes the name of a recipe that ships or lies in a folder of ATELIER_RECIPES, the path of a file, or the
recipe itself as one line of JSON (that is how a DAG hands it to a job: no file needs to be on the cluster). Relative
paths in a recipe are relative to the current directory.

What only a model family can check (its own fields of a model section) is checked by `check_models`, through the
entry-point group `atelier.recipe_checks`, because families import torch and this room does not.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    field_validator,
)

from pipeline.artifacts import Strict
from pipeline.errors import RecipeError
from pipeline.sections import (
    NAME_PATTERN,
    AirflowSpec,
    ChecksSpec,
    ClusterSpec,
    DatasetSpec,
    EvaluationSpec,
    GateSpec,
    ModelSpec,
    ReleaseSpec,
    WatchSpec,
)
from pipeline.sources import SourceBase, parse_source

SHIPPED = Path(__file__).parent / "recipes"
MAX_RECIPE_BYTES = 1 << 20
RESERVED = ("datasets", "runs", "evaluations", "samples", "releases", "aliases")  # folders of the store


def _source(section: Any) -> SourceBase:
    return section if isinstance(section, SourceBase) else parse_source(section)


class Recipe(Strict):
    """The whole of it."""

    name: str = Field(pattern=NAME_PATTERN)
    source: Annotated[SerializeAsAny[SourceBase], BeforeValidator(_source)]
    dataset: DatasetSpec
    checks: ChecksSpec = ChecksSpec()
    models: dict[Annotated[str, Field(pattern=NAME_PATTERN)], ModelSpec] = Field(min_length=1)
    cluster: ClusterSpec = ClusterSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    release: ReleaseSpec = ReleaseSpec()
    gate: GateSpec = GateSpec()
    schedule: str | WatchSpec | None = None  # for Airflow: cron, or a watch on the source
    airflow: AirflowSpec = AirflowSpec()

    @field_validator("name")
    @classmethod
    def _not_a_folder(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"another name than {', '.join(RESERVED)}, got {name!r}")
        return name

    _origin: str = PrivateAttr("recipe")
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    def to_json(self) -> str:
        """The resolved recipe as one line of canonical JSON, which `load_recipe` takes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def model_named(self, name: str) -> ModelSpec:
        """One model's section. Raises RecipeError listing the models that there are."""
        if name not in self.models:
            raise RecipeError(f"recipe {self.name}: expected a model of {', '.join(self.models)}, got {name!r}")
        return self.models[name]

    def release_name(self, model: str) -> str:
        """The name under which a model of this recipe is published."""
        return f"{self.name}-{model}"

    def at(self, path: str) -> str:
        """Where a field stands, for an error: `digits.yaml:12`."""
        return _at(self._origin, self._lines, path)

    def placed(self, origin: str, lines: dict[str, int]) -> Self:
        """Remember the file and the lines that the fields came from."""
        self._origin, self._lines = origin, lines
        return self


def recipe_files(folders: Sequence[Path] = ()) -> list[Path]:
    """The recipes that ship, then those of `folders`, each folder sorted by name."""
    return [file for folder in (SHIPPED, *folders) for file in sorted(folder.glob("*.yaml"))]


def load_recipe(reference: str, overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> Recipe:
    """Read and validate a recipe; `overrides` are `path.to.field=value`. Raises RecipeError, one line."""
    origin, text = _read(reference, folders)
    section, lines = _parse_yaml(text, origin)
    for override in overrides:
        _override(section, override)
    try:
        return Recipe.model_validate(section).placed(origin, lines)
    except ValidationError as error:
        raise RecipeError(_one_line(error, origin, lines)) from None
    except RecipeError as error:  # from a source, which knows its fields but not its line
        path = str(error).partition(":")[0]
        raise RecipeError(f"{_at(origin, lines, path)}: {error}") from None


def check_models(recipe: Recipe) -> None:
    """Let the families check their own fields. Raises RecipeError with the line, the path and the choices."""
    _check_shares(recipe)
    for check in entry_points(group="atelier.recipe_checks"):
        try:
            check_section = check.load()
        except ModuleNotFoundError as error:
            raise RecipeError(
                f"{check.value.partition(':')[0]} cannot check the models: {error.name} is not installed; "
                "install atelier with its extra `train`"
            ) from None
        for name, spec in recipe.models.items():
            try:
                check_section(spec.family, spec.options, f"models.{name}", recipe.cluster)
            except RecipeError as error:
                path = str(error).partition(":")[0]
                raise RecipeError(f"{recipe.at(path)}: {error}") from None


def _check_shares(recipe: Recipe) -> None:
    """Refuse workers without an image of a batch, and to cut a worker's share into more parts than it has images."""
    accumulate, workers = recipe.cluster.accumulate, recipe.cluster.workers
    for name, spec in recipe.models.items():
        if workers > spec.batch_size:
            raise RecipeError(
                f"{recipe.at('cluster.workers')}: cluster.workers: expected at most the models.{name}.batch_size "
                f"{spec.batch_size}, got {workers}; lower it, or raise the batch_size"
            )
        if accumulate > max(1, spec.batch_size // workers):
            raise RecipeError(
                f"{recipe.at('cluster.accumulate')}: cluster.accumulate: expected at most "
                f"{max(1, spec.batch_size // workers)} with models.{name}.batch_size {spec.batch_size} and workers "
                f"{workers}, got {accumulate}; lower it, or raise the batch_size"
            )


def _read(reference: str, folders: Sequence[Path]) -> tuple[str, str]:
    """The recipe's text, and what to call it in an error."""
    if reference.lstrip().startswith("{"):
        return "recipe", reference
    named = {file.stem: file for file in recipe_files(folders)}
    path = named.get(reference, Path(reference))
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: expected a recipe of at most {MAX_RECIPE_BYTES} bytes, got more")
        return str(path.name if reference in named else path), path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: expected a YAML text in UTF-8, got other bytes") from None
    except OSError as error:
        raise RecipeError(
            f"expected the name of a recipe ({', '.join(named)}) or the path of a YAML file, got {reference!r}: "
            f"{error.strerror}"
        ) from None


def _parse_yaml(text: str, origin: str) -> tuple[dict[str, Any], dict[str, int]]:
    """A recipe's mapping, and the line of each of its dotted paths."""
    try:
        if any(isinstance(event, yaml.events.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise RecipeError(f"{origin}: expected a recipe without YAML aliases, got one; write the value out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        section = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date such as 2026-13-45
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise RecipeError(f"{where}: expected YAML, got {getattr(error, 'problem', None) or error}") from None
    if not isinstance(section, dict):
        raise RecipeError(
            f"{origin}: expected a mapping with name, source, dataset and models, got {type(section).__name__}"
        )
    lines: dict[str, int] = {}
    for path, line in _lines_of(node, ()):
        if path in lines:
            raise RecipeError(f"{origin}:{line}: {path} stands twice (first in line {lines[path]}); keep one")
        lines[path] = line
    return section, lines


def _lines_of(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            yield ".".join(inner), key.start_mark.line + 1
            yield from _lines_of(value, inner)


def _override(section: dict[str, Any], override: str) -> None:
    """Set one field; the value is read as YAML, so `500` is a number and `true` a boolean."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set: expected path.to.field=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {path}: expected a YAML value, got {text!r}") from None
    *parents, last = path.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {path}: {parent} is no section of the recipe; `atelier check` shows them")
    section[last] = value


def _at(origin: str, lines: dict[str, int], path: str) -> str:
    """`origin:line` of a path, or of the nearest section above it that stands in the file."""
    parts = path.split(".")
    while parts:
        if line := lines.get(".".join(parts)):
            return f"{origin}:{line}"
        parts.pop()
    return origin


def _one_line(error: ValidationError, origin: str, lines: dict[str, int]) -> str:
    """The first complaint as one line: where, what was expected, what came, and how many more there are."""
    found = error.errors()
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])  # a slip misses its field, too
    path = ".".join(str(part) for part in first["loc"] if part != "[key]")
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if first["type"] == "missing":
        expected = "this field, which is required"
        message = f"{path}: expected {expected}"
    elif first["type"] == "extra_forbidden":
        message = f"{path}: unknown field; {_choices(path)}"
    elif first["type"] == "value_error":  # one of our own, which says what came
        message = f"{path}: expected {expected}"
    else:
        message = f"{path}: expected {expected}, got {first['input']!r:.80}"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{_at(origin, lines, path)}: {message}{more}"


def _choices(path: str) -> str:
    """The fields of the section that an unknown field stands in, the nearest one first."""
    *parents, last = path.split(".")
    model: Any = Recipe
    for parent in parents:
        field = model.model_fields.get(parent) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field else ModelSpec
    fields = list(model.model_fields)
    near = difflib.get_close_matches(last, fields, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}the fields here are {', '.join(fields)}"
