"""The peers' side, run by the peers' own Python: `python -m tests.bench.peers REQUEST.json` prints one line of JSON.

It imports nothing of the project but `tests.bench.measure`: the peers pin other versions of numpy. The request is a
`tests.bench.asked.Request` as JSON; the answer maps a figure's name to its samples, CPU seconds and wall seconds.
Each reader ends with a batch of float32 tensors in [0, 1] and labels, as a training loop takes them.

They are used as their own documentation says, on one process without workers (their CPU time counts either way), with
what makes them fast and keeps what they promise: no shuffle buffer, their own binary layout, local files.
"""

import importlib
import io
import json
import shutil
import sys
import types
from collections.abc import Callable, Generator, Iterable
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.bench.measure import Rate, Rule, Timed, best_rates, whole

Json = dict[str, Any]
Batches = Generator[int]


def main(request_path: str) -> None:
    """Measure all that the request asks for."""
    request = json.loads(Path(request_path).read_text())
    rule = Rule(**request["rule"])
    passes: dict[str, Timed] = {}
    rates: dict[str, Rate] = {}
    for data in request["data"]:
        passes |= stock_readers(data, request["batch_size"])
    for data in request["data"]:
        if data["raw"]:
            rates |= own_formats(data, request, passes)
    if request["write"]:
        passes |= writers(request["write"], Path(request["work"]))
    rates |= best_rates(passes, rule)
    if request["ingest"]:
        rates["ingest loop"] = ingest_loop(request["ingest"], Path(request["work"]))
    print(json.dumps({name: vars(rate) for name, rate in rates.items()}))


# --- webdataset ---


def stock_readers(data: Json, batch_size: int) -> dict[str, Timed]:
    """Stock webdataset on our own shards: decoded by Pillow, batched and made floats."""
    passes = {}
    for place, urls in data["sample"].items():
        passes[f"webdataset {place} {data['name']}"] = Timed(stock_samples(urls, data, batch_size))
    for place, urls in data["block"].items():
        passes[f"webdataset blocks {place} {data['name']}"] = Timed(stock_blocks(urls))
    return passes


def stock_samples(urls: list[str], data: Json, batch_size: int) -> Callable[[], Batches]:
    """One record an image."""
    wds = importlib.import_module("webdataset")
    how = "l8" if data["channels"] == 1 else "rgb8"

    def run() -> Batches:
        reader = wds.WebDataset(urls, shardshuffle=False, empty_check=False)
        decoded = reader.decode(how).to_tuple(data["encoding"], "cls")
        for images, labels in decoded.batched(batch_size):
            yield len(to_unit(images, labels)[0])

    return run


def stock_blocks(urls: list[str]) -> Callable[[], Batches]:
    """One record a block of images, as `.npy`."""
    wds = importlib.import_module("webdataset")

    def run() -> Batches:
        reader = wds.WebDataset(urls, shardshuffle=False, empty_check=False)
        for images, labels in reader.decode().to_tuple("images.npy", "labels.npy"):
            yield len(to_unit(images, labels)[0])

    return run


def to_unit(images: Any, labels: Any) -> tuple[Any, Any]:
    """uint8 images, stacked or not, as float32 tensors in [0, 1]."""
    np, torch = importlib.import_module("numpy"), importlib.import_module("torch")
    stacked = torch.as_tensor(np.stack(images) if isinstance(images, list | tuple) else images)
    return stacked.to(torch.float32).div_(255), torch.as_tensor(labels)


# --- mosaicml-streaming and litdata, in their own formats ---


def own_formats(data: Json, request: Json, passes: dict[str, Timed]) -> dict[str, Rate]:
    """Write the data in each peer's format (a figure in itself) and add a pass that reads them back."""
    work, batch_size = Path(request["work"]), request["batch_size"]
    loaded = importlib.import_module("numpy").load(data["raw"])
    images, labels = loaded["images"], loaded["labels"]
    rates = {}
    if installed("mosaicml-streaming"):
        folder = work / f"mds-{data['name']}"
        rates[f"mosaicml-streaming write {data['name']}"] = whole(
            len(images), lambda: write_mds(folder, data, images, labels)
        )
        passes[f"mosaicml-streaming disk {data['name']}"] = Timed(mds_reader(folder, batch_size))
    if installed("litdata"):
        folder = work / f"litdata-{data['name']}"
        rates[f"litdata write {data['name']}"] = whole(len(images), lambda: write_litdata(folder, data, images, labels))
        passes[f"litdata disk {data['name']}"] = Timed(litdata_reader(folder, batch_size, data))
    return rates


def installed(name: str) -> bool:
    """Whether this environment has a distribution."""
    return any(True for _ in distributions(name=name))


@cache
def mosaic() -> types.ModuleType:
    """`streaming.base` of mosaicml-streaming, all that is measured.

    Its top package imports torchvision for data sets of its own. PyPI's torchvision is built for CUDA and does not load
    beside a CPU build of torch ('operator torchvision::nms does not exist'): there the package is entered without
    running its `__init__`; what is measured is its unchanged code.
    """
    try:
        return importlib.import_module("streaming.base")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] in ("streaming", "torchvision")]:
            del sys.modules[name]
        spec = find_spec("streaming")
        assert spec is not None
        bare = types.ModuleType("streaming")
        bare.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["streaming"] = bare
        return importlib.import_module("streaming.base")


