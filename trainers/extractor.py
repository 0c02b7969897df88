"""The small network whose features the figures are computed on, and which reads the class of an image.

    dataset (training split) --train_extractor--> datasets/<name>/<id>/extractors/<id>/ --evaluate--> figures

It is trained once for a dataset and stored with it, for every evaluation of every run on that dataset:

    extractor = load_or_train(store, dataset, read_split)
    features_ND = extractor.features(images_NCHW)
    classes_N = extractor.predict(images_NCHW)

With labels it learns the classes. Without them (or with a single class) it learns which of four quarter turns
was applied to an image (Gidaris, Singh & Komodakis 2018), which needs no label. A distance on these features is
not comparable with the FID of the literature, which is on an Inception network's.

Shape legend: N images of a set, B of a batch, C channels, H height, W width, D feature size, K outputs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from pipeline import __version__
from pipeline.artifacts import (
    Dataset,
    FileEntry,
    Record,
    Strict,
    commit,
    digest_of,
    file_entry,
    find,
    read_file,
)
from pipeline.errors import AlreadyExists, IntegrityError, TrainingError, UserError
from pipeline.store import Store

WEIGHTS = "extractor.safetensors"
NUM_TURNS = 4  # 0, 90, 180 and 270 degrees
BATCH_IMAGES = 500  # at inference: features do not depend on it, beyond rounding
ACCURACY_IMAGES = 10_000  # at most as many of the training images tell the held-in accuracy
CHECK_EVERY_STEPS = 50

ReadSplit = Callable[[str], tuple[Tensor, Tensor | None]]  # split -> images (N, C, H, W) uint8, labels (N,)
Progress = Callable[[int, int], None]  # is told (steps done, steps in all)
Device = str | torch.device


class ExtractorConfig(Strict):
    """How an extractor is built and trained; the defaults reach 99% on MNIST in about 15 s on one core."""

    feature_size: int = 64
    channels: int = 24  # of the first convolution; doubled by each further one, up to four times as many
    max_side: int = 64  # larger images are reduced to this side
    epochs: int = 3
    min_images_seen: int = 60_000  # small sets are gone through more often
    max_images_seen: int = 500_000
    batch_images: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0


DEFAULT = ExtractorConfig()


class ExtractorRecord(Record):
    """The statement that a dataset's extractor is trained: how, on what, how well, and what its bytes are."""

    file_name: ClassVar[str] = "extractor.json"
    kind: Literal["extractor"] = "extractor"
    id: str
    dataset: str
    task: Literal["classes", "rotations"]
    config: ExtractorConfig
    channels: int
    height: int
    width: int
    num_outputs: int
    num_train: int
    num_test: int
    train_accuracy: float  # held-in: on (some of) the images it was trained on
    test_accuracy: float | None  # None: the dataset has no test images
    weights: FileEntry

    @property
    def ref(self) -> str:
        return f"{self.dataset}/extractors/{self.id}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """An image's (C, H, W)."""
        return self.channels, self.height, self.width


