"""What a lineage is made of, as a program reads it (`--json`) and as a tree for a person."""

from collections.abc import Iterator
from typing import Literal

from rich.text import Text
from rich.tree import Tree

from pipeline.artifacts import Strict

State = Literal["intact", "unchecked", "gone", "changed"]
MARKS: dict[State, tuple[str, str]] = {
    "intact": ("digest holds", "green"),
    "unchecked": ("", ""),
    "gone": ("gone", "yellow"),
    "changed": ("CHANGED", "bold red"),
}


class Node(Strict):
    """One thing of a lineage, and those behind it, seen from where the lineage starts."""

    kind: str
    name: str  # the ref of a record, else what a person calls it
    about: str
    state: State = "unchecked"  # intact: its bytes have the digest that it is named with
    behind: tuple["Node", ...] = ()

    def walk(self) -> Iterator["Node"]:
        """The node and all behind it."""
        yield self
        for node in self.behind:
            yield from node.walk()


class Lineage(Strict):
    """Where something comes from, and what came of it."""

    target: Node
    made_of: tuple[Node, ...]
    became: tuple[Node, ...]

    @property
    def changed(self) -> list[Node]:
        """What is not as it was named."""
        nodes = (node for top in (*self.made_of, *self.became) for node in top.walk())
        return [node for node in nodes if node.state == "changed"]


def tree(found: Lineage) -> Tree:
    """A lineage for a person: names whole, to be copied."""
    root = Tree(_label(found.target), guide_style="dim")
    if found.target.kind == "image":
        for node in (*found.made_of, *found.became):
            _grow(root, node)
        return root
    for heading, nodes in (("made of", found.made_of), ("came of it", found.became)):
        branch = root.add(Text(heading if nodes else f"{heading}: nothing in this store", style="italic"))
        for node in nodes:
            _grow(branch, node)
    return root


def _grow(branch: Tree, node: Node) -> None:
    grown = branch.add(_label(node))
    for behind in node.behind:
        _grow(grown, behind)


def _label(node: Node) -> Text:
    """`kind name [mark]  about`; built without markup, since names may have square brackets.

    It wraps between words, so that a name stays whole on any terminal: it is there to be copied.
    """
    mark, style = MARKS[node.state]
    label = Text(no_wrap=False, overflow="fold")
    label.append(f"{node.kind} ", style="dim").append(node.name, style="bold")
    if mark:
        label.append(f" [{mark}]", style=style)
    return label.append(f"  {node.about}")
