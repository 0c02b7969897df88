"""Move an alias: by hand, by the gate, a step back, or off a release that is taken back. Each is one compare-and-swap.

A history loses no move, whoever else moves the alias at the same time, and says who moved it and why.
"""

import datetime
from collections.abc import Callable, Iterator

from pipeline.artifacts import Evaluation, Release, file_entry
from pipeline.errors import AlreadyExists, Changed, NotFound, RecordError, StoreError
from pipeline.ids import evaluation_id
from pipeline.recipe import Recipe
from pipeline.records import find, load, parse_model, read_file
from pipeline.release import card
from pipeline.release.gate import Measured, decide
from pipeline.release.numbers import releases_of, retraction_of
from pipeline.release.records import CANDIDATE, Alias, Move, Retraction, Verdict
from pipeline.release.signing import Signer
from pipeline.store import Store

Choose = Callable[[Alias], Move | None]


def alias_of(store: Store, name: str, alias: str) -> Alias | None:
    """Where an alias points, with its history; None where nobody has set it."""
    key = f"aliases/{name}/{alias}.json"
    try:
        return parse_model(store.get(key), Alias, f"{store.uri}/{key}")
    except NotFound:
        return None


def promote(store: Store, name: str, number: int, alias: str, *, who: str, why: str) -> Alias:
    """Move an alias to a release by hand: one that names it already is left as it is. Raises RecordError."""
    standing_release(store, name, number)

    def choose(current: Alias) -> Move | None:
        return None if current.number == number else Move(number=number, at=_now(), who=who, why=why)

    return _move(store, name, alias, choose)


def promote_if_better(store: Store, recipe: Recipe, release: Release, *, who: str, why: str) -> Verdict:
    """Let the recipe's gate decide whether a release takes its alias; else it becomes the candidate.

    The verdict says by how much it fell short. Decided once: a release that was judged gets the same verdict again.
    Raises RecordError.
    """
    name, number, alias = release.name, release.number, recipe.release.alias
    if found := judged(store, name, number, alias):
        return found
    challenger = standing_release(store, name, number)
    verdicts: list[Verdict] = []

    def choose(current: Alias) -> Move | None:
        champion = champion_of(store, current)
        standing = _measured_like(store, recipe, champion, challenger) if champion else None
        verdicts.append(decide(recipe.gate, Measured.of(challenger), standing))
        if not verdicts[-1].promoted:
            return None
        return Move(number=number, at=_now(), who=who, why=why, verdict=verdicts[-1])

    _move(store, name, alias, choose)
    verdict = verdicts[-1]
    if not verdict.promoted:
        kept = Move(number=number, at=_now(), who=who, why=why, verdict=verdict)
        _move(store, name, CANDIDATE, lambda current: None if current.number == number else kept)
    return verdict


def champion_of(store: Store, alias: Alias | None) -> Release | None:
    """The release that an alias names; None where it names none, or one that was taken back."""
    if alias is None or alias.number is None or retraction_of(store, alias.name, alias.number):
        return None
    return load(store, f"releases/{alias.name}/{alias.number}", Release)


def _measured_like(store: Store, recipe: Recipe, champion: Release, challenger: Release) -> Measured:
    """The champion's figures: where they are of another protocol than the challenger's, those that the challenger's
    evaluation measured of it again, as far as it did."""
    if champion.protocol != challenger.protocol:
        again = evaluation_id(recipe, champion.run, challenger.dataset)
        if evaluation := find(store, f"evaluations/{again}", Evaluation):
            return Measured.of(champion, evaluation)
    return Measured.of(champion)


def judged(store: Store, name: str, number: int, alias: str) -> Verdict | None:
    """What was decided of a release before: by the gate, or by the hand that moved the alias to it."""
    for place in (alias, CANDIDATE):
        for move in reversed(getattr(alias_of(store, name, place), "history", ())):
            if move.number == number and move.verb == "promote":
                by_hand = Verdict(promoted=place == alias, reason=f"by hand: {move.why}", metric="", against=None)
                return move.verdict or by_hand
    return None


def roll_back(store: Store, name: str, alias: str, to: int | None, *, who: str, why: str) -> Alias:
    """Move an alias a step back, or back to a release that it named before. Raises RecordError.

    Somebody who moves it at the same moment wins: two who see the same bad champion take one step back, not two.
    """
    before: list[int | None] = []

    def choose(current: Alias) -> Move | None:
        before.append(current.number)
        if current.number != before[0]:
            raise StoreError(
                f"{name}@{alias}: expected {before[0]}, got {current.number}, which {current.history[-1].who} has just "
                "set; look with `atelier list`, then run this again if it is still wanted"
            )
        target = _step_back(store, current) if to is None else to
        if target == current.number:
            return None
        if target not in {move.number for move in current.history}:
            raise RecordError(f"{name}@{alias}: expected a release that it named before, got {target}")
        standing_release(store, name, target)
        return Move(number=target, at=_now(), who=who, why=why, verb="rollback")

    return _move(store, name, alias, choose)