class ExtractorNet(nn.Module):
    """Stride-2 convolutions down to a side of 4 or less, one dense layer to the features, one to the logits.

    The features are batch-normalised without gain: over the images that it was trained on each has a mean of 0
    and a variance of 1, so that distances between feature sets have a similar scale for every dataset.
    """

    def __init__(self, shape: Sequence[int], num_outputs: int, config: ExtractorConfig) -> None:
        """`shape` is an image's (C, H, W). Initial weights come from torch's global generator."""
        super().__init__()
        inputs, height, width = shape
        self.side = side = min(max(height, width), config.max_side)
        outputs = config.channels
        layers: list[nn.Module] = []
        while not layers or side > 4:
            stride = 1 if not layers and side <= 16 else 2
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs, outputs, side = outputs, min(2 * outputs, 4 * config.channels), -(-side // stride)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.to_features = nn.Sequential(
            nn.Linear(inputs * side * side, config.feature_size, bias=False),
            nn.BatchNorm1d(config.feature_size, affine=False),
        )
        self.to_logits = nn.Linear(config.feature_size, num_outputs)

    def to_square(self, images_BCHW: Tensor) -> Tensor:
        """The images at the network's own square size, so that a quarter turn keeps the shape."""
        if images_BCHW.shape[2:] == (self.side, self.side):
            return images_BCHW
        return interpolate(images_BCHW, size=(self.side, self.side), mode="bilinear", antialias=True)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, K) of float images in [0, 1]."""
        features_BD = self.to_features(self.body(self.to_square(images_BCHW) - 0.5))
        return features_BD, self.to_logits(features_BD)


@dataclass(frozen=True)
class Extractor:
    """A trained network with its record, ready to use on its device."""

    record: ExtractorRecord
    network: ExtractorNet

    @property
    def ref(self) -> str:
        """The key of its folder in the store."""
        return self.record.ref

    @property
    def reads_classes(self) -> bool:
        """Whether `predict` can be asked: it was trained on labels."""
        return self.record.task == "classes"

    @property
    def note(self) -> str:
        """One sentence: what it is, what it was trained on, how well it does."""
        record = self.record
        encoder = "label-free encoder, which tells by how many quarter turns an image was rotated"
        what = f"classifier of {record.num_outputs} classes" if self.reads_classes else encoder
        test = "there were no test images to measure it on"
        if record.test_accuracy is not None:
            test = f"its accuracy on the {record.num_test:,} test images is {record.test_accuracy:.2%}"
        return (
            f"The {record.config.feature_size} penultimate activations of a small convolutional {what}, trained "
            f"by this pipeline on the {record.num_train:,} images of the dataset's training split; {test}."
        )

    def features(self, images_NCHW: Tensor, batch_size: int = BATCH_IMAGES) -> Tensor:
        """Features (N, D), float32 on the CPU, of uint8 images or float ones in [0, 1].

        Raises UserError for images of another shape and for values that are not finite or outside [0, 1].
        """
        _check_images(images_NCHW, self.record.shape)
        return _infer(self.network, images_NCHW, batch_size)[0]

    def predict(self, images_NCHW: Tensor, batch_size: int = BATCH_IMAGES) -> Tensor:
        """The most likely class of each image, (N,) int64 on the CPU. Raises UserError as `features` does."""
        if not self.reads_classes:
            raise UserError(
                f"{self.ref}: expected an extractor trained on two classes or more, got one trained on "
                f"{self.record.task}; a dataset without classes has no class figures"
            )
        _check_images(images_NCHW, self.record.shape)
        return _infer(self.network, images_NCHW, batch_size)[1].argmax(1)


def train_extractor(
    images_NCHW: Tensor,
    labels_N: Tensor | None,
    num_classes: int,
    seed: int,
    *,
    config: ExtractorConfig = DEFAULT,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Train on uint8 images and int64 labels in [0, num_classes); gives the weights and the held-in accuracy.

    With `labels_N` None or a single class it learns quarter turns instead. The same inputs give the same bits on
    one kind of CPU: all random numbers come from `seed`, and the CPU's part runs on one thread (on a GPU it is as
    repeatable as cuDNN's deterministic kernels are). Raises UserError for fewer than two images or wrong labels,
    TrainingError when the loss is not finite.
    """
    labels_N = _check_training_set(images_NCHW, labels_N, num_classes)
    shown = slice(ACCURACY_IMAGES)
    with _repeatable(seed):
        num_outputs = NUM_TURNS if labels_N is None else num_classes
        network = ExtractorNet(images_NCHW.shape[1:], num_outputs, config).to(device)
        _fit(network, images_NCHW, labels_N, seed=seed, config=config, progress=progress)
        held_in = _accuracy(network, images_NCHW[shown], None if labels_N is None else labels_N[shown])
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, held_in


