"""The report that a release is published with: one file, as things stood then.

What it is held against and shown beside depends on the store at that moment, so two attempts at one release may make
two reports. The first that is written is the one: a later attempt reads it, and the manifest states its digest.
"""

from collections.abc import Iterator

from pipeline.artifacts import Release
from pipeline.errors import AlreadyExists, NotFound
from pipeline.pages import render
from pipeline.pages.content import Sampler, Standing
from pipeline.pages.gather import Around, gather
from pipeline.recipe import Recipe
from pipeline.release.aliases import alias_of, champion_of
from pipeline.release.numbers import releases_of, retraction_of
from pipeline.store import Store


def write_report(store: Store, recipe: Recipe, model: str, release: Release) -> bytes:
    """Write report.html of a release that has its other files, or read the one that is there. Raises IntegrityError."""
    key = f"{release.ref}/{render.REPORT}"
    try:
        return store.get(key)
    except NotFound:
        page = render.report(gather(store, release, _around(store, recipe, model, release)), Sampler())
    try:
        store.create(key, page)
    except AlreadyExists:
        return store.get(key)
    return page


def _around(store: Store, recipe: Recipe, model: str, release: Release) -> Around:
    alias = recipe.release.alias
    champion = champion_of(store, alias_of(store, release.name, alias))
    standing = (
        Standing(f"{champion.name}@{champion.number}", f"the {alias} when this was published")
        if champion
        else Standing(note=f"No release of this name was {alias} when this was published.")
    )
    return Around(
        others=list(_others(store, recipe, model, release)),
        rival=champion,
        standing=standing,
        description=recipe.release.description,
    )


def _others(store: Store, recipe: Recipe, model: str, release: Release) -> Iterator[Release]:
    """The newest standing release of each of the recipe's other models, of the same dataset."""
    for other in recipe.models:
        if other != model:
            found = [
                one
                for one in releases_of(store, recipe.release_name(other))
                if one.dataset.rpartition("/")[0] == release.dataset.rpartition("/")[0]
                and retraction_of(store, one.name, one.number) is None
            ]
            yield from found[-1:]
