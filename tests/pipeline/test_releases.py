"""Publish and promote: all or nothing, idempotent, two publishers get two numbers, an alias keeps its history."""

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from pipeline import __version__, pictures, releases, shards
from pipeline.artifacts import (
    Evaluation,
    Figure,
    Release,
    Run,
    SampleSet,
    commit,
    file_entry,
    find,
    read_file,
)
from pipeline.errors import IntegrityError, RecordError, StoreError
from pipeline.recipe import Recipe, load_recipe
from pipeline.store import Store
from tests.made import PROTOCOL, record_of

RECIPE = {
    "name": "tiny",
    "source": {"kind": "digits"},
    "dataset": {"channels": 1, "height": 8, "width": 8},
    "models": {"vae": {"family": "vae", "steps": 1}},
    "release": {"license": "mit"},
}


def recipe() -> Recipe:
    return load_recipe(json.dumps(RECIPE))


def parents(store: Store, mark: str = "a") -> tuple[str, str, str]:
    """Records of a run, its evaluation and its samples as the stages leave them; gives their refs."""
    dataset = commit(
        store,
        record_of([], (8, 8, 1), name="tiny", classes=("zero", "one")).model_copy(
            update={"splits": {"train": 8, "test": 2}}
        ),
    )
    weights, config = f"weights {mark}".encode(), b"{}"
    run = Run(
        code_version=__version__, id=mark * 16, recipe="tiny", model="vae", family="vae", config={"seed": 0},
        dataset=dataset.ref, steps=1, images_seen=1, metrics={},
        files=(file_entry("model.safetensors", weights), file_entry("config.json", config)),
    )  # fmt: skip
    store.put(f"{run.ref}/model.safetensors", weights)
    store.put(f"{run.ref}/config.json", config)
    commit(store, run)
    evaluation = Evaluation(
        code_version=__version__, id=mark * 16, run=run.ref, dataset=dataset.ref, protocol=PROTOCOL,
        extractor_note="A note.",
        figures={"recall": Figure(value=0.5, unit="share", num_samples=9)},
    )  # fmt: skip
    commit(store, evaluation)
    pixels = np.zeros((8, 8, 1), np.uint8)
    files = {
        "grid.png": pictures.encode_png(pixels),
        "samples-000000.tar": shards.write_shard(
            [
                shards.Sample.of(str(i), pictures.encode_png(pixels, {"atelier:seed": str(i)}), i, {"seed": i})
                for i in (0, 1)
            ]
        ),
    }
    samples = SampleSet(
        code_version=__version__, id=mark * 16, run=run.ref, count=2, seed=0,
        files=tuple(file_entry(name, data) for name, data in files.items()),
    )  # fmt: skip
    for name, data in files.items():
        store.put(f"{samples.ref}/{name}", data)
    commit(store, samples)
    return run.ref, evaluation.ref, samples.ref


def test_a_release_holds_what_a_consumer_needs(store: Store) -> None:
    release = releases.publish(store, recipe(), "vae", *parents(store))
    assert release.ref == "releases/tiny-vae/1" and release.license == "mit"
    assert {entry.name for entry in release.files} == {
        "README.md", "config.json", "grid.png", "model.safetensors", "samples/samples-000000.tar",
    }  # fmt: skip
    files = {entry.name: read_file(store, release, entry) for entry in release.files}
    assert files["model.safetensors"] == b"weights a"
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n") and "| recall | 0.5 |" in card and release.run in card


def test_every_published_image_says_what_made_it(store: Store) -> None:
    release = releases.publish(store, recipe(), "vae", *parents(store))
    tar = store.get(f"{release.ref}/samples/samples-000000.tar")
    for index, sample in enumerate(shards.read_shard(tar)):
        with Image.open(io.BytesIO(sample.image)) as image:
            assert image.info["atelier:release"] == "tiny-vae/1"
            assert image.info["atelier:seed"] == str(index)


