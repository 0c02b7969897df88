"""Publish: from a finished run, its evaluation and its sample set to a version that consumers see.

    releases/<name>/<n>/claim.json       who owns number n: written first, by create, so two publishers get two numbers
                        ...              model.safetensors, config.json, model.onnx, README.md, grid.png, samples.json,
                                         samples/*.tar, report.html
                        manifest.json    written last, signed: a release without it does not exist for a consumer
                        retraction.json  written where the release is taken back
    aliases/<name>/<alias>.json          the one thing that changes, by compare-and-swap, with its history

Publishing the same run, evaluation and sample set again finds its own claim and ends with the same release. At any
moment a consumer sees the old state or the new one. The parts lie in `pipeline.release`.
"""

import json
from typing import Any

from pipeline import __version__, pictures, shards
from pipeline.artifacts import Dataset, Evaluation, FileEntry, Parent, Record, Release, Run, SampleSet, file_entry
from pipeline.errors import RecordError
from pipeline.ids import release_id
from pipeline.pages.published import write_report
from pipeline.pages.render import REPORT
from pipeline.recipe import Recipe, load_recipe
from pipeline.records import commit, find, load, open_record, read_file, split_uri
from pipeline.release import provenance
from pipeline.release.aliases import (
    alias_of,
    champion_of,
    promote,
    promote_if_better,
    retract,
    roll_back,
)
from pipeline.release.card import CARD, model_card
from pipeline.release.consume import open_release as open
from pipeline.release.numbers import claim, find_release, releases_of
from pipeline.release.resolving import resolve
from pipeline.release.signing import Signer, load_signer
from pipeline.settings import Settings
from pipeline.store import Store, open_store

__all__ = [
    "alias_of",
    "champion_of",
    "find_release",
    "open",
    "promote",
    "promote_if_better",
    "promote_uri",
    "publish",
    "publish_uris",
    "releases_of",
    "resolve",
    "retract",
    "roll_back",
]

SAMPLES_FOLDER = "samples"
INDEX = "samples.json"


def publish_uris(recipe_json: str, model: str, run_uri: str, evaluation_uri: str, samples_uri: str) -> str:
    """`publish` by URIs, as a DAG's task calls it; gives the URI of the release."""
    store = open_store(split_uri(run_uri)[0])
    run, evaluation, samples = (split_uri(uri)[1] for uri in (run_uri, evaluation_uri, samples_uri))
    signer = load_signer(Settings.from_environment())
    release = publish(store, load_recipe(recipe_json), model, run, evaluation, samples, signer)
    return f"{store.uri}/{release.ref}"


def promote_uri(recipe_json: str, release_uri: str, who: str, why: str) -> str:
    """The gate by the URI of a release, as a DAG's task calls it; says what it did and why."""
    store, release = open_record(release_uri, Release)
    assert isinstance(release, Release)
    verdict = promote_if_better(store, load_recipe(recipe_json), release, who=who, why=why)
    return f"{'promoted' if verdict.promoted else 'kept as candidate'}: {verdict.reason}"


def publish(
    store: Store,
    recipe: Recipe,
    model: str,
    run_ref: str,
    evaluation_ref: str,
    samples_ref: str,
    signer: Signer | None = None,
) -> Release:
    """Publish a run with its evaluation and its sample set, given by their refs. Raises RecordError, IntegrityError."""
    name = recipe.release_name(model)
    intent = release_id(recipe, run_ref, evaluation_ref, samples_ref)
    run = load(store, run_ref, Run)
    evaluation = load(store, evaluation_ref, Evaluation)
    samples = load(store, samples_ref, SampleSet)
    for parent in (evaluation, samples):
        if parent.run != run.ref:
            raise RecordError(
                f"expected a {parent.kind} record of {run.ref}, got {parent.ref}, which is of {parent.run}"
            )
    number = claim(store, name, intent)
    ref = f"releases/{name}/{number}"
    if done := find(store, ref, Release):
        return done
    dataset = load(store, run.dataset, Dataset)
    files = [_put(store, ref, entry.name, read_file(store, run, entry)) for entry in run.files]
    files += _copy_samples(store, samples, dataset, ref, f"{name}/{number}")
    files.append(_put(store, ref, CARD, model_card(recipe, name, number, run, dataset, evaluation, samples)))
    draft = Release(
        code_version=__version__,
        id=intent,
        name=name,
        number=number,
        run=run.ref,
        evaluation=evaluation.ref,
        samples=samples.ref,
        dataset=dataset.ref,
        family=run.family,
        license=recipe.release.license,
        protocol=evaluation.protocol,
        figures=evaluation.figures,
        parents=tuple(_parent(record) for record in (run, evaluation, samples, dataset)),
        files=_sorted(files),
    )
    report = file_entry(REPORT, write_report(store, recipe, model, draft))
    release = draft.model_copy(update={"files": _sorted([*files, report])})
    return commit(store, signer.signed(release) if signer else release)


def _sorted(files: list[FileEntry]) -> tuple[FileEntry, ...]:
    return tuple(sorted(files, key=lambda entry: entry.name))


def _parent(record: Record) -> Parent:
    return Parent(ref=record.ref, sha256=file_entry(record.file_name, record.to_bytes()).sha256)


def _put(store: Store, ref: str, name: str, data: bytes) -> FileEntry:
    store.put(f"{ref}/{name}", data)
    return file_entry(name, data)


def _copy_samples(store: Store, samples: SampleSet, dataset: Dataset, ref: str, release: str) -> list[FileEntry]:
    """Copy the sample set, writing into each image's own metadata which release it belongs to, and its index."""
    files: list[FileEntry] = []
    listed: list[dict[str, Any]] = []
    for entry in samples.files:
        data = read_file(store, samples, entry)
        if entry.name.endswith(".tar"):
            tagged = [_tag(sample, release) for sample in shards.read_shard(data)]
            files.append(_put(store, ref, f"{SAMPLES_FOLDER}/{entry.name}", shards.write_shard(tagged)))
            listed.append(_listed(files[-1], tagged))
        elif entry.name.endswith(".png"):
            files.append(_put(store, ref, entry.name, pictures.add_text(data, provenance.of_release(release))))
        else:
            files.append(_put(store, ref, entry.name, data))
    index = {
        "schema_number": 1,
        "release": release,
        "count": samples.count,
        "seed": samples.seed,
        "made_with": samples.made_with,
        "classes": dataset.classes,
        "shards": listed,
    }
    return [*files, _put(store, ref, INDEX, (json.dumps(index, sort_keys=True) + "\n").encode())]


def _tag(sample: shards.Sample, release: str) -> shards.Sample:
    png = pictures.add_text(sample.image, provenance.of_release(release))
    return shards.Sample(key=sample.key, members={**sample.members, sample.extension: png})


def _listed(entry: FileEntry, samples: list[shards.Sample]) -> dict[str, Any]:
    """What the index says of a shard: the key, seed and class index (null without classes) of each image in turn."""
    return {
        "name": entry.name,
        "keys": [sample.key for sample in samples],
        "seeds": [sample.info["seed"] for sample in samples],
        "labels": [sample.label for sample in samples],
    }
