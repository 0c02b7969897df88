"""Aliases: each move once, by compare-and-swap, with who and why; back a step; off a release that is taken back."""

import itertools
import threading
from pathlib import Path

import pytest

from pipeline import releases
from pipeline.artifacts import Figure, Release
from pipeline.errors import RecordError, StoreError
from pipeline.records import find
from pipeline.release.numbers import retraction_of
from pipeline.release.records import CANDIDATE, Alias, Move
from pipeline.release.verify import verify
from pipeline.sections import GateSpec
from pipeline.store import Store, open_store
from tests.made_releases import FIGURES, Killed, kill_at_write, published, recipe

NAME = "tiny-vae"
GATE = GateSpec()


def measured(value: float) -> dict[str, Figure]:
    """Figures whose Frechet distance is `value`, give or take 1."""
    frechet = FIGURES["frechet_distance"].model_copy(update={"value": value, "low": value - 1, "high": value + 1})
    return {**FIGURES, "frechet_distance": frechet}


def promote(store: Store, *numbers: int) -> None:
    for number in numbers:
        releases.promote(store, NAME, number, "champion", who="ann", why=f"take {number}")


def roll_back(store: Store, to: int | None = None) -> int | None:
    return releases.roll_back(store, NAME, "champion", to, who="bob", why="it blurs").number


def champion(store: Store) -> Alias:
    found = releases.alias_of(store, NAME, "champion")
    assert found is not None
    return found


def test_an_alias_moves_with_its_history_and_stays_where_it_is(store: Store) -> None:
    for mark in "ab":
        published(store, mark)
    releases.promote(store, "tiny-vae", 1, "champion", who="ann", why="first")
    releases.promote(store, "tiny-vae", 2, "champion", who="bob", why="better")
    alias = releases.promote(store, "tiny-vae", 2, "champion", who="bob", why="again")
    assert [(move.number, move.who, move.why) for move in alias.history] == [(1, "ann", "first"), (2, "bob", "better")]
    assert releases.resolve(store, "tiny-vae@champion").number == 2
    assert releases.resolve(store, "tiny-vae@1").number == 1


