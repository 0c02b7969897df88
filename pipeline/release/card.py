"""The model card: a release's README.md, with the front matter that the Hugging Face Hub reads.

What it says comes from the records alone, so it is the same again; nothing is claimed that was not measured.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipeline.artifacts import Dataset, Evaluation, Figure, Run, SampleSet
from pipeline.figures import Group, grouped, interval, meaning, number, title_of
from pipeline.recipe import Recipe

CARD = "README.md"
FAMILIES = {
    "vae": "variational autoencoder",
    "gan": "generative adversarial network",
    "vaegan": "variational autoencoder with an adversary",
}
TASK = "unconditional-image-generation"  # the Hub's word for it, with classes or without


def model_card(
    recipe: Recipe,
    name: str,
    number: int,
    run: Run,
    dataset: Dataset,
    evaluation: Evaluation,
    samples: SampleSet,
) -> bytes:
    """README.md of a release."""
    front = yaml.safe_dump(_front_matter(recipe, name, run, dataset, evaluation), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---",
        f"# {name} {number}",
        recipe.release.description,
        _what(run, dataset),
        "![Generated samples](grid.png)",
        _data(dataset),
        _figures(evaluation),
        _limits(run, dataset, evaluation),
        _use(name, number, dataset, samples),
        _lineage(run, dataset, evaluation, samples),
        f"## Licence\n\n`{recipe.release.license}`, for the weights and the generated images.",
    ]
    return ("\n\n".join(part for part in parts if part) + "\n").encode()


def retracted(card: bytes, at: str, who: str, why: str) -> bytes:
    """The card of a release that was taken back: the notice stands above everything else that is read."""
    front, mark, body = card.decode().partition("\n---\n")
    notice = (
        f"\n> **Retracted** on {at} by {who}: {why}\n>\n"
        "> Do not use this release or its images. Its files stay for the record; no alias names it.\n"
    )
    return f"{front}{mark}{notice}{body}".encode()


def _front_matter(recipe: Recipe, name: str, run: Run, dataset: Dataset, evaluation: Evaluation) -> dict[str, Any]:
    results = {
        "task": {"type": TASK, "name": "image generation"},
        "dataset": {
            "type": dataset.name,
            "name": dataset.name,
            "split": evaluation.protocol.split,
            "revision": dataset.id,
        },
        "metrics": [
            {"type": metric, "value": figure.value, "name": title_of(metric)}
            for metric, figure in evaluation.figures.items()
        ],
    }
    return {
        "license": recipe.release.license,
        "library_name": "atelier",
        "pipeline_tag": TASK,
        "tags": ["image-generation", run.family, dataset.name, "onnx", "safetensors"],
        "model-index": [{"name": name, "results": [results]}],
    }


def _what(run: Run, dataset: Dataset) -> str:
    kind = "class-conditional" if dataset.classes else "unconditional"
    return (
        f"A {kind} {FAMILIES.get(run.family, run.family)} (`{run.family}`), trained for {run.steps:,} steps "
        f"({run.images_seen:,} images seen) on the dataset `{dataset.name}`. It makes images of "
        f"{dataset.width}x{dataset.height} pixels in {_colour(dataset)}."
    )


def _colour(dataset: Dataset) -> str:
    return "grey" if dataset.channels == 1 else "colour"


def _data(dataset: Dataset) -> str:
    order = sorted(dataset.splits, key=lambda split: (split != "train", split))
    splits = ", ".join(f"{_counted(dataset.splits[split], 'image')} in `{split}`" for split in order)
    text = f"## Data\n\n{splits}; the model saw `train` alone. Of {_counted(dataset.num_inputs, 'input')}, "
    rejected, duplicates = dataset.num_rejected, dataset.num_duplicates + dataset.num_near_duplicates
    text += f"{f'{rejected:,} were' if rejected else 'none was'} rejected and "
    text += f"{f'{duplicates:,} repeated others' if duplicates else 'none repeated another'}."
    if dataset.classes:
        text += "\n\nClasses: " + ", ".join(f"`{name}`" for name in dataset.classes) + "."
    return text


def _figures(evaluation: Evaluation) -> str:
    """A table a group; the last column is what real images score."""
    protocol = evaluation.protocol
    head = (
        f"## Figures\n\n{_counted(protocol.num_samples, 'sample')} held against "
        f"{_counted(protocol.num_real, 'image')} of the split `{protocol.split}`, with 95% intervals. "
        f"Protocol `{protocol}`: figures of another protocol cannot be compared with these. Features: "
        f"{evaluation.extractor_note}"
    )
    tables = [_table(group, figures) for group, figures in grouped(evaluation.figures).items()]
    return "\n\n".join([head, *tables])


def _table(group: Group, figures: Mapping[str, Figure]) -> str:
    floor = "on training images" if group == "Likelihood of real images" else "real images in their place"
    rows = [
        f"| figure | value | 95% interval | {floor} | better if | unit |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    return f"### {group}\n\n" + "\n".join([*rows, *(_row(name, figure) for name, figure in figures.items())])


def _row(name: str, figure: Figure) -> str:
    known = meaning(name)
    floor = "" if figure.floor is None else number(figure.floor)
    cells = (known.title, number(figure.value), interval(figure), floor, known.better, figure.unit)
    return f"| {' | '.join(cells)} |"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _limits(run: Run, dataset: Dataset, evaluation: Evaluation) -> str:
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _known_limits(run, dataset, evaluation))


def _known_limits(run: Run, dataset: Dataset, evaluation: Evaluation) -> Iterator[str]:
    yield (
        f"It knows {dataset.splits.get('train', 0):,} images of `{dataset.name}` and nothing else: what they show too "
        "little or too often, it does, too."
    )
    yield (
        f"One training run of seed {run.config.get('seed')}: the intervals are of the samples' chance, not of the "
        "training's, which may be larger."
    )
    yield "The Fréchet distance is on the features named above: it is no FID, and compares with no published one."
    if run.family == "vae":
        yield "A variational autoencoder's samples are smoother than real images."
    if run.family == "gan":
        yield "An adversarial network may leave out kinds of images that it was shown, and has no likelihood."
    if "near_copies" not in evaluation.figures:
        yield "Whether it repeats training images was not measured."


def _use(name: str, number: int, dataset: Dataset, samples: SampleSet) -> str:
    marked = "its class, its seed" if dataset.classes else "its seed"
    return (
        f"## Use\n\n    atelier sample {name}@{number} --count 64 --out grid.png\n"
        f"    atelier verify {name}@{number}\n    atelier lineage {name}@{number}\n\n"
        "`model.safetensors` with `config.json` are the network for atelier; `model.onnx` makes images in onnxruntime "
        "(`latent` float32, `label` int64 to `image` float32 in [0, 1]).\n\n"
        f"`samples/` holds {samples.count:,} generated images as WebDataset shards, `samples.json` their index: each "
        f"with {marked} and, in its own PNG metadata, that a model made it and which release "
        "(IPTC digital source type `trainedAlgorithmicMedia`)."
    )


def _lineage(run: Run, dataset: Dataset, evaluation: Evaluation, samples: SampleSet) -> str:
    return (
        f"## Lineage\n\n- run `{run.ref}`\n- dataset `{dataset.ref}` (source fingerprint "
        f"`{dataset.source_fingerprint}`)\n- evaluation `{evaluation.ref}`\n- sample set `{samples.ref}`\n"
        f"- atelier {run.code_version}, seed {run.config.get('seed')}"
    )
