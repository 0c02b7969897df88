"""Watches a recipe's source: an asset event when it has changed and has then rested for the settle time.

    watermark   the digest of the listing that the last event was for, in the source's asset state store

The digest is of the whole listing, so nothing that arrived while the triggerer was down is missed, and a source that
is as it was makes no event. The watermark moves a poll after the event was handed over: a triggerer that dies in
between makes the event again, which the ingest finds done.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import Asset, AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from pipeline.errors import AtelierError, SourceError
from pipeline.recipe import Recipe, load_recipe
from pipeline.sections import WatchSpec

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

WATERMARK = "listing"
MAX_WAIT_SECONDS = 600.0  # after failures in a row


def source_asset(recipe: Recipe) -> Asset:
    """The asset that a recipe's source is, watched as its schedule says."""
    schedule = cast(WatchSpec, recipe.schedule)
    trigger = SourceTrigger(
        recipe_json=recipe.to_json(),
        poll_seconds=schedule.poll_seconds,
        settle_seconds=schedule.settle_seconds,
    )
    name = f"{recipe.name}_source"
    return Asset(name=name, uri=f"atelier://sources/{recipe.name}", watchers=[AssetWatcher(name=name, trigger=trigger)])


class Rest:
    """Tells when something has rested at a value for so many seconds; a pure matter of (value, time)."""

    def __init__(self, settle_seconds: float) -> None:
        self.settle_seconds = settle_seconds
        self._value: str | None = None
        self._since = 0.0

    def has(self, value: str, now: float) -> bool:
        """Whether the value is the one of the looks before, for the settle time or longer."""
        if value != self._value:
            self._value, self._since = value, now
        return now - self._since >= self.settle_seconds


class SourceTrigger(BaseEventTrigger):
    """Fires `{"listing": digest}` for each state of the source that is news. Runs for as long as the DAG is there.

    The whole recipe is among its arguments, since Airflow takes triggers of the same arguments for one, and each needs
    the state store of its own asset.
    """

    def __init__(self, recipe_json: str, poll_seconds: float, settle_seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.recipe_json = recipe_json
        self.poll_seconds = poll_seconds
        self.settle_seconds = settle_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the triggerer makes this trigger from."""
        arguments = {
            "recipe_json": self.recipe_json,
            "poll_seconds": self.poll_seconds,
            "settle_seconds": self.settle_seconds,
        }
        return f"{__name__}.SourceTrigger", arguments

    def _say_once(self, line: str, said: str) -> str:
        if line != said:
            self.log.warning("%s (looking again)", line)
        return line

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for ever. A store that does not answer is asked again, less and less often."""
        store = cast("AssetStateStoreAccessors", self.asset_state_store)  # given by the triggerer
        recipe = load_recipe(self.recipe_json)
        name, rest, failures = recipe.name, Rest(self.settle_seconds), 0
        saved = told = await store.aget(WATERMARK)
        said = ""
        while True:
            try:
                listing = await asyncio.to_thread(listing_of, recipe)
                failures, said = 0, ""
            except SourceError as error:  # empty still: that is looked at as often as any state
                failures, said = 0, self._say_once(f"{name}: {error}", said)
            except AtelierError as error:  # a store that is away
                failures, said = failures + 1, self._say_once(f"{name}: {error}", said)
            else:
                if listing != told and rest.has(listing, time.monotonic()):
                    yield TriggerEvent({"listing": listing})  # type: ignore[no-untyped-call]  # Airflow's
                    told = listing
                elif listing == told != saved:
                    await store.aset(WATERMARK, listing)
                    saved = listing
            await asyncio.sleep(
                min(self.poll_seconds * 2 ** min(failures, 10), max(MAX_WAIT_SECONDS, self.poll_seconds))
            )


def listing_of(recipe: Recipe) -> str:
    """The digest of what the source lists now. Raises SourceError, StoreError."""
    from pipeline.datasets.versions import listing_digest

    return listing_digest(recipe)
