"""The records around a release that are no stage's own: an alias with its history, a gate's verdict, a retraction."""

from typing import Literal

from pipeline.artifacts import FileEntry, Signature, Strict

CANDIDATE = "candidate"  # the alias of what the gate kept from the recipe's own alias


class Verdict(Strict):
    """What the gate said of a release, against the champion of that moment.

    `gain` is by how much the metric is better than the champion's and `gain_low` the lower end of its 95% interval,
    both above zero where it is better; `short_by` is what `gain_low` lacks to pass. None: nothing was compared.
    """

    promoted: bool
    reason: str  # one line
    metric: str
    against: int | None  # the number of the champion; None: there was none
    gain: float | None = None
    gain_low: float | None = None
    short_by: float | None = None


class Move(Strict):
    """One entry of an alias's history."""

    number: int | None  # None: it names no release from now on
    at: str  # UTC, ISO 8601
    who: str
    why: str
    verb: Literal["promote", "rollback", "retract"] = "promote"
    verdict: Verdict | None = None  # where the gate decided


class Alias(Strict):
    """A name that moves between releases; the newest move is last."""

    schema_number: Literal[1] = 1
    name: str
    alias: str
    history: tuple[Move, ...]

    @property
    def number(self) -> int | None:
        """The release that the alias names now, None where it names none."""
        return self.history[-1].number if self.history else None

    @property
    def key(self) -> str:
        """Where the alias lies in the store."""
        return f"aliases/{self.name}/{self.alias}.json"

    def standing(self) -> list[int]:
        """The releases that a step back after the other would name, the present one last.

        A promotion puts a release on top; a step back takes off what stood above the release that it went to, so that
        the next one goes further back and not forward again.
        """
        stack: list[int] = []
        for move in self.history:
            if move.number is None:
                stack.clear()
            elif move.verb == "promote" or move.number not in stack:
                stack.append(move.number)
            else:
                while stack[-1] != move.number:
                    stack.pop()
        return stack


class Retraction(Strict):
    """That a release was taken back. Its files stay, for who must know what was published; no alias names it."""

    schema_number: Literal[1] = 1
    name: str
    number: int
    at: str  # UTC, ISO 8601
    who: str
    why: str
    card: FileEntry  # README.md from now on
    signature: Signature | None = None

    @property
    def key(self) -> str:
        """Where the retraction lies in the store."""
        return f"releases/{self.name}/{self.number}/retraction.json"
