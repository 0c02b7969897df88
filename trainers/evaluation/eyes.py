"""The eyes of an evaluation: the network that gives the features, and the one that reads the classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.artifacts import Dataset, Protocol
from pipeline.ids import PROTOCOL
from pipeline.nodecache import NodeCache
from pipeline.sections import EvaluationSpec, ExtractorSpec
from pipeline.store import Store
from trainers import stream
from trainers.extractors import outside, own
from trainers.extractors.outside import FileExtractor
from trainers.extractors.own import Extractor


@dataclass(frozen=True)
class Eyes:
    """`reader` None: the dataset has no classes to read. Where it gives the features too, it is asked once."""

    features: Extractor | FileExtractor
    reader: Extractor | None
    width: int  # of the features

    def look(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, D) and classes (N,) of uint8 images or float ones in [0, 1]. Raises UserError."""
        if isinstance(self.features, Extractor) and self.features is self.reader:
            return self.features.read(images_NCHW)
        return self.features.features(images_NCHW), self.reader.predict(images_NCHW) if self.reader else None

    def protocol(self, dataset: Dataset, spec: EvaluationSpec) -> Protocol:
        """What figures seen with these eyes are measured by."""
        return Protocol(
            name=PROTOCOL,
            dataset=dataset.ref,
            split=spec.split,
            preprocessing=self.features.preprocessing,
            extractor=self.features.ref,
            extractor_sha256=self.features.sha256,
            classifier=self.reader.ref if self.reader else None,
            classifier_sha256=self.reader.sha256 if self.reader else None,
            num_samples=spec.num_samples,
            num_real=dataset.splits.get(spec.split, 0),
            seed=spec.seed,
            importance_samples=spec.importance_samples,
        )


def open_eyes(store: Store, dataset: Dataset, spec: EvaluationSpec, cache: NodeCache) -> Eyes:
    """The eyes that the recipe names; those of the dataset are trained where they are not stored yet.

    Raises UserError where an extractor from a file does not take the dataset's images, else as the extractors do.
    """

    def read_split(split: str) -> tuple[Tensor, Tensor | None]:
        found = stream.read_split(store, dataset, split, cache)
        return found.images_NCHW, found.labels_N if dataset.classes else None

    reader = own.load_or_train(store, dataset, read_split) if len(dataset.classes) > 1 else None
    features: Extractor | FileExtractor
    if isinstance(spec.extractor, ExtractorSpec):
        features = outside.open_file(spec.extractor)
    elif spec.extractor == "auto" and reader is not None:
        features = reader
    else:
        features = own.load_or_train(store, dataset, read_split, task="rotations")
    black = torch.zeros(1, dataset.channels, dataset.height, dataset.width)
    return Eyes(features, reader, features.features(black).shape[1])
