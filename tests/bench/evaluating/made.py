"""Runs and releases for the benchmarks: networks as they are drawn, which make images as fast as trained ones."""

from dataclasses import dataclass

import torch

from pipeline import releases
from pipeline.artifacts import Evaluation, Release, Run, file_entry
from pipeline.records import commit
from pipeline.store import Store
from tests.bench.training.cases import Case
from tests.made import PROTOCOL, record_of
from tests.made_releases import FIGURES, recipe
from trainers import export, families, sampleset
from trainers.families import DataShape

CLASSES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class Kind:
    """A network to sample from."""

    case: Case
    side: int
    channels: int = 1

    @property
    def shape(self) -> DataShape:
        """Of its images."""
        return DataShape(self.channels, self.side, self.side, len(CLASSES))


def make_run(store: Store, kind: Kind) -> Run:
    """A run's record with the network from seed 0."""
    case = kind.case
    config = families.parse_config(case.family, dict(case.options), case.name)
    model = families.build(case.family, config, kind.shape, seed=0)
    shape = (kind.side, kind.side, kind.channels)
    dataset = commit(store, record_of([], shape, name="bench", classes=CLASSES).model_copy(
        update={"splits": {"train": 8, "test": 2}}
    ))  # fmt: skip
    weights: dict[str, torch.Tensor] = model.networks[model.sampler].state_dict()
    files = export.export(case.family, dict(case.options), dataset, weights)
    run = Run(
        code_version="0", id=f"{kind.side:x}".rjust(16, "0"), recipe="bench", model="vae", family=case.family,
        config={"seed": 0}, dataset=dataset.ref, steps=1, images_seen=1, metrics={},
        files=tuple(file_entry(name, data) for name, data in files.items()),
    )  # fmt: skip
    for name, data in files.items():
        store.put(f"{run.ref}/{name}", data)
    return commit(store, run)


def make_release(store: Store, run: Run, num_samples: int) -> Release:
    """The run, published with so many samples."""
    evaluation = commit(store, Evaluation(
        code_version="0", id=run.id, run=run.ref, dataset=run.dataset, protocol=PROTOCOL, extractor_note="None.",
        figures=FIGURES,
    ))  # fmt: skip
    samples = sampleset.sample_run(store, run, num_samples, 0)
    return releases.publish(store, recipe(), "vae", run.ref, evaluation.ref, samples.ref)