def encoded(data: Json, image: Any) -> Any:
    """An image as the peers store it: JPEG where our shards hold JPEG, else plain pixels."""
    if data["encoding"] != "jpg":
        return image
    out = io.BytesIO()
    importlib.import_module("PIL.Image").fromarray(image).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def write_mds(folder: Path, data: Json, images: Any, labels: Any) -> None:
    """mosaicml-streaming's MDS."""
    shutil.rmtree(folder, ignore_errors=True)
    plain = data["encoding"] != "jpg"
    columns = {"image": f"ndarray:uint8:{','.join(map(str, images.shape[1:]))}" if plain else "bytes", "label": "int"}
    with mosaic().MDSWriter(out=str(folder), columns=columns) as out:
        for image, label in zip(images, labels.tolist(), strict=True):
            out.write({"image": encoded(data, image), "label": label})


def mds_reader(folder: Path, batch_size: int) -> Callable[[], Batches]:
    """MDS by the peer's own loader."""
    torch, base = importlib.import_module("torch"), mosaic()
    np, pil = importlib.import_module("numpy"), importlib.import_module("PIL.Image")

    def collate(samples: list[Json]) -> tuple[Any, Any]:
        images = [one["image"] for one in samples]
        if isinstance(images[0], bytes):
            images = [np.asarray(pil.open(io.BytesIO(one))) for one in images]
        return to_unit(images, [one["label"] for one in samples])

    stored = base.StreamingDataset(local=str(folder), batch_size=batch_size, shuffle=False)

    def run() -> Batches:
        for images, _ in torch.utils.data.DataLoader(stored, batch_size, collate_fn=collate):
            yield len(images)

    return run


def write_litdata(folder: Path, data: Json, images: Any, labels: Any) -> None:
    """litdata's chunks."""
    fresh(folder)
    torch = importlib.import_module("torch")
    binary = importlib.import_module("litdata.streaming.writer").BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        stored = encoded(data, image)
        binary.add_item(number, (torch.from_numpy(stored) if data["encoding"] != "jpg" else stored, label))
    binary.done()
    binary.merge()


def litdata_reader(folder: Path, batch_size: int, data: Json) -> Callable[[], Batches]:
    """litdata's chunks by its own loader."""
    litdata, torch = importlib.import_module("litdata"), importlib.import_module("torch")
    np, pil = importlib.import_module("numpy"), importlib.import_module("PIL.Image")

    def collate(samples: list[tuple[Any, int]]) -> tuple[Any, Any]:
        images, labels = [one for one, _ in samples], [label for _, label in samples]
        if data["encoding"] == "jpg":
            return to_unit([np.asarray(pil.open(io.BytesIO(one))) for one in images], labels)
        return torch.stack(images).to(torch.float32).div_(255), torch.as_tensor(labels)

    stored = litdata.StreamingDataset(str(folder))

    def run() -> Batches:
        for images, _ in litdata.StreamingDataLoader(stored, batch_size=batch_size, collate_fn=collate):
            yield len(images)

    return run


# --- writing ---


def writers(raw: str, work: Path) -> dict[str, Timed]:
    """ShardWriter with PNG, as webdataset's documentation shows it."""
    wds = importlib.import_module("webdataset")
    loaded = importlib.import_module("numpy").load(raw)
    pairs = list(zip(loaded["images"], loaded["labels"].tolist(), strict=True))

    folder = work / "shardwriter"

    def run() -> Batches:
        with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=8192, verbose=0) as out:
            for number, (image, label) in enumerate(pairs):
                out.write({"__key__": f"{number:08d}", "png": image, "cls": label})
                yield 1

    return {"ShardWriter png": Timed(run, prepare=lambda: fresh(folder))}


def ingest_loop(folder: str, work: Path) -> Rate:
    """The plain loop: open each file by Pillow, make it grey, resize it and write it by ShardWriter."""
    paths = sorted(Path(folder).glob("*/*.png"))
    fresh(work / "ingest-loop")
    return whole(len(paths), lambda: write_resized(paths, work / "ingest-loop"))


def write_resized(paths: Iterable[Path], folder: Path) -> None:
    """Each file as 28x28 grey PNG."""
    wds, np = importlib.import_module("webdataset"), importlib.import_module("numpy")
    pil = importlib.import_module("PIL.Image")
    with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=8192, verbose=0) as out:
        for number, path in enumerate(paths):
            with pil.open(path) as picture:
                image = np.asarray(picture.convert("L").resize((28, 28), pil.Resampling.LANCZOS))
            out.write({"__key__": f"{number:08d}", "png": image, "cls": int(path.parent.name)})


def fresh(folder: Path) -> None:
    """Make the folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


if __name__ == "__main__":
    importlib.import_module("torch").set_num_threads(1)
    main(sys.argv[1])