def load_or_train(
    store: Store,
    dataset: Dataset,
    read_split: ReadSplit,
    *,
    config: ExtractorConfig = DEFAULT,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> Extractor:
    """The dataset's extractor: the stored one, or trained now and stored (`read_split` is asked only then).

    Raises IntegrityError when the stored bytes are not those of its record; else as `train_extractor`.
    """
    spec = {"config": config.model_dump(mode="json"), "code": __version__, "dataset": dataset.id}
    ref = f"{dataset.ref}/extractors/{digest_of(spec)}"
    record = find(store, ref, ExtractorRecord)
    if record is None:
        record = _train_and_store(store, dataset, ref, read_split, config=config, device=device, progress=progress)
    return _load(store, record, device)


# Training


def _fit(
    network: ExtractorNet,
    images_NCHW: Tensor,
    labels_N: Tensor | None,
    *,
    seed: int,
    config: ExtractorConfig,
    progress: Progress | None,
) -> None:
    device = next(network.parameters()).device
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    rows_of_steps = list(_rows_of_steps(len(images_NCHW), config, random))
    network.train()
    for step, rows in enumerate(rows_of_steps):
        images = _shift(images_NCHW[rows], random).to(device).float() / 255
        if labels_N is None:
            targets = torch.randint(NUM_TURNS, (len(rows),), generator=random)
            images = _turn(network.to_square(images), targets)
        else:
            targets = labels_N[rows]
        loss = cross_entropy(network(images)[1], targets.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.param_groups[0]["lr"] = config.lr * _schedule(step / len(rows_of_steps))
        optimizer.step()
        if (step + 1) % CHECK_EVERY_STEPS == 0 or step + 1 == len(rows_of_steps):
            _check_loss(loss, step + 1)
            if progress:
                progress(step + 1, len(rows_of_steps))


def _rows_of_steps(num_images: int, config: ExtractorConfig, random: torch.Generator) -> Iterator[Tensor]:
    """Each step's rows: whole batches of one permutation after another; what is left of one is not used."""
    batch = min(config.batch_images, num_images)
    seen = min(max(config.epochs * num_images, config.min_images_seen), config.max_images_seen)
    steps_left = max(seen // batch, 1)
    while steps_left:
        batches = torch.randperm(num_images, generator=random)[: num_images // batch * batch].reshape(-1, batch)
        yield from batches[:steps_left]
        steps_left -= min(len(batches), steps_left)


def _schedule(done: float) -> float:
    """The learning rate's factor: up over the first tenth, flat, down to 0 over the last seven tenths."""
    return min(1.0, 0.05 + done / 0.1, (1 - done) / 0.7)


def _shift(images_BCHW: Tensor, random: torch.Generator) -> Tensor:
    """Each image moved by whole pixels, up to a fourteenth of its size (1 at least); edges are repeated."""
    batch, _, height, width = images_BCHW.shape
    reach = max(1, min(height, width) // 14)
    offsets = torch.randint(-reach, reach + 1, (2, batch, 1), generator=random)
    rows = (torch.arange(height) + offsets[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + offsets[1]).clamp(0, width - 1)
    moved_BHWC = images_BCHW[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)


def _turn(images_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Square images, each rotated by its own number of quarter turns."""
    turned = images_BCHW.clone()
    for turn in range(1, NUM_TURNS):
        chosen = (turns_B == turn).to(images_BCHW.device)
        turned[chosen] = torch.rot90(images_BCHW[chosen], turn, (2, 3))
    return turned


def _infer(network: ExtractorNet, images_NCHW: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, K) on the CPU, of uint8 images or float ones in [0, 1]."""
    device = next(network.parameters()).device
    network.eval()
    features, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(images_NCHW), batch_size):
            images = images_NCHW[start : start + batch_size]
            unit = images.to(device).float() / (255 if images.dtype == torch.uint8 else 1)
            features_BD, logits_BK = network(unit)
            features.append(features_BD.cpu())
            logits.append(logits_BK.cpu())
    return torch.cat(features), torch.cat(logits)


def _accuracy(network: ExtractorNet, images_NCHW: Tensor, labels_N: Tensor | None) -> float:
    """The share of images whose class it reads rightly; without labels, of their quarter turns."""
    if labels_N is not None:
        read_N = _infer(network, images_NCHW, BATCH_IMAGES)[1].argmax(1)
        return float((read_N == labels_N).double().mean())
    square_NCHW = network.to_square(images_NCHW.float() / 255)
    shares = []
    for turn in range(NUM_TURNS):
        read_N = _infer(network, torch.rot90(square_NCHW, turn, (2, 3)), BATCH_IMAGES)[1].argmax(1)
        shares.append(float((read_N == turn).double().mean()))
    return sum(shares) / NUM_TURNS


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """One thread, seeded initial weights, deterministic kernels; what was set before is set again afterwards.

    The order in which threads add up decides the last bits of a sum, so the number of threads must not vary.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        deterministic = torch.backends.cudnn.flags(deterministic=True, benchmark=False)
        with torch.random.fork_rng(devices=[]), deterministic:
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


# Storing


def _train_and_store(
    store: Store,
    dataset: Dataset,
    ref: str,
    read_split: ReadSplit,
    *,
    config: ExtractorConfig,
    device: Device,
    progress: Progress | None,
) -> ExtractorRecord:
    """Train, write the weights, then the record. Where another worker was first, what it wrote stays."""
    num_classes = len(dataset.classes)
    images, labels = read_split("train")
    labels = labels if num_classes > 1 else None
    state, train_accuracy = train_extractor(
        images, labels, num_classes, config.seed, config=config, device=device, progress=progress
    )
    data = save_safetensors(state)
    try:
        store.create(f"{ref}/{WEIGHTS}", data)
    except AlreadyExists:
        data = store.get(f"{ref}/{WEIGHTS}")  # the record states the bytes that are there, whoever wrote them
    num_outputs = NUM_TURNS if labels is None else num_classes
    network = ExtractorNet(images.shape[1:], num_outputs, config).to(device)
    _fill(network, data, f"{store.uri}/{ref}/{WEIGHTS}")
    test_images, test_labels = read_split("test")
    test_labels = None if labels is None else test_labels
    channels, height, width = images.shape[1:]
    record = ExtractorRecord(
        code_version=__version__,
        id=ref.rpartition("/")[2],
        dataset=dataset.ref,
        task="rotations" if labels is None else "classes",
        config=config,
        channels=channels,
        height=height,
        width=width,
        num_outputs=num_outputs,
        num_train=len(images),
        num_test=len(test_images),
        train_accuracy=train_accuracy,
        test_accuracy=_accuracy(network, test_images, test_labels) if len(test_images) else None,
        weights=file_entry(WEIGHTS, data),
    )
    return commit(store, record)


def _load(store: Store, record: ExtractorRecord, device: Device) -> Extractor:
    data = read_file(store, record, record.weights, f"delete {store.uri}/{record.ref} and evaluate again")
    network = ExtractorNet(record.shape, record.num_outputs, record.config).to(device)
    _fill(network, data, f"{store.uri}/{record.ref}/{WEIGHTS}")
    return Extractor(record, network.eval().requires_grad_(False))


def _fill(network: ExtractorNet, data: bytes, where: str) -> None:
    try:
        network.load_state_dict(load_safetensors(data))
    except (SafetensorError, RuntimeError) as error:
        raise IntegrityError(
            f"{where}: expected an extractor's weights, got {str(error).splitlines()[-1].strip():.120}; "
            "delete its folder and evaluate again"
        ) from None


# Checks


def _check_training_set(images_NCHW: Tensor, labels_N: Tensor | None, num_classes: int) -> Tensor | None:
    """The labels to train on, or None for quarter turns. Raises UserError."""
    if images_NCHW.ndim != 4 or images_NCHW.dtype != torch.uint8 or len(images_NCHW) < 2:
        raise UserError(
            f"extractor: expected two or more uint8 training images (N, C, H, W), got {images_NCHW.dtype} "
            f"{tuple(images_NCHW.shape)}; ingest more images"
        )
    if labels_N is None or num_classes < 2:
        return None
    if labels_N.shape != (len(images_NCHW),) or labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise UserError(
            f"extractor: expected a label in [0, {num_classes}) for each of the {len(images_NCHW):,} images, "
            f"got {len(labels_N):,} in {_range(labels_N)}; ingest the dataset again"
        )
    return labels_N


def _check_images(images_NCHW: Tensor, shape: tuple[int, int, int]) -> None:
    if images_NCHW.ndim != 4 or tuple(images_NCHW.shape[1:]) != shape or not len(images_NCHW):
        raise UserError(
            f"extractor: expected images (N, {', '.join(map(str, shape))}) as in its dataset, got "
            f"{tuple(images_NCHW.shape)}; evaluate a run on the dataset that it was trained on"
        )
    if images_NCHW.dtype == torch.uint8:
        return
    if not images_NCHW.is_floating_point():
        raise UserError(f"extractor: expected uint8 images or floats in [0, 1], got {images_NCHW.dtype}; convert them")
    bad = int((~images_NCHW.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise UserError(
            f"extractor: expected finite images, got NaN or infinity in {bad:,} of {len(images_NCHW):,}; "
            "look at the network that made them"
        )
    if images_NCHW.min() < 0 or images_NCHW.max() > 1:
        raise UserError(f"extractor: expected floats in [0, 1], got {_range(images_NCHW)}; divide by 255 or clamp them")


def _range(x: Tensor) -> str:
    return f"[{float(x.min()):.3g}, {float(x.max()):.3g}]" if x.numel() else "nothing"


def _check_loss(loss: Tensor, step: int) -> None:
    if not bool(loss.isfinite()):
        raise TrainingError(
            f"extractor: expected a finite loss, got {float(loss.detach())} at step {step}; "
            "lower `lr` of ExtractorConfig for this dataset"
        )
