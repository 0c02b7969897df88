"""The numbers of a name's releases: which there are, and whose the next one is."""

import json
from collections.abc import Iterator

from pipeline.artifacts import Release
from pipeline.errors import AlreadyExists, NotFound
from pipeline.records import load, parse_model
from pipeline.release.records import Retraction
from pipeline.store import Store

CLAIM = "claim.json"


def releases_of(store: Store, name: str) -> Iterator[Release]:
    """The finished releases of a name, oldest first, those that were retracted among them."""
    numbers = {int(number) for number in _folders(store, name, Release.file_name)}
    for number in sorted(numbers):
        yield load(store, f"releases/{name}/{number}", Release)


def find_release(store: Store, name: str, intent: str) -> Release | None:
    """The finished release with this id, if there is one."""
    return next((release for release in releases_of(store, name) if release.id == intent), None)


def retraction_of(store: Store, name: str, number: int) -> Retraction | None:
    """That a release was taken back, None where it stands."""
    key = f"releases/{name}/{number}/retraction.json"
    try:
        return parse_model(store.get(key), Retraction, f"{store.uri}/{key}")
    except NotFound:
        return None


def claim(store: Store, name: str, intent: str) -> int:
    """The number that this intent owns, taking the next free one where it owns none yet."""
    body = json.dumps({"id": intent}).encode()
    taken = sorted(int(number) for number in _folders(store, name, CLAIM))
    for number in taken:
        if store.get(f"releases/{name}/{number}/{CLAIM}") == body:
            return number
    number = max(taken, default=0)
    while True:
        number += 1
        try:
            store.create(f"releases/{name}/{number}/{CLAIM}", body)
        except AlreadyExists:
            if store.get(f"releases/{name}/{number}/{CLAIM}") != body:
                continue
        return number


def _folders(store: Store, name: str, file_name: str) -> Iterator[str]:
    """The numbers of the folders of a name that hold `file_name`."""
    for entry in store.list(f"releases/{name}/"):
        _, _, number, *rest = entry.key.split("/")
        if rest == [file_name] and number.isdigit():
            yield number