def retract(store: Store, name: str, number: int, signer: Signer | None, *, who: str, why: str) -> Retraction:
    """Take a release back for ever: consumers refuse it from here on, its card says so, and every alias moves off it.

    The retraction is one object, written once; what follows is done again by a second call. Raises RecordError.
    """
    ref = f"releases/{name}/{number}"
    release = find(store, ref, Release)
    if release is None:
        raise _no_release(store, name, number)
    retraction = retraction_of(store, name, number)
    if retraction is None:
        entry = next(entry for entry in release.files if entry.name == card.CARD)
        at = _now()
        text = card.retracted(read_file(store, release, entry), at, who, why)
        retraction = Retraction(name=name, number=number, at=at, who=who, why=why, card=file_entry(card.CARD, text))
        retraction = signer.signed(retraction) if signer else retraction
        try:
            store.create(retraction.key, retraction.to_bytes())
        except AlreadyExists:
            return retract(store, name, number, signer, who=who, why=why)  # another was first: end what they began
    _replace_card(store, release, retraction)
    for alias in _aliases(store, name):
        _move_off(store, name, alias, retraction)
    return retraction


def standing_release(store: Store, name: str, number: int) -> Release:
    """A release that is finished and not retracted. Raises RecordError."""
    release = find(store, f"releases/{name}/{number}", Release)
    if release is None:
        raise _no_release(store, name, number)
    refuse_retracted(store, name, number)
    return release


def refuse_retracted(store: Store, name: str, number: int) -> None:
    """Raise RecordError, saying who and why, where a release was taken back."""
    if retraction := retraction_of(store, name, number):
        raise RecordError(
            f"{name}@{number} was retracted on {retraction.at} by {retraction.who}: {retraction.why}; "
            "take another release (`atelier list` shows them)"
        )


def _no_release(store: Store, name: str, number: int) -> RecordError:
    known = ", ".join(str(release.number) for release in releases_of(store, name)) or "none"
    return RecordError(f"expected a release of {name} (there are: {known}), got {number}")


def _step_back(store: Store, current: Alias) -> int:
    for number in reversed(current.standing()):
        if number != current.number and not retraction_of(store, current.name, number):
            return number
    raise RecordError(
        f"{current.name}@{current.alias}: expected an earlier release to go back to, found none; "
        f"`atelier promote {current.name}@NUMBER` moves it to any"
    )


def _move_off(store: Store, name: str, alias: str, retraction: Retraction) -> None:
    """Move an alias off a retracted release: a step back where there is one, else to none."""

    def choose(current: Alias) -> Move | None:
        if current.number != retraction.number:
            return None
        try:
            target = _step_back(store, current)
        except RecordError:
            target = None
        return Move(number=target, at=_now(), who=retraction.who, why=retraction.why, verb="retract")

    _move(store, name, alias, choose)


def _replace_card(store: Store, release: Release, retraction: Retraction) -> None:
    """Put the notice on the card, where it is not there yet."""
    key = f"{release.ref}/{card.CARD}"
    if file_entry(card.CARD, store.get(key)) == retraction.card:
        return
    entry = next(entry for entry in release.files if entry.name == card.CARD)
    store.put(key, card.retracted(read_file(store, release, entry), retraction.at, retraction.who, retraction.why))


def _aliases(store: Store, name: str) -> Iterator[str]:
    for entry in store.list(f"aliases/{name}/"):
        yield entry.key.rpartition("/")[2].removesuffix(".json")


def _move(store: Store, name: str, alias: str, choose: Choose) -> Alias:
    """Add the move that `choose` wants, given the alias as it is; it is asked again where another moved meanwhile."""
    key = Alias(name=name, alias=alias, history=()).key
    while True:
        etag: str | None = None
        current = Alias(name=name, alias=alias, history=())
        try:
            data, etag = store.get_with_etag(key)
            current = parse_model(data, Alias, f"{store.uri}/{key}")
        except NotFound:
            pass
        move = choose(current)
        if move is None:
            return current
        moved = current.model_copy(update={"history": (*current.history, move)})
        try:
            if etag is None:
                store.create(key, moved.to_bytes())
            else:
                store.replace(key, moved.to_bytes(), etag)
        except (AlreadyExists, Changed):
            continue  # another was first: look at what they wrote
        return moved


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