def test_publishing_again_ends_with_the_same_release(store: Store) -> None:
    refs = parents(store)
    first = releases.publish(store, recipe(), "vae", *refs)
    assert releases.publish(store, recipe(), "vae", *refs) == first
    assert [release.number for release in releases.releases_of(store, "tiny-vae")] == [1]


def test_a_kill_before_the_manifest_shows_nothing_and_a_rerun_ends_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = parents(store)
    with monkeypatch.context() as patch:
        patch.setattr(releases, "commit", _die)
        with pytest.raises(StoreError, match="killed"):
            releases.publish(store, recipe(), "vae", *refs)
    assert list(releases.releases_of(store, "tiny-vae")) == []
    with pytest.raises(RecordError, match="none of tiny-vae"):
        releases.resolve(store, "tiny-vae@1")
    assert releases.publish(store, recipe(), "vae", *refs).number == 1


def _die(*_: object) -> None:
    raise StoreError("killed")


def test_two_publishers_at_once_get_two_numbers(store: Store) -> None:
    intents = [parents(store, mark) for mark in "abcd"]
    threads = [
        threading.Thread(target=releases.publish, args=(store, recipe(), "vae", *refs)) for refs in (*intents, *intents)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(releases.releases_of(store, "tiny-vae"))
    assert sorted(release.run for release in found) == sorted(refs[0] for refs in intents)
    assert len({release.number for release in found}) == 4


def test_a_parent_with_wrong_bytes_is_not_published(store: Store) -> None:
    run, evaluation, samples = parents(store)
    store.put(f"{run}/model.safetensors", b"weights b")
    with pytest.raises(IntegrityError, match=r"model.safetensors: expected SHA-256"):
        releases.publish(store, recipe(), "vae", run, evaluation, samples)
    assert list(releases.releases_of(store, "tiny-vae")) == []


def test_an_evaluation_of_another_run_is_refused(store: Store) -> None:
    run, _, samples = parents(store, "a")
    _, other, _ = parents(store, "b")
    with pytest.raises(RecordError, match="expected a evaluation record of runs/aaaa"):
        releases.publish(store, recipe(), "vae", run, other, samples)


def test_an_alias_moves_with_its_history_and_stays_where_it_is(store: Store) -> None:
    for mark in "ab":
        releases.publish(store, recipe(), "vae", *parents(store, mark))
    releases.promote(store, "tiny-vae", 1, "champion", who="ann", why="first")
    releases.promote(store, "tiny-vae", 2, "champion", who="bob", why="better")
    alias = releases.promote(store, "tiny-vae", 2, "champion", who="bob", why="again")
    assert [(move.number, move.who, move.why) for move in alias.history] == [(1, "ann", "first"), (2, "bob", "better")]
    assert releases.resolve(store, "tiny-vae@champion").number == 2
    assert releases.resolve(store, "tiny-vae@1").number == 1


def test_promoters_at_once_lose_no_move(store: Store) -> None:
    for mark in "abcd":
        releases.publish(store, recipe(), "vae", *parents(store, mark))
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
    assert alias is not None and sorted(move.number for move in alias.history) == [1, 2, 3, 4]


@pytest.mark.parametrize("target", ["tiny-vae", "@champion", "tiny-vae@", "a/b@1"])
def test_a_target_that_is_none_is_refused(store: Store, target: str) -> None:
    with pytest.raises(RecordError, match="expected NAME@ALIAS or NAME@NUMBER"):
        releases.resolve(store, target)


def test_promoting_what_is_not_there_lists_what_is(store: Store) -> None:
    releases.publish(store, recipe(), "vae", *parents(store))
    with pytest.raises(RecordError, match=r"there are: 1\), got 7"):
        releases.promote(store, "tiny-vae", 7, "champion", who="x", why="y")
    assert find(store, "releases/tiny-vae/7", Release) is None
