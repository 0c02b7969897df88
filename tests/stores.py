"""What tests of stores share."""

from pipeline.store import Store


def keys(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]
