"""The store that a command or a consumer means: named, from the settings, or the embedded one."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.settings import Settings, update_environment
from pipeline.store import Store, open_store

EMBEDDED_STORE = "s3://atelier"  # without AWS_ENDPOINT_URL_S3, URIs in it mean the embedded store


@contextmanager
def opened_store(uri: str | None, settings: Settings) -> Iterator[Store]:
    """The store of this URI. Without one it is the embedded store: running, or started for this block."""
    uri = uri or settings.store
    embedded = uri is None or (f"{uri}/".startswith(f"{EMBEDDED_STORE}/") and not settings.s3_endpoint)
    if uri is not None and not embedded:
        yield open_store(uri)
        return
    from pipeline import weed

    with weed.running(settings.home) as state:
        update_environment(state.environment())
        yield open_store(uri or weed.STORE_URI)
