"""What the peers are asked to measure, and their answer: they run in the same run, in an environment of their own."""

import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from tests.bench.measure import Rate, Rule

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class PeerData:
    """One data set as the peers see it. `sample` and `block` are our shards, by place (disk, store), as URLs."""

    name: str
    channels: int
    encoding: str
    raw: str | None  # npz of images and labels, for the peers' own formats
    sample: dict[str, list[str]] = field(default_factory=dict)
    block: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """All that is asked; `tests.bench.peers` reads it as JSON."""

    rule: Rule
    batch_size: int
    work: str
    data: list[PeerData]
    write: str  # npz of the images that ShardWriter writes
    ingest: str  # folder of the files that the plain loop reads


def ask(python: Path, request: Request, folder: Path) -> dict[str, Rate]:
    """Run the peers. Raises UserError with their last words where that fails."""
    path = folder / "peers.json"
    path.write_text(json.dumps(asdict(request)))
    done = subprocess.run(
        [python, "-m", "tests.bench.peers", path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"peers: expected figures from {python}, it ended with {done.returncode}: {words:.300}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: Rate(**rate) for name, rate in answer.items()}
