"""Which release is meant: `NAME@ALIAS` or `NAME@NUMBER` in a store, or a release's own URI."""

from pipeline.artifacts import Release
from pipeline.errors import IntegrityError, RecordError, StoreRefused
from pipeline.records import find, split_uri
from pipeline.release.aliases import alias_of, refuse_retracted
from pipeline.release.numbers import releases_of
from pipeline.store import Store


def resolve(store: Store, target: str, *, retracted: bool = False) -> Release:
    """The release that `NAME@alias` or `NAME@number` names; with `retracted` one that was taken back, too.

    Raises RecordError saying which there are, IntegrityError where its manifest is another's.
    """
    name, at, which = target.partition("@")
    if not at or not name or not which or "/" in target:
        raise RecordError(f"expected NAME@ALIAS or NAME@NUMBER, such as digits-gan@champion, got {target!r}")
    number = int(which) if which.isdecimal() else getattr(alias_of(store, name, which), "number", None)
    release = None if number is None else _release_at(store, f"releases/{name}/{number}")
    if release is None:
        raise RecordError(
            f"{store.uri}: expected a release, {target} names none; there are: {_which_there_are(store, name)}"
        )
    if not retracted:
        refuse_retracted(store, release.name, release.number)
    return release


def resolve_uri(store: Store, uri: str) -> Release:
    """The release at a URI in this store, one that stands. Raises RecordError, IntegrityError."""
    ref = split_uri(uri)[1]
    release = _release_at(store, ref) if ref.startswith("releases/") else None
    if release is None:
        raise RecordError(f"expected the URI of a finished release, such as {store.uri}/releases/NAME/3, got {uri!r}")
    refuse_retracted(store, release.name, release.number)
    return release


def _release_at(store: Store, ref: str) -> Release | None:
    release = find(store, ref, Release)
    if release and release.ref != ref:  # signed and whole, but put in the place of another
        raise IntegrityError(f"{store.uri}/{ref}/{Release.file_name}: expected that of {ref}, got {release.ref}'s")
    return release


def _which_there_are(store: Store, name: str) -> str:
    try:
        return ", ".join(f"{name}@{found.number}" for found in releases_of(store, name)) or f"none of {name}"
    except StoreRefused:
        return "not known, as this store lists nothing"
