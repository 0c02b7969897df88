"""The peers' process: asked for one figure after the other, so that its rounds stand in turn with ours."""

import contextlib
import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import UserError
from tests.bench.asked import ROOT
from tests.bench.training.cases import Case


class Peers:
    """A process of the peers' Python; requests and answers are lines of JSON."""

    def __init__(self, python: Path, images: Path, work: Path) -> None:
        """`images` is a file of uint8 images by `torch.save`; `work` a folder for what the peers write."""
        self._python = python
        self._errors = (work / "peers.log").open("w+")
        self._process = subprocess.Popen(
            [python, "-m", "tests.bench.training.peers", images, work],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it ended before
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def seconds_per_step(self, peer: str, case: Case, steps: int, warmup: int) -> float:
        """One round of a peer. Raises UserError with its last words where it ends."""
        assert self._process.stdin and self._process.stdout
        fields = {**asdict(case), "options": dict(case.options)}
        request: dict[str, Any] = {"peer": peer, "case": fields, "steps": steps, "warmup": warmup}
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._errors.seek(0)
            words = (self._errors.read().strip().splitlines() or ["nothing"])[-1]
            raise UserError(f"{peer}: expected a figure from {self._python}, it ended: {words:.300}")
        seconds: float = json.loads(answer)
        return seconds
