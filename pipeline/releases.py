"""Publish and promote: from a finished run, its evaluation and its sample set to a version that consumers see.

    releases/<name>/<n>/claim.json     who owns number n: written first, by create, so two publishers get two numbers
                        ...            model.safetensors, config.json, README.md, grid.png, samples/*.tar
                        manifest.json  written last: a release without it does not exist for a consumer
    aliases/<name>/<alias>.json        the one thing that changes, by compare-and-swap, with its history

Publishing the same run, evaluation and sample set again finds its own claim and ends with the same release. At any
moment a consumer sees the old state or the new one.
"""

import datetime
import io
import json
from collections.abc import Iterator

import yaml

from pipeline import __version__, pictures, shards
from pipeline.artifacts import (
    Alias,
    Dataset,
    Evaluation,
    FileEntry,
    Move,
    Release,
    Run,
    SampleSet,
    commit,
    digest_of,
    file_entry,
    find,
    load,
    open_record,
    read_file,
    split_uri,
)
from pipeline.errors import AlreadyExists, Changed, NotFound, RecordError
from pipeline.recipe import Recipe, load_recipe
from pipeline.store import Store, open_store

SAMPLES_FOLDER = "samples"


def release_id(recipe: Recipe, run: str, evaluation: str, samples: str) -> str:
    """The id of what a publisher means to publish; a second attempt at it ends with the same release."""
    spec = recipe.release.model_dump(mode="json", exclude={"alias"})
    parents = {"run": run, "evaluation": evaluation, "samples": samples}
    return digest_of({**parents, "release": spec, "code": __version__})


def releases_of(store: Store, name: str) -> Iterator[Release]:
    """The finished releases of a name, oldest first."""
    numbers = {int(number) for number in _folders(store, name, Release.file_name)}
    for number in sorted(numbers):
        yield load(store, f"releases/{name}/{number}", Release)


def find_release(store: Store, name: str, intent: str) -> Release | None:
    """The finished release with this id, if there is one."""
    return next((release for release in releases_of(store, name) if release.id == intent), None)


def publish_uris(recipe_json: str, model: str, run_uri: str, evaluation_uri: str, samples_uri: str) -> str:
    """`publish` by URIs, as a DAG's task calls it; gives the URI of the release."""
    store = open_store(split_uri(run_uri)[0])
    refs = [split_uri(uri)[1] for uri in (run_uri, evaluation_uri, samples_uri)]
    release = publish(store, load_recipe(recipe_json), model, *refs)
    return f"{store.uri}/{release.ref}"


def promote_uri(release_uri: str, alias: str, who: str, why: str) -> None:
    """`promote` by the URI of a release, as a DAG's task calls it."""
    store, release = open_record(release_uri, Release)
    assert isinstance(release, Release)
    promote(store, release.name, release.number, alias, who=who, why=why)


def publish(store: Store, recipe: Recipe, model: str, run_ref: str, evaluation_ref: str, samples_ref: str) -> Release:
    """Publish a run with its evaluation and its sample set, given by their refs. Raises RecordError."""
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
    number = _claim(store, name, intent)
    ref = f"releases/{name}/{number}"
    if done := find(store, ref, Release):
        return done
    dataset = load(store, run.dataset, Dataset)
    files = _copy_model(store, run, ref)
    files += _copy_samples(store, samples, ref, f"{name}/{number}")
    card = model_card(recipe, name, number, run, dataset, evaluation, samples).encode()
    files.append(_put(store, ref, "README.md", card))
    release = Release(
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
        figures=evaluation.figures,
        files=tuple(sorted(files, key=lambda entry: entry.name)),
    )
    return commit(store, release)


def promote(store: Store, name: str, number: int, alias: str, *, who: str, why: str) -> Alias:
    """Move an alias to a release, once: an alias that names it already is left as it is. Raises RecordError."""
    if find(store, f"releases/{name}/{number}", Release) is None:
        known = ", ".join(str(release.number) for release in releases_of(store, name)) or "none"
        raise RecordError(f"expected a release of {name} (there are: {known}), got {number}")
    key = Alias(name=name, alias=alias, history=()).key
    while True:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        move = Move(number=number, at=now, who=who, why=why)
        try:
            data, etag = store.get_with_etag(key)
        except NotFound:
            first = Alias(name=name, alias=alias, history=(move,))
            try:
                store.create(key, _alias_bytes(first))
            except AlreadyExists:
                continue  # another promoter was first: look at what they wrote
            return first
        current = Alias.model_validate_json(data)
        if current.number == number:
            return current
        moved = current.model_copy(update={"history": (*current.history, move)})
        try:
            store.replace(key, _alias_bytes(moved), etag)
        except Changed:
            continue  # as above
        return moved


def alias_of(store: Store, name: str, alias: str) -> Alias | None:
    """Where an alias points, with its history; None where nobody has set it."""
    try:
        return Alias.model_validate_json(store.get(f"aliases/{name}/{alias}.json"))
    except NotFound:
        return None