def test_promoters_at_once_lose_no_move(store: Store) -> None:
    for mark in "abcd":
        published(store, mark)
    threads = [
        threading.Thread(
            target=releases.promote, args=(store, "tiny-vae", number, "champion"), kwargs={"who": "x", "why": "y"}
        )
        for number in (1, 2, 3, 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alias = releases.alias_of(store, "tiny-vae", "champion")
    assert alias is not None and {move.number for move in alias.history} == {1, 2, 3, 4}
    assert len(alias.history) == 4


def test_promoting_what_is_not_there_lists_what_is(store: Store) -> None:
    published(store)
    with pytest.raises(RecordError, match=r"there are: 1\), got 7"):
        releases.promote(store, "tiny-vae", 7, "champion", who="x", why="y")
    assert find(store, "releases/tiny-vae/7", Release) is None


# --- the gate ---


def judge(store: Store, number: int, spec: GateSpec = GATE) -> bool:
    gated = recipe().model_copy(update={"gate": spec})
    release = releases.resolve(store, f"{NAME}@{number}", retracted=True)
    return releases.promote_if_better(store, gated, release, who="ann", why="a run").promoted


def test_the_gate_promotes_the_first_and_the_better_and_keeps_the_rest_as_candidate(store: Store) -> None:
    for mark, value in (("a", 9.0), ("b", 8.5), ("c", 5.0)):
        published(store, mark, measured(value))
    assert [judge(store, number) for number in (1, 2, 3)] == [True, False, True]
    assert [move.number for move in champion(store).history] == [1, 3]
    kept = releases.alias_of(store, NAME, CANDIDATE)
    assert kept is not None and kept.number == 2
    verdict = kept.history[-1].verdict
    assert verdict is not None and verdict.against == 1 and verdict.short_by == pytest.approx(2**0.5 - 0.5)
    assert "better by 0.5, with 97.5% confidence by -0.914" in verdict.reason


def test_the_gate_judges_a_release_once(store: Store) -> None:
    """A rerun after a step back must not bring back what somebody moved the alias off."""
    for mark, value in (("a", 9.0), ("b", 5.0), ("c", 6.0)):
        published(store, mark, measured(value))
    assert [judge(store, number) for number in (1, 2, 3)] == [True, True, False]
    assert roll_back(store) == 1
    before = [releases.alias_of(store, NAME, alias) for alias in ("champion", CANDIDATE)]
    assert [judge(store, number) for number in (1, 2, 3)] == [True, True, False]
    assert [releases.alias_of(store, NAME, alias) for alias in ("champion", CANDIDATE)] == before


def test_challengers_at_once_are_judged_one_after_the_other(store: Store) -> None:
    """Both beat the old champion; the worse of the two must not end on top, whoever is first."""
    for mark, value in (("a", 20.0), ("b", 12.0), ("c", 5.0)):
        published(store, mark, measured(value))
    judge(store, 1)
    threads = [threading.Thread(target=judge, args=(store, number)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert champion(store).number == 3


def test_a_retracted_champion_is_none_to_the_gate(store: Store) -> None:
    published(store, "a", measured(1.0))
    published(store, "b", measured(9.0))
    judge(store, 1)
    releases.retract(store, NAME, 1, None, who="ann", why="a takedown")
    assert judge(store, 2) and champion(store).number == 2


# --- a step back ---


def test_each_rollback_goes_a_step_further(store: Store) -> None:
    for mark in "abc":
        published(store, mark)
    promote(store, 1, 2, 3)
    assert [roll_back(store), roll_back(store)] == [2, 1]
    with pytest.raises(RecordError, match="expected an earlier release to go back to, found none"):
        roll_back(store)
    promote(store, 3)
    assert roll_back(store) == 1
    last = champion(store).history[-1]
    assert (last.who, last.why, last.verb) == ("bob", "it blurs", "rollback")


def test_a_rollback_to_a_number_is_done_once_and_goes_only_where_the_alias_was(store: Store) -> None:
    for mark in "abc":
        published(store, mark)
    promote(store, 1, 2)
    assert [roll_back(store, 1), roll_back(store, 1)] == [1, 1] and len(champion(store).history) == 3
    with pytest.raises(RecordError, match="expected a release that it named before, got 3"):
        roll_back(store, 3)


def test_two_rollbacks_at_once_take_one_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for mark in "abc":
        published(store, mark)
    promote(store, 1, 2, 3)
    replace = store.replace

    def another_was_first(key: str, data: bytes, etag: str) -> str:
        monkeypatch.setattr(store, "replace", replace)
        roll_back(store)
        return replace(key, data, etag)

    monkeypatch.setattr(store, "replace", another_was_first)
    with pytest.raises(StoreError, match="expected 3, got 2, which bob has just set"):
        roll_back(store)
    assert champion(store).number == 2


def test_a_history_of_steps_back_stands_as_a_person_would_say() -> None:
    moves = [(1, "promote"), (2, "promote"), (3, "promote"), (2, "rollback"), (4, "promote"), (2, "promote")]
    history = tuple(Move(number=number, at="", who="", why="", verb=verb) for number, verb in moves)
    assert Alias(name="x", alias="y", history=history).standing() == [1, 2, 4, 2]


# --- retractions ---


def test_a_retracted_release_is_refused_and_says_so(store: Store) -> None:
    for mark in "ab":
        published(store, mark)
    promote(store, 1, 2)
    releases.promote(store, NAME, 2, "pinned", who="ann", why="for the fair")
    done = releases.retract(store, NAME, 2, None, who="cy", why="a person asked")
    assert champion(store).number == 1
    pinned = releases.alias_of(store, NAME, "pinned")
    assert pinned is not None and pinned.number is None and pinned.history[-1].verb == "retract"
    for target in ("tiny-vae@2", "tiny-vae@pinned"):
        with pytest.raises(RecordError, match=r"retracted on .* by cy: a person asked|names none"):
            releases.resolve(store, target)
    card = store.get(f"releases/{NAME}/2/README.md").decode()
    assert card.startswith("---\nlicense: mit\n") and "> **Retracted** on" in card and "a person asked" in card
    with pytest.raises(RecordError, match="was retracted"):
        promote(store, 2)
    again = releases.retract(store, NAME, 2, None, who="dee", why="again")
    assert again == done and len(champion(store).history) == 3
    assert verify(store, releases.resolve(store, "tiny-vae@2", retracted=True), (), share=0).faults == ()


def test_a_rollback_passes_over_what_was_retracted(store: Store) -> None:
    for mark in "abc":
        published(store, mark)
    promote(store, 1, 2, 3)
    releases.retract(store, NAME, 2, None, who="cy", why="a takedown")
    assert roll_back(store) == 1


def test_a_kill_in_a_retraction_shows_the_old_state_or_the_new_and_a_rerun_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for writes in itertools.count():
        store = open_store(f"file://{tmp_path}/{writes}")
        for mark in "ab":
            published(store, mark)
        promote(store, 1, 2)
        with monkeypatch.context() as patch:
            kill_at_write(patch, store, writes)
            try:
                releases.retract(store, NAME, 2, None, who="cy", why="a takedown")
                break
            except Killed:
                pass
        if retraction_of(store, NAME, 2) is None:
            assert releases.resolve(store, "tiny-vae@champion").number == 2
            continue
        with pytest.raises(RecordError, match="was retracted"):
            releases.resolve(store, "tiny-vae@2")
        releases.retract(store, NAME, 2, None, who="cy", why="a takedown")
        assert releases.resolve(store, "tiny-vae@champion").number == 1
        assert "**Retracted**" in store.get(f"releases/{NAME}/2/README.md").decode()
    assert writes == 3  # the retraction, the card, the alias
