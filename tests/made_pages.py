"""A small store with all that a page shows, made by hand: two models, three releases, a sampler that really runs."""

import json

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pipeline import __version__, pictures, releases, shards
from pipeline.artifacts import Dataset, Evaluation, Figure, Release, Run, SampleSet, file_entry
from pipeline.latents import latents
from pipeline.recipe import Recipe, load_recipe
from pipeline.records import commit
from pipeline.release import provenance
from pipeline.store import Store
from tests.made import PROTOCOL, made_dataset, random_part

LATENT_SIZE, SIDE = 10, 8  # ten: the last block of four random words is used in part
CLASSES = ("zero", '<script>document.title = "taken"</script>', 'a "quoted" & <b>bold</b> class')
SAMPLES = 30
RECIPE = {
    "name": "tiny",
    "source": {"kind": "digits"},
    "dataset": {"channels": 1, "height": 8, "width": 8},
    "models": {"gan": {"family": "gan", "steps": 300}, "vae": {"family": "vae", "steps": 300}},
    "release": {"license": "mit", "description": "Small <i>made-up</i> images."},
}


def recipe() -> Recipe:
    return load_recipe(json.dumps(RECIPE))


def sampler_onnx(seed: int) -> bytes:
    """image = sigmoid(latent W + embedding of the class), as `trainers.onnx_export` names inputs and output."""
    rng = np.random.default_rng(seed)
    weights = {
        "W": rng.normal(0, 0.8, (LATENT_SIZE, SIDE * SIDE)).astype(np.float32),
        "E": rng.normal(0, 1.5, (len(CLASSES), SIDE * SIDE)).astype(np.float32),
        "shape": np.array([-1, 1, SIDE, SIDE], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["latent", "W"], ["moved"]),
        helper.make_node("Gather", ["E", "label"], ["centre"]),
        helper.make_node("Add", ["moved", "centre"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["image"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sampler",
        [
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", LATENT_SIZE]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def fill(store: Store) -> list[Release]:
    """Publish gan 1 (champion), vae 1 (champion) and gan 2, which is better but waits at the gate."""
    dataset = _dataset(store)
    made = []
    for mark, model, distance in (("a", "gan", 5.0), ("b", "vae", 7.0), ("c", "gan", 4.0)):
        release = releases.publish(store, recipe(), model, *_parents(store, dataset, mark, model, distance))
        releases.promote_if_better(store, recipe(), release, who="a test", why="it is new")
        made.append(release)
    return made


def _dataset(store: Store) -> Dataset:
    shape = (SIDE, SIDE, 1)
    parts = [random_part(60, shape), random_part(30, shape, first_key=100, split="test")]
    dataset = made_dataset(store, parts, name="tiny", labelled=CLASSES)
    return commit(store, dataset.model_copy(update={"splits": {"train": 60, "test": 30}}))


def _parents(store: Store, dataset: Dataset, mark: str, model: str, distance: float) -> tuple[str, str, str]:
    run = _run(store, dataset, mark, model)
    evaluation = _evaluation(store, run, mark, distance)
    return run.ref, evaluation.ref, _samples(store, run, mark).ref


def _run(store: Store, dataset: Dataset, mark: str, model: str) -> Run:
    lines = [{"step": step, f"{model}/loss": 1 / step, f"{model}/rate": float(step)} for step in range(10, 310, 10)]
    files = {
        "model.safetensors": f"weights {mark}".encode(),
        "config.json": b"{}",
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
    }
    run = Run(
        code_version=__version__, id=mark * 16, recipe="tiny", model=model, family=model, config={"seed": 0},
        dataset=dataset.ref, steps=300, images_seen=3000, metrics={},
        files=tuple(file_entry(name, data) for name, data in files.items()),
    )  # fmt: skip
    for name, data in files.items():
        store.put(f"{run.ref}/{name}", data)
    rng = np.random.default_rng(0)
    for step in (100, 200, 300):
        sheet = pictures.grid(rng.integers(0, 256, (6, SIDE, SIDE, 1), dtype=np.uint8), columns=3)
        store.put(f"{run.ref}/previews/{step:09d}.png", pictures.png_bytes(sheet, {}))
    return commit(store, run)


def _evaluation(store: Store, run: Run, mark: str, distance: float) -> Evaluation:
    sheet = pictures.grid(np.zeros((8, SIDE, SIDE, 1), np.uint8), columns=4, row_labels=["sample", "training"])
    copies = pictures.png_bytes(sheet, {})
    figures = {
        "frechet_distance": (distance, distance - 2, distance + 2, 0.5, "squared feature distance"),
        "recall": (0.5, 0.4, 0.6, 0.9, "share of real images"),
        "made_up <b>figure</b>": (2.0, None, None, None, "<i>units</i>"),
    }
    evaluation = Evaluation(
        code_version=__version__, id=mark * 16, run=run.ref, dataset=run.dataset, protocol=PROTOCOL,
        extractor_note="A note.",
        figures={
            name: Figure(value=value, low=low, high=high, floor=floor, unit=unit, num_samples=100, num_real=50)
            for name, (value, low, high, floor, unit) in figures.items()
        },
        files=(file_entry("copies.png", copies),),
    )  # fmt: skip
    store.put(f"{evaluation.ref}/copies.png", copies)
    return commit(store, evaluation)


def _samples(store: Store, run: Run, mark: str) -> SampleSet:
    model = sampler_onnx(ord(mark))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    labels = np.arange(SAMPLES) % len(CLASSES)
    (unit,) = session.run(["image"], {"latent": latents(range(SAMPLES), LATENT_SIZE), "label": labels})
    images = np.rint(255 * unit).astype(np.uint8).transpose(0, 2, 3, 1)
    made = [
        shards.Sample.of(
            f"{i:09d}", pictures.encode_png(images[i], provenance.made_by(run.ref, seed=i)), int(labels[i]), {"seed": i}
        )
        for i in range(SAMPLES)
    ]
    files = {
        "model.onnx": model,
        "grid.png": pictures.png_bytes(pictures.grid(images, columns=6), {}),
        "samples-000000.tar": shards.write_shard(made),
    }
    samples = SampleSet(
        code_version=__version__, id=mark * 16, run=run.ref, count=SAMPLES, seed=0, made_with="hand",
        files=tuple(file_entry(name, data) for name, data in files.items()),
    )  # fmt: skip
    for name, data in files.items():
        store.put(f"{samples.ref}/{name}", data)
    return commit(store, samples)
