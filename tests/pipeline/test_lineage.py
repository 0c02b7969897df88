"""Lineage: from source images to releases and back, with the digests by which parents are named."""

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline import releases
from pipeline.artifacts import Dataset, Evaluation, Release, Run, SampleSet
from pipeline.cli import app
from pipeline.datasets import takedown
from pipeline.errors import IntegrityError, RecordError
from pipeline.ingest import ingest
from pipeline.lineage import Lineage, Node, image_lineage, lineage
from pipeline.lineage.nodes import tree
from pipeline.pictures import encode_png
from pipeline.recipe import Recipe
from pipeline.records import commit, load
from pipeline.store import Store, open_store
from tests.made_releases import parents, recipe

MODELS = {"vae": {"family": "vae", "steps": 1}}


@dataclass(frozen=True)
class House:
    """A store in which a folder of images was ingested and a release of it published."""

    store: Store
    images: Path
    recipe: Recipe
    dataset: Dataset
    release: Release


def image(number: int) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8))


@pytest.fixture
def house(tmp_path: Path) -> House:
    folder = tmp_path / "images"
    for number in range(20):
        path = folder / f"class{number % 2}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    (folder / "class1" / "again.png").write_bytes(image(1))
    (folder / "class0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    store = open_store(f"file://{tmp_path}/store")
    asked = Recipe.model_validate(
        {
            "name": "cats",
            "source": {"kind": "folder", "path": str(folder)},
            "dataset": {"channels": 1, "height": 8, "width": 8, "held_out": 0.5, "layout": "sample"},
            "checks": {"max_rejected": 0.5},
            "models": MODELS,
        }
    )
    dataset = ingest(store, asked)
    release = releases.publish(store, recipe(), "vae", *parents(store, dataset=dataset))
    releases.promote(store, release.name, release.number, "champion", who="ann", why="the first")
    return House(store, folder, asked, dataset, release)


def named(nodes: tuple[Node, ...]) -> dict[str, Node]:
    """All nodes of these and behind them, by kind; of several of a kind the first."""
    found: dict[str, Node] = {}
    for node in (one for top in nodes for one in top.walk()):
        found.setdefault(node.kind, node)
    return found


def drawn(found: Lineage, width: int = 400) -> str:
    paper = io.StringIO()
    Console(width=width, file=paper, soft_wrap=True).print(tree(found))
    return paper.getvalue()


def name_of(house: House, split: str) -> str:
    """The name of an image that was put into a split."""
    for number in range(2, 20):
        name = f"class{number % 2}/{number:03d}.png"
        if f" of {split}, " in image_lineage(house.store, name).became[0].about:
            return name
    raise AssertionError(split)


def test_a_release_is_traced_to_its_source_images_and_its_alias(house: House) -> None:
    found = lineage(house.store, house.release)
    origins, outcomes = named(found.made_of), named(found.became)
    parts = {"run": house.release.run, "evaluation": house.release.evaluation, "samples": house.release.samples}
    for kind, ref in {**parts, "dataset": house.dataset.ref}.items():
        assert (origins[kind].name, origins[kind].state) == (ref, "intact"), kind
    assert [node.kind for node in origins["run"].behind] == ["dataset"]
    assert origins["shards"].about.startswith(f"{len(house.dataset.shards)} shards of 20 samples")
    assert str(house.images) in origins["source"].name
    assert "22 inputs, of which 1 duplicates and 1 rejected" in origins["source"].about
    assert origins["index"].state == "intact"
    assert outcomes["alias"].name == "tiny-vae@champion" and outcomes["alias"].about.endswith("by ann: the first")
    assert found.changed == []


def test_a_dataset_and_a_run_say_what_came_of_them(house: House) -> None:
    run = load(house.store, house.release.run, Run)
    for record in (house.dataset, run):
        outcomes = named(lineage(house.store, record).became)
        assert outcomes["release"].name == "releases/tiny-vae/1" and outcomes["release"].state == "intact"
        assert outcomes["alias"].name == "tiny-vae@champion"
    assert named(lineage(house.store, house.dataset).became)["run"].name == run.ref
    evaluation = load(house.store, house.release.evaluation, Evaluation)
    samples = load(house.store, house.release.samples, SampleSet)
    for measured in (evaluation, samples):
        found = lineage(house.store, measured)
        assert named(found.made_of)["run"].name == run.ref and named(found.became)["release"].name == house.release.ref


def test_an_alias_that_moved_on_and_a_retraction_are_told(house: House) -> None:
    second = releases.publish(house.store, recipe(), "vae", *parents(house.store, "b", dataset=house.dataset))
    releases.promote(house.store, "tiny-vae", 2, "champion", who="bob", why="newer")
    releases.retract(house.store, "tiny-vae", 2, None, who="eve", why="a mistake")
    first, then = (named(lineage(house.store, release).became) for release in (house.release, second))
    assert first["alias"].about.startswith("since ") and "eve: a mistake" in first["alias"].about
    assert then["alias"].about.startswith("no more; from ") and then["retracted"].about.endswith("by eve: a mistake")


def test_a_source_image_is_traced_by_name_and_by_key(house: House) -> None:
    name = name_of(house, "train")
    found = image_lineage(house.store, name)
    assert hashlib.sha256((house.images / name).read_bytes()).hexdigest() in found.target.about
    (version,) = found.became
    assert version.name == house.dataset.ref and version.about.startswith("sample ")
    key, shard = version.about.split()[1], version.about.rpartition(" in ")[2]
    assert shard in {one.name for one in house.dataset.shards}
    outcomes = named(found.became)
    assert outcomes["run"].about.startswith("was trained on it; ")
    assert outcomes["release"].name == house.release.ref and outcomes["alias"].name == "tiny-vae@champion"
    by_key = image_lineage(house.store, key)
    assert by_key.became == found.became and f"the name is {name}" in by_key.target.about


def test_a_held_out_image_was_not_trained_on(house: House) -> None:
    outcomes = named(image_lineage(house.store, name_of(house, "test")).became)
    assert outcomes["run"].about.startswith("was not trained on it, which is held out; ")


def test_a_copy_under_another_name_is_the_same_image(house: House) -> None:
    first, again = (image_lineage(house.store, f"class1/{name}.png") for name in ("001", "again"))
    assert first.became == again.became and "duplicate" in first.became[0].about
    assert "class1/again.png" in first.target.about and "class1/001.png" in again.target.about


def test_a_rejected_image_has_come_to_nothing(house: House) -> None:
    (version,) = image_lineage(house.store, "class0/broken.png").became
    assert version.about.startswith("class0/broken.png: rejected, ") and version.behind == ()


def test_what_was_taken_down_is_told_of_the_image_and_of_what_holds_it_still(house: House) -> None:
    name = name_of(house, "train")
    takedown.drop(house.store, house.recipe, [name], "ann", "a face")
    later = ingest(house.store, house.recipe)
    found = image_lineage(house.store, name)
    (told,) = found.made_of
    assert told.kind == "taken down" and told.about.endswith("by ann: a face")
    before, after = (next(node for node in found.became if node.name == one.ref) for one in (house.dataset, later))
    assert before.behind and before.about.startswith("sample ")
    assert after.about == f"{name}: taken down" and after.behind == ()
    (held,) = [
        node for top in lineage(house.store, house.release).made_of for node in top.walk() if "taken" in node.kind
    ]
    assert held.kind == "taken down since" and held.name == name and "a face" in held.about
    assert "taken down since" not in named(lineage(house.store, later).made_of)
    assert named(lineage(house.store, later).made_of)["version before"].name == house.dataset.ref
    assert named(lineage(house.store, house.dataset).became)["version after"].name == later.ref


def test_an_image_with_other_bytes_in_a_later_version_is_told_apart(house: House) -> None:
    (house.images / "class0/002.png").write_bytes(image(99))
    ingest(house.store, house.recipe)
    found = image_lineage(house.store, "class0/002.png")
    digests = [hashlib.sha256(image(number)).hexdigest() for number in (2, 99)]
    assert all(digest in found.target.about for digest in digests) and len(found.became) == 2


def test_a_parent_that_changed_since_is_named(house: House) -> None:
    key = f"{house.release.run}/run.json"
    house.store.put(key, house.store.get(key).replace(b'"steps": 1', b'"steps": 2'))
    found = lineage(house.store, house.release)
    (changed,) = found.changed
    assert changed.name == house.release.run and changed.about.startswith("expected SHA-256 ")
    assert named(found.made_of)["dataset"].state == "intact"  # which the release names itself
    (told,) = lineage(house.store, load(house.store, house.release.run, Run)).changed
    assert told.kind == "release" and told.name == house.release.ref and "SHA-256" in told.about
    assert "[CHANGED]" in drawn(found)


def test_a_parent_that_is_gone_is_no_fault(house: House) -> None:
    house.store.delete(f"{house.release.run}/run.json")
    found = lineage(house.store, house.release)
    assert named(found.made_of)["run"].state == "gone" and found.changed == []
    assert named(found.made_of)["dataset"].state == "intact"


def test_a_lost_shard_and_a_damaged_index_are_named(house: House) -> None:
    house.store.delete(house.dataset.key_of(house.dataset.shards[0]))
    (lost,) = lineage(house.store, house.dataset).changed
    assert lost.kind == "shards" and f"`atelier repair {house.store.uri}/{house.dataset.ref}`" in lost.about
    house.store.put(f"{house.dataset.ref}/index.parquet", b"other")
    assert {node.kind for node in lineage(house.store, house.dataset).changed} == {"shards", "index"}
    with pytest.raises(IntegrityError, match=r"index\.parquet: expected SHA-256"):
        image_lineage(house.store, "class0/002.png")


def test_the_weights_that_looked_at_the_samples_are_held_against_the_protocol(house: House) -> None:
    evaluation = load(house.store, house.release.evaluation, Evaluation)
    ref, weights = f"{house.dataset.ref}/extractors/ee", b"weights"
    entry = {"name": "extractor.safetensors", "bytes": len(weights), "sha256": "not looked at"}
    house.store.put(f"{ref}/extractor.json", json.dumps({"weights": entry, "task": "classes"}).encode())
    house.store.put(f"{ref}/{entry['name']}", weights)
    sha256 = hashlib.sha256(weights).hexdigest()
    protocol = evaluation.protocol.model_copy(
        update={"extractor": ref, "extractor_sha256": sha256, "classifier": ref, "classifier_sha256": sha256}
    )
    own = commit(house.store, evaluation.model_copy(update={"id": "f" * 16, "protocol": protocol}))
    eyes = named(lineage(house.store, own).made_of)["extractor"]
    assert (eyes.name, eyes.state) == (ref, "intact") and "classifier" not in named(lineage(house.store, own).made_of)
    house.store.put(f"{ref}/{entry['name']}", b"others")
    (changed,) = lineage(house.store, own).changed
    assert changed.kind == "extractor" and sha256 in changed.about
    file = protocol.model_copy(update={"extractor": "file eyes.onnx"})
    own = commit(house.store, evaluation.model_copy(update={"id": "9" * 16, "protocol": file}))
    origins = named(lineage(house.store, own).made_of)
    assert origins["extractor"].about.startswith("from outside this store") and origins["classifier"].state == "changed"


def test_an_image_that_no_dataset_knows_is_one_clear_line(house: House) -> None:
    with pytest.raises(RecordError, match=r"got 'nowhere\.png'") as caught:
        image_lineage(house.store, "nowhere.png")
    assert "cats" in str(caught.value) and "\n" not in str(caught.value)


def test_the_tree_has_names_whole_and_takes_them_as_they_are(house: House) -> None:
    text = drawn(lineage(house.store, house.release))
    for ref in (house.release.ref, house.release.run, house.dataset.ref, "tiny-vae@champion"):
        assert ref in text
    assert text.splitlines()[0].startswith("release releases/tiny-vae/1  ") and "made of" in text
    narrow = drawn(lineage(house.store, house.release), width=60)
    assert house.dataset.ref in narrow and house.dataset.source_fingerprint in "".join(re.split(r"[\s│└├─]+", narrow))
    hostile = Node(kind="image", name="[red]a[/red]", about="[b]")
    assert "[red]a[/red]  [b]" in drawn(Lineage(target=hostile, made_of=(), became=()))


def test_the_verb_takes_a_uri_an_alias_or_an_image(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    def said(target: str, *more: str) -> str:
        app(["lineage", target, *more], standalone_mode=False)
        return capsys.readouterr().out

    here = ("--store", house.store.uri)
    by_name = said("tiny-vae@champion", *here)
    assert by_name == said(f"{house.store.uri}/{house.release.ref}") == said("tiny-vae@1", *here)
    assert house.dataset.ref in by_name
    found = json.loads(said("class0/002.png", *here, "--json"))
    assert found["became"][0]["name"] == house.dataset.ref and found["target"]["kind"] == "image"
    assert found["store"] == house.store.uri
    with pytest.raises(RecordError, match="tiny-vae@7 names none"):
        app(["lineage", "tiny-vae@7", *here], standalone_mode=False)
    with pytest.raises(RecordError, match=r"got 'class0/002@2x\.png'"):
        app(["lineage", "class0/002@2x.png", *here], standalone_mode=False)


def test_the_verb_fails_where_something_changed(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.store.put(f"{house.release.evaluation}/evaluation.json", b"{}")
    with pytest.raises(IntegrityError, match=f"found {house.release.evaluation} changed"):
        app(["lineage", "tiny-vae@champion", "--store", house.store.uri], standalone_mode=False)
    assert "[CHANGED]" in capsys.readouterr().out  # it is shown all the same
