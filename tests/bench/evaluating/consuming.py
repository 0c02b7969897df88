"""A release in its consumer's hands: new images against the bare generator, the published set against its decoder
alone, and a cold start without torch in a fresh process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline import releases
from pipeline.artifacts import Release
from pipeline.decoders import decode_image
from pipeline.latents import image_seed
from pipeline.release.consume import OpenRelease
from pipeline.release.contents import Contents
from pipeline.release.runtime import OnnxSampler
from pipeline.settings import child_environment
from pipeline.shards import read_shard
from pipeline.store import Store, open_store
from tests.bench.asked import ROOT
from tests.bench.evaluating.made import Kind, make_release, make_run
from tests.bench.measure import cpu_seconds
from tests.bench.rows import Against, Limit, Row, row
from trainers import families, sample

NEARLY = "<= 1.05"
COUNT = 64
# A process of a consumer who has no torch: what torch would be imported by fails as where it is not installed.
COLD = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ray"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
from pipeline import releases
with releases.open(sys.argv[1]) as r:
    assert r.sample(64).shape[0] == 64 and r.made_with.startswith("onnxruntime")
print([time.perf_counter() - wall, time.process_time() - cpu])
"""


def rows(kind: Kind, num_samples: int, rounds: int, calls: int, folder: Path) -> list[Row]:
    """New images by torch and by onnxruntime, the published ones, and the start."""
    store = open_store(f"file://{folder}/consuming")
    release = make_release(store, make_run(store, kind), num_samples)
    uri = f"{store.uri}/{release.ref}"
    torch.set_num_threads(1)
    with releases.open(uri) as opened:
        return [
            _sample_row(kind, "torch", lambda: opened.sample(COUNT), _bare_torch(store, release), rounds, calls),
            _onnx_row(kind, store, release, rounds, calls),
            _stream_row(opened, num_samples, rounds),
            *_cold_rows(uri, rounds, folder),
        ]


def _sample_row(
    kind: Kind, by: str, ours: Callable[[], object], bare: Callable[[], object], rounds: int, calls: int
) -> Row:
    best = _best({"ours": ours, "bare": bare}, rounds, calls)
    title = f"releases.open(...).sample({COUNT}) by {by}, {kind.case.name}, {kind.side}x{kind.side}"
    return row(title, 1e3 * best["ours"], "CPU-ms", Against("the bare generator", 1e3 * best["bare"]), NEARLY)


def _bare_torch(store: Store, release: Release) -> Callable[[], object]:
    """From seeds to bytes: latents, network, rounding."""
    sampler = sample.open_sampler(store, release, torch.device("cpu"))
    labels_B = torch.arange(COUNT) % len(sampler.config.classes)
    seeds = [image_seed(0, index) for index in range(COUNT)]
    return lambda: sampler.images(families.latents(seeds, sampler.model.latent_size), labels_B).numpy()


def _onnx_row(kind: Kind, store: Store, release: Release, rounds: int, calls: int) -> Row:
    """The same without torch: onnxruntime's own session is the bare generator."""
    sampler = OnnxSampler("here", Contents(store, release, None).read)
    opened = releases.open(f"{store.uri}/{release.ref}")
    opened.__dict__["_sampler"] = sampler  # as where torch is not installed
    seeds = [image_seed(0, index) for index in range(COUNT)]
    labels_B = np.arange(COUNT) % len(opened.classes)

    def bare() -> object:
        feed = {"latent": families.latents(seeds, sampler.latent_size).numpy(), "label": labels_B}
        (unit_BCHW,) = sampler.session.run(["image"], feed)
        return np.rint(255 * unit_BCHW).astype(np.uint8)

    return _sample_row(kind, "onnxruntime", lambda: opened.sample(COUNT), bare, rounds, calls)


def _stream_row(opened: OpenRelease, num_samples: int, rounds: int) -> Row:
    """The published set against its shards' decoding alone, in images per CPU-second."""
    shards = [opened.file(name) for name in sorted(entry.name for entry in opened.record.files) if ".tar" in name]

    def bare() -> None:
        for shard in shards:
            for one in read_shard(shard):
                decode_image(one.image, one.extension)

    best = _best({"ours": lambda: sum(1 for _ in opened.samples()), "bare": bare}, rounds, 1)
    peer = Against("reading and decoding its shards in memory", num_samples / best["bare"])
    return row(f"r.samples() of {num_samples:,}", num_samples / best["ours"], "images/CPU-s", peer)


def _cold_rows(uri: str, rounds: int, folder: Path) -> list[Row]:
    """Import, open and 64 images in a fresh process, and of that the imports which no consumer can leave out."""
    environment = child_environment(ATELIER_HOME=str(folder / "home"))
    wall, cpu = [], []
    for _ in range(rounds + 1):  # the first fills the page cache
        done = subprocess.run(
            [sys.executable, "-c", COLD, uri], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = json.loads(done.stdout)
        wall.append(seconds[0])
        cpu.append(seconds[1])
    imports = [sys.executable, "-c", "import time; t = time.process_time(); import numpy, onnxruntime, pydantic; "
               "print(time.process_time() - t)"]  # fmt: skip
    alone = min(float(subprocess.run(imports, stdout=subprocess.PIPE, check=True).stdout) for _ in range(rounds))
    limit = Limit("importing numpy, onnxruntime and pydantic", alone)
    title = f"cold start without torch: import, open, sample({COUNT})"
    return [
        row(f"{title}, on the clock", min(wall), "s", bar="<= 1"),
        row(f"{title}, CPU time", min(cpu), "s", bar="<= 1", limit=limit),
    ]


def _best(what: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, float]:
    """CPU-seconds of a call, the best of some rounds, which take turns."""
    best = dict.fromkeys(what, float("inf"))
    for run in what.values():
        run()
    for _ in range(rounds):
        for name, run in what.items():
            began = cpu_seconds()
            for _ in range(calls):
                run()
            best[name] = min(best[name], (cpu_seconds() - began) / calls)
    return best
