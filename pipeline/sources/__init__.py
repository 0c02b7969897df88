"""Where raw images come from: the words that ingest shares with every source.

A source is one file in this folder, found by its name (`kind: folder` is `folder.py`). It has

    class Source(SourceBase)      its fields of the recipe's source section; `kind` is its name

and nothing else in the project names it. It is described relative to the current directory.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.artifacts import Rejected, Strict
from pipeline.errors import RecipeError

if TYPE_CHECKING:  # numpy takes a third of the time that importing `pipeline` may take
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Item:
    """One raw image: an encoded file, or uint8 pixels (height, width, 1 or 3). `label` indexes `classes`."""

    name: str
    data: bytes | NDArray[np.uint8]
    label: int | None


class SourceBase(Strict, ABC):
    """What every source can say. All of it may raise SourceError, one clear line."""

    kind: str

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of what is there, by content: the same images give the same digest wherever they lie."""

    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty where the images carry no labels."""

    @abstractmethod
    def items(self) -> Iterator[Item | Rejected]:
        """The images in a stable order, one in memory at a time; Rejected for what can be no image."""

    def num_items(self) -> int | None:
        """How many `items` there will be, None where only reading them tells."""
        return None


def kinds() -> list[str]:
    """The sources there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def parse_source(section: Any, where: str = "source") -> SourceBase:
    """Check a recipe's source section. Raises RecipeError naming `where`.field and the choices."""
    if not isinstance(section, Mapping):
        raise RecipeError(f"{where}: expected a mapping with a kind ({', '.join(kinds())}), got {section!r}")
    kind = section.get("kind")
    if kind not in kinds():
        raise RecipeError(f"{where}.kind: expected one of {', '.join(kinds())}, got {kind!r}")
    source_class: type[SourceBase] = importlib.import_module(f"{__name__}.{kind}").Source
    try:
        return source_class.model_validate(dict(section))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([where, *(str(part) for part in first["loc"])])
        choices = f"the fields of {kind} are {', '.join(source_class.model_fields)}"
        if first["type"] == "missing":
            raise RecipeError(f"{path}: expected this field, which is required; {choices}") from None
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"{path}: unknown field; {choices}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{path}: {message}, got {first['input']!r:.80}") from None
