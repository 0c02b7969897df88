"""Publish and promote: all or nothing, idempotent, two publishers get two numbers, an alias keeps its history."""

import io
import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline import releases, shards
from pipeline.errors import IntegrityError, RecordError
from pipeline.records import read_file
from pipeline.release.signing import load_signer
from pipeline.release.verify import verify
from pipeline.settings import Settings
from pipeline.store import Store
from tests.made_releases import Killed, kill_at_write, parents, recipe


def test_a_release_holds_what_a_consumer_needs(store: Store) -> None:
    release = releases.publish(store, recipe(), "vae", *parents(store))
    assert release.ref == "releases/tiny-vae/1" and release.license == "mit"
    assert {entry.name for entry in release.files} == {
        "README.md", "config.json", "grid.png", "model.safetensors", "report.html", "samples.json",
        "samples/samples-000000.tar",
    }  # fmt: skip
    files = {entry.name: read_file(store, release, entry) for entry in release.files}
    assert files["model.safetensors"] == b"weights a"
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n") and "| Recall | 0.5000 |" in card and release.run in card


def test_every_published_image_says_what_made_it(store: Store) -> None:
    release = releases.publish(store, recipe(), "vae", *parents(store))
    tar = store.get(f"{release.ref}/samples/samples-000000.tar")
    for index, sample in enumerate(shards.read_shard(tar)):
        with Image.open(io.BytesIO(sample.image)) as image:
            assert image.info["atelier:release"] == "tiny-vae/1"
            assert image.info["atelier:seed"] == str(index)


def test_the_index_lists_every_image_and_the_manifest_its_parents(store: Store) -> None:
    refs = parents(store)
    release = releases.publish(store, recipe(), "vae", *refs)
    index = json.loads(store.get(f"{release.ref}/samples.json"))
    assert index["release"] == "tiny-vae/1" and index["classes"] == ["zero", "one"] and index["made_with"] == "hand"
    assert index["shards"] == [
        {"name": "samples/samples-000000.tar", "keys": ["0", "1"], "seeds": [0, 1], "labels": [0, 1]}
    ]
    assert [parent.ref for parent in release.parents] == [*refs, release.dataset]


def test_publishing_again_ends_with_the_same_release(store: Store) -> None:
    refs = parents(store)
    first = releases.publish(store, recipe(), "vae", *refs)
    assert releases.publish(store, recipe(), "vae", *refs) == first
    assert [release.number for release in releases.releases_of(store, "tiny-vae")] == [1]


def test_a_kill_at_any_write_shows_nothing_and_a_rerun_ends_the_same(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs, signer = parents(store), load_signer(replace(Settings.from_environment(), home=tmp_path))
    for writes in itertools.count():
        with monkeypatch.context() as patch:
            kill_at_write(patch, store, writes)
            try:
                release = releases.publish(store, recipe(), "vae", *refs, signer)
                break
            except Killed:
                pass
        assert list(releases.releases_of(store, "tiny-vae")) == []
        with pytest.raises(RecordError, match="none of tiny-vae"):
            releases.resolve(store, "tiny-vae@1")
    assert writes == 8  # six files, the report and the manifest: the claim of the attempts before is there
    assert release.number == 1 and verify(store, release, (signer.public_key,), share=0).faults == ()


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


@pytest.mark.parametrize("target", ["tiny-vae", "@champion", "tiny-vae@", "a/b@1"])
def test_a_target_that_is_none_is_refused(store: Store, target: str) -> None:
    with pytest.raises(RecordError, match="expected NAME@ALIAS or NAME@NUMBER"):
        releases.resolve(store, target)