def resolve(store: Store, target: str) -> Release:
    """The release that `NAME@alias` or `NAME@number` names. Raises RecordError saying which there are."""
    name, at, which = target.partition("@")
    if not at or not name or not which or "/" in target:
        raise RecordError(f"expected NAME@ALIAS or NAME@NUMBER, such as digits-gan@champion, got {target!r}")
    if which.isdigit():
        release = find(store, f"releases/{name}/{int(which)}", Release)
    else:
        alias = alias_of(store, name, which)
        release = load(store, f"releases/{name}/{alias.number}", Release) if alias else None
    if release is None:
        there = ", ".join(f"{name}@{found.number}" for found in releases_of(store, name)) or f"none of {name}"
        raise RecordError(f"{store.uri}: expected a release, {target} names none; there are: {there}")
    return release


def _claim(store: Store, name: str, intent: str) -> int:
    """The number that this intent owns, taking the next free one where it owns none yet."""
    body = json.dumps({"id": intent}).encode()
    taken = sorted(int(number) for number in _folders(store, name, "claim.json"))
    for number in taken:
        if store.get(f"releases/{name}/{number}/claim.json") == body:
            return number
    number = max(taken, default=0)
    while True:
        number += 1
        try:
            store.create(f"releases/{name}/{number}/claim.json", body)
        except AlreadyExists:
            if store.get(f"releases/{name}/{number}/claim.json") != body:
                continue
        return number


def _folders(store: Store, name: str, file_name: str) -> Iterator[str]:
    """The numbers of the folders of a name that hold `file_name`."""
    for entry in store.list(f"releases/{name}/"):
        _, _, number, *rest = entry.key.split("/")
        if rest == [file_name] and number.isdigit():
            yield number


def _put(store: Store, ref: str, name: str, data: bytes) -> FileEntry:
    store.put(f"{ref}/{name}", data)
    return file_entry(name, data)


def _copy_model(store: Store, run: Run, ref: str) -> list[FileEntry]:
    return [_put(store, ref, entry.name, read_file(store, run, entry)) for entry in run.files]


def _copy_samples(store: Store, samples: SampleSet, ref: str, release: str) -> list[FileEntry]:
    """Copy the sample set, writing into each image's own metadata which release it belongs to."""
    files = []
    for entry in samples.files:
        data = read_file(store, samples, entry)
        if entry.name.endswith(".tar"):
            tagged = [_tag(sample, release) for sample in shards.read_shard(data)]
            files.append(_put(store, ref, f"{SAMPLES_FOLDER}/{entry.name}", shards.write_shard(tagged)))
        else:
            files.append(_put(store, ref, entry.name, pictures.add_text(data, {"atelier:release": release})))
    return files


def _tag(sample: shards.Sample, release: str) -> shards.Sample:
    png = pictures.add_text(sample.image, {"atelier:release": release})
    return shards.Sample(key=sample.key, members={**sample.members, sample.extension: png})


def _alias_bytes(alias: Alias) -> bytes:
    return (alias.model_dump_json(indent=1) + "\n").encode()


def model_card(
    recipe: Recipe,
    name: str,
    number: int,
    run: Run,
    dataset: Dataset,
    evaluation: Evaluation,
    samples: SampleSet,
) -> str:
    """The release's README.md: Hugging Face front matter, figures, lineage and how to use it."""
    front = {
        "license": recipe.release.license,
        "library_name": "atelier",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["image-generation", run.family, dataset.name],
    }
    text = io.StringIO()
    text.write(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name} {number}\n\n")
    if recipe.release.description:
        text.write(f"{recipe.release.description}\n\n")
    kind = "class-conditional" if dataset.classes else "unconditional"
    text.write(
        f"A {kind} `{run.family}` trained for {run.steps:,} steps ({run.images_seen:,} images seen) on the dataset "
        f"`{dataset.name}`: {dataset.splits.get('train', 0):,} training images of "
        f"{dataset.channels}x{dataset.height}x{dataset.width}.\n\n![Generated samples](grid.png)\n\n"
    )
    text.write(f"## Figures\n\nOn the split `{evaluation.split}`, protocol `{evaluation.protocol}`. ")
    text.write(f"Features: {evaluation.extractor_note}\n\n")
    text.write(
        "| figure | value | 95% interval | unit | samples | real images |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    for figure_name, figure in evaluation.figures.items():
        interval = "" if figure.low is None or figure.high is None else f"{figure.low:.4g} to {figure.high:.4g}"
        text.write(
            f"| {figure_name} | {figure.value:.4g} | {interval} | {figure.unit} | "
            f"{figure.num_samples:,} | {figure.num_real:,} |\n"
        )
    text.write(
        f"\n## Use\n\n    atelier sample {name}@{number} --count 64 --out grid.png\n\n"
        f"`samples/` holds {samples.count:,} generated images as WebDataset shards: each with its class, its seed, and "
        "in its own PNG metadata that this model made it.\n\n"
        f"## Lineage\n\n- run `{run.ref}`\n- dataset `{dataset.ref}` (source fingerprint "
        f"`{dataset.source_fingerprint}`)\n- evaluation `{evaluation.ref}`\n- sample set `{samples.ref}`\n"
        f"- atelier {run.code_version}, seed {run.config.get('seed')}\n"
    )
    return text.getvalue()
