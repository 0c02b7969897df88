"""The page of a record's folder: words, pictures and files, and nothing of a store that runs."""

from pathlib import Path

import pytest

from pipeline.errors import NotFound
from pipeline.pages.record import MAX_FILES, record_page
from pipeline.store import Store, open_store
from tests import made_pages


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(f"file://{tmp_path_factory.mktemp('records')}/store")
    made_pages.fill(store)
    return store


def first(store: Store, folder: str, file_name: str) -> str:
    """The URI of the first record of a kind."""
    key = next(entry.key for entry in store.list(f"{folder}/") if entry.key.endswith(f"/{file_name}"))
    return f"{store.uri}/{key.rpartition('/')[0]}"


def test_a_release_shows_its_figures_and_each_of_its_files(store: Store) -> None:
    uri = first(store, "releases", "manifest.json")
    page = record_page(store, uri).decode()
    ref = uri.removeprefix(f"{store.uri}/")
    files = [entry.key.removeprefix(f"{ref}/") for entry in store.list(f"{ref}/")]
    assert files and all(f'<a href="{name}">' in page for name in files)
    assert "<h1>Release</h1>" in page and "frechet_distance" in page


def test_a_folder_below_a_record_has_its_files_alone(store: Store) -> None:
    uri = first(store, "runs", "run.json")
    assert "There are none" in record_page(store, uri, "tensorboard/").decode()
    store.put(f"{uri.removeprefix(f'{store.uri}/')}/tensorboard/events.out.<b>", b"1")
    page = record_page(store, uri, "tensorboard/").decode()
    assert "tensorboard --logdir" in page and "run.json" not in page
    assert "events.out.&lt;b&gt;" in page and "<b>" not in page


def test_many_files_are_not_all_listed(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    for number in range(MAX_FILES + 1):
        store.put(f"runs/abc/steps/{number}", b"")
    page = record_page(store, f"{store.uri}/runs/abc").decode()
    assert page.count("<li>") == MAX_FILES and f"The first {MAX_FILES} of them." in page


def test_a_record_that_is_gone_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="runs/gone"):
        record_page(store, f"{store.uri}/runs/gone")
