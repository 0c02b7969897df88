"""The gallery: a page over all releases and the report of each as things stand now, static files in the store.

    build(store)     gallery/index.html, gallery/<name>/<n>.html, gallery/sampler/

The reports that publishing wrote stay as they are in their releases: these are made anew, with the alias that a
release has now, the newest releases of the other models, and the live sampler. Any web server over the store shows
them; `pipeline.pages.serve` does.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import quote

from pipeline.artifacts import Dataset, Release, Run
from pipeline.errors import IntegrityError
from pipeline.pages import render, runtime
from pipeline.pages.charts import FIGURES, number
from pipeline.pages.content import Card, Report, Sampler, Standing
from pipeline.pages.gather import Around, gather, labelled, sample_pictures
from pipeline.pages.shown import Picture
from pipeline.records import load, parse_model
from pipeline.release.aliases import judged
from pipeline.release.numbers import retraction_of
from pipeline.release.records import CANDIDATE, Alias
from pipeline.store import Store

HOME = "gallery/index.html"
CARD_IMAGES, CARD_BYTES, CARD_SIDE = 24, 60_000, 96
HEADLINE = ("frechet_distance", "precision", "recall")
UP = "../"  # from a report to the gallery

Say = Callable[[str], None]


@dataclass(frozen=True)
class Shelf:
    """What the store holds, read once."""

    releases: Sequence[Release]
    runs: Mapping[str, Run]  # by ref
    aliases: Mapping[str, Sequence[Alias]]  # by name
    retracted: frozenset[str]  # refs of releases


def build(store: Store, say: Say) -> int:
    """Write the gallery; gives the number of releases in it. A release that cannot be read is left out, and said."""
    shelf = read_shelf(store)
    sampler = runtime.provide(store, UP)
    if sampler.why_not:
        say(f"gallery: without the live sampler: {sampler.why_not}")
    cards = []
    for release in shelf.releases:
        try:
            content = gather(store, release, around(store, shelf, release))
        except IntegrityError as error:  # one release that is broken must not take the others' pages away
            say(f"gallery: without {release.name}@{release.number}: {error}")
            continue
        store.put(f"gallery/{release.name}/{release.number}.html", render.report(content, _for(release, sampler), UP))
        cards.append(_card(store, content))
    store.put(HOME, render.gallery(cards))
    return len(cards)


def read_shelf(store: Store) -> Shelf:
    """Every release, newest first by name, with its run, and every alias."""
    found = [
        load(store, entry.key.rpartition("/")[0], Release)
        for entry in store.list("releases/")
        if entry.key.endswith(f"/{Release.file_name}")
    ]
    found.sort(key=lambda release: (release.name, -release.number))
    aliases: dict[str, list[Alias]] = defaultdict(list)
    for entry in store.list("aliases/"):
        alias = parse_model(store.get(entry.key), Alias, f"{store.uri}/{entry.key}")
        aliases[alias.name].append(alias)
    return Shelf(
        releases=found,
        runs={ref: load(store, ref, Run) for ref in {release.run for release in found}},
        aliases=aliases,
        retracted=frozenset(one.ref for one in found if retraction_of(store, one.name, one.number)),
    )


def around(store: Store, shelf: Shelf, release: Release) -> Around:
    """What stands around a release now."""
    rival, standing = _standing(store, shelf, release)
    return Around(
        others=_others(shelf, release),
        rival=rival,
        standing=standing,
        retraction=retraction_of(store, release.name, release.number),
        files_at=f"{UP}{UP}releases/{quote(release.name)}/{release.number}/",
        pages_at=UP,
    )


def _others(shelf: Shelf, release: Release) -> list[Release]:
    """The newest standing release of each other name that came of the same recipe and the same kind of images."""
    recipe = shelf.runs[release.run].recipe
    newest: dict[str, Release] = {}
    for other in shelf.releases:  # newest first
        same = other.dataset.rpartition("/")[0] == release.dataset.rpartition("/")[0]
        if same and other.ref not in shelf.retracted and shelf.runs[other.run].recipe == recipe:
            newest.setdefault(other.name, other)
    newest.pop(release.name, None)
    return list(newest.values())


def _standing(store: Store, shelf: Shelf, release: Release) -> tuple[Release | None, Standing]:
    """Whom a release is held against: the champion, or, where it is that, the one before."""
    aliases = shelf.aliases.get(release.name, ())
    names = tuple(alias.alias for alias in aliases if alias.number == release.number)
    champion = next((alias for alias in aliases if alias.alias != CANDIDATE), None)
    if champion is None:
        return None, Standing(aliases=names, note="No release of this name is champion yet.")
    verdict = judged(store, release.name, release.number, champion.alias)
    said = verdict.reason if verdict else ""
    before = [number for number in champion.standing() if number != release.number]
    role = f"the {champion.alias} before" if champion.number == release.number else f"the {champion.alias}"
    wanted = before[-1] if before else None
    rival = next((one for one in shelf.releases if (one.name, one.number) == (release.name, wanted)), None)
    if rival is None or rival.ref in shelf.retracted:
        return None, Standing(aliases=names, verdict=said, note="There is no other champion to hold it against.")
    return rival, Standing(f"{rival.name}@{rival.number}", role, "", names, said)


def _for(release: Release, sampler: Sampler) -> Sampler:
    """The sampler for a release, none for one that has no network for it."""
    if any(entry.name == "model.onnx" for entry in release.files):
        return sampler
    return Sampler(why_not="this release has no model.onnx")


def _card(store: Store, content: Report) -> Card:
    release = content.release
    shown = () if content.retraction else _card_pictures(store, release, content.dataset)
    return Card(
        name=release.name,
        number=release.number,
        href=f"{quote(release.name)}/{release.number}.html",
        aliases=content.standing.aliases,
        pictures=shown,
        lead=content.lead,
        headline=tuple(
            (FIGURES[name][0], number(release.figures[name].value)) for name in HEADLINE if name in release.figures
        ),
        retracted=content.retraction is not None,
    )


def _card_pictures(store: Store, release: Release, dataset: Dataset) -> tuple[Picture, ...]:
    samples = list(islice(labelled(store, release), CARD_IMAGES))
    return sample_pictures(samples, dataset.classes, CARD_BYTES, CARD_SIDE)
