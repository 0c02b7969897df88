"""What a classifier of MNIST reads from generated images, for the tables that ask."""

import torch
from torch import Tensor, nn

from tests.bench import mnist
from tests.bench.mnist import Digits, Images
from tests.bench.table import Means
from trainers import families
from trainers.extractors import own
from trainers.extractors.own import Extractor
from trainers.families import Model

BATCH_IMAGES = 500


def class_reader(digits: Digits, means: Means) -> Extractor:
    """The project's own classifier, trained on the training images once and kept in the work folder."""
    data = mnist.stored(digits, means.work, "mnist-classes", labelled=True)
    parts: dict[str, Images] = {"train": digits.train, "test": digits.test}
    return own.load_or_train(
        data.store, data.dataset, lambda split: (parts[split].images_NCHW, parts[split].labels_N), device=means.device
    )


@torch.no_grad()
def generated(model: Model, network: nn.Module, count: int, num_classes: int, means: Means) -> Tensor:
    """uint8 images (N, C, H, W) of latents from the seeds 0, 1, ..., the classes in turn (0: unconditional)."""
    z_NZ = families.latents(range(count), model.latent_size)
    labels_N = torch.arange(count) % max(1, num_classes)
    made = []
    for z_BZ, labels_B in zip(torch.split(z_NZ, BATCH_IMAGES), torch.split(labels_N, BATCH_IMAGES), strict=True):
        unit_BCHW = model.decode(network, z_BZ.to(means.device), labels_B.to(means.device))
        made.append(unit_BCHW.clamp(0, 1).mul(255).round().to(torch.uint8).cpu())
    return torch.cat(made)
