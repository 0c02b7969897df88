"""Peak memory of an ingest and of a stream, each in a process of its own: `python -m tests.bench.memory REQUEST`.

Request and answer are one line of JSON each.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.artifacts import Dataset
from pipeline.ingest import ingest
from pipeline.records import load
from tests.bench.asked import ROOT
from tests.bench.images import write_noise
from tests.bench.measure import MIB, memory_now, peak_memory
from tests.bench.prepared import file_store, recipe_of
from tests.bench.rows import Against, Limit, Row, row
from tests.bench.sizes import Sizes

FLAT = "<= 1.25"  # with 100 times as many images: what grows with them shows


@dataclass(frozen=True)
class Request:
    """What to do in the process: ingest the noise in `folder`, or stream the dataset `ref` that this made."""

    folder: str
    side: int
    batch_size: int
    ref: str | None = None


@dataclass(frozen=True)
class Answer:
    """Bytes that the process held of its own at most, before the work, and of mapped files; and the dataset's ref."""

    own: int
    before: int
    mapped: int
    ref: str


def rows(sizes: Sizes, folder: Path) -> list[Row]:
    """Ingest and stream many images; the peers are ourselves with fewer."""
    found: dict[tuple[str, int], Answer] = {}
    for count in sizes.many:
        place = folder / f"memory-{count}"
        place.mkdir()
        write_noise(place / "noise.npz", count, sizes.many_side)
        ingesting = Request(str(place), sizes.many_side, sizes.batch_size)
        found["ingest", count] = _in_a_process(ingesting)
        found["stream", count] = _in_a_process(replace(ingesting, ref=found["ingest", count].ref))
        shutil.rmtree(place)
    few, more, many = sizes.many
    made = []
    for what in ("ingest", "stream"):
        title = f"memory of {what}, {many:,} images of {sizes.many_side}x{sizes.many_side}"
        large = found[what, many]
        limit = Limit("the process before it", large.before / MIB)
        for count, bar in ((few, FLAT), (more, None)):  # bounded buffers are not full yet with few
            peer = Against(f"the same, {count:,} images", found[what, count].own / MIB)
            made.append(row(title, large.own / MIB, "MiB", peer, bar, limit))
    return made


def _in_a_process(request: Request) -> Answer:
    command = [sys.executable, "-m", "tests.bench.memory", json.dumps(asdict(request))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Answer(**json.loads(done.stdout.strip().splitlines()[-1]))


def measure(request: Request) -> Answer:
    """Do it here, watched."""
    return _measured_stream(request, request.ref) if request.ref else _measured_ingest(request)


def _measured_ingest(request: Request) -> Answer:
    folder = Path(request.folder)
    source = {"kind": "npz", "path": str(folder / "noise.npz")}
    recipe = recipe_of("many", source, 1, request.side, layout="block")
    before = memory_now()
    with peak_memory() as memory:
        dataset = ingest(file_store(folder / "store"), recipe)
    return Answer(memory.own, before.own, memory.mapped, dataset.ref)


def _measured_stream(request: Request, ref: str) -> Answer:
    """Two epochs by the reader that serves data sets of any size."""
    import torch  # here, since an ingest does without it, and so must its memory

    from tests.bench.feed import Feed

    torch.set_num_threads(1)
    folder = Path(request.folder)
    store = file_store(folder / "store")
    feed = Feed(store, load(store, ref, Dataset), folder / "cache", request.batch_size, resident=False)
    before = memory_now()
    with peak_memory() as memory:
        for _ in range(2):
            for _ in feed.epoch():
                pass
    return Answer(memory.own, before.own, memory.mapped, ref)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Request(**json.loads(sys.argv[1]))))))
