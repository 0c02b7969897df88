"""Where raw images come from: the words that ingest shares with every source.

A source is one file in this folder, found by its name (`kind: folder` is `folder.py`). It has

    class Source(SourceBase)      its fields of the recipe's source section; `kind` is its name

and nothing else in the project names it. It is described relative to the current directory.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from pipeline.artifacts import Rejected, Strict
from pipeline.errors import RecipeError, SourceError

if TYPE_CHECKING:  # numpy takes a third of the time that importing `pipeline` may take
    import numpy as np
    from numpy.typing import NDArray


class Piece(NamedTuple):
    """What a source is listed by, and read again when it changed: one image file, or a part of a larger file."""

    name: str  # one printable line, once in the source
    mark: str  # another one after the content changed: a digest, or size and etag or time
    bytes: int  # about how many are read for it
    num_items: int = 1  # images in it
    at: str = ""  # where the reader finds it, in the reader's terms


class Item(NamedTuple):
    """One raw image: an encoded file, or uint8 pixels (height, width, 1 or 3). `label` is its class's name."""

    name: str
    data: bytes | NDArray[np.uint8]
    label: str | None


class SourceBase(Strict, ABC):
    """What every source can say. All of it may raise SourceError, one clear line. Instances travel to workers."""

    kind: str

    @abstractmethod
    def pieces(self) -> Iterator[Piece | Rejected]:
        """What is there, lazily and in a stable order, without reading the images; Rejected for what can be none.

        Memory does not grow with their number beyond one folder's names.
        """

    @abstractmethod
    def read_piece(self, piece: Piece) -> Iterator[Item | Rejected]:
        """The images of a piece in a stable order, one (or one bounded block) in memory at a time.

        Raises SourceError where the piece is gone or another one than was listed, as far as reading it shows that.
        """

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Item | Rejected]]:
        """The images of several pieces in their order; a source with slow reads overlaps them."""
        for piece in pieces:
            for item in self.read_piece(piece):
                yield piece, item

    @property
    def remote(self) -> bool:
        """Whether reads wait for a network: several at a time then hide it."""
        return False

    @property
    def checks_marks(self) -> bool:
        """Whether reading a piece shows every change of its mark: then the source is not listed again at the end."""
        return False

    def classes(self) -> tuple[str, ...] | None:
        """The classes in their order where the source states them; None: those that occur, in natural order."""
        return None


def changed(source: str, name: str) -> SourceError:
    """The error where a piece is not the one that was listed."""
    return SourceError(
        f"{source}: expected a source that rests while it is read, got one where {name} changed; run again when "
        "nothing writes to it"
    )


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
