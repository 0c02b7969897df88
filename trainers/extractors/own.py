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

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pipeline import __version__
from pipeline.artifacts import Dataset, FileEntry, Record, digest_of, file_entry
from pipeline.errors import AlreadyExists, IntegrityError, UserError
from pipeline.records import commit, find, read_file
from pipeline.store import Store
from trainers.extractors.inputs import check_images
from trainers.extractors.network import BATCH_IMAGES, DEFAULT, ExtractorConfig, ExtractorNet, infer
from trainers.extractors.training import NUM_TURNS, Device, Progress, accuracy, train_extractor

WEIGHTS = "extractor.safetensors"
RECORD = "extractor.json"

ReadSplit = Callable[[str], tuple[Tensor, Tensor | None]]  # split -> images (N, C, H, W) uint8, labels (N,)
Task = Literal["classes", "rotations"]


class ExtractorRecord(Record):
    """The statement that a dataset's extractor is trained: how, on what, how well, and what its bytes are."""

    file_name: ClassVar[str] = RECORD
    kind: Literal["extractor"] = "extractor"
    id: str
    dataset: str
    task: Task
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
    def sha256(self) -> str:
        """Of its weights."""
        return self.record.weights.sha256

    @property
    def preprocessing(self) -> str:
        """From a stored image to what the network sees."""
        channels, height, width = self.record.shape
        side = self.network.side
        resized = "" if (height, width) == (side, side) else f", resized to {side}x{side} (bilinear, antialiased)"
        return f"{channels}x{height}x{width}, values less 0.5 in [-0.5, 0.5]{resized}"

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
        check_images(images_NCHW, self.record.shape)
        return infer(self.network, images_NCHW, batch_size)[0]

    def read(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """`features` and, where it reads classes, `predict`, in one go."""
        check_images(images_NCHW, self.record.shape)
        features_ND, logits_NK = infer(self.network, images_NCHW)
        return features_ND, logits_NK.argmax(1) if self.reads_classes else None

    def predict(self, images_NCHW: Tensor, batch_size: int = BATCH_IMAGES) -> Tensor:
        """The most likely class of each image, (N,) int64 on the CPU. Raises UserError as `features` does."""
        if not self.reads_classes:
            raise UserError(
                f"{self.ref}: expected an extractor trained on two classes or more, got one trained on "
                f"{self.record.task}; a dataset without classes has no class figures"
            )
        check_images(images_NCHW, self.record.shape)
        return infer(self.network, images_NCHW, batch_size)[1].argmax(1)


def load_or_train(
    store: Store,
    dataset: Dataset,
    read_split: ReadSplit,
    *,
    task: Task | None = None,
    config: ExtractorConfig = DEFAULT,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> Extractor:
    """The dataset's extractor: the stored one, or trained now and stored (`read_split` is asked only then).

    `task` None is `classes` where the dataset has two or more, else `rotations`. Raises IntegrityError when the stored
    bytes are not those of its record; else as `train_extractor`.
    """
    possible: Task = "classes" if len(dataset.classes) > 1 else "rotations"
    task = task or possible
    if task != possible and task == "classes":
        raise UserError(f"{dataset.ref}: expected two classes or more to train a classifier on, got none or one")
    spec = {"task": task, "config": config.model_dump(mode="json"), "code": __version__, "dataset": dataset.id}
    ref = f"{dataset.ref}/extractors/{digest_of(spec)}"
    record = find(store, ref, ExtractorRecord)
    if record is None:
        record = _train_and_store(
            store, dataset, ref, read_split, task, config=config, device=device, progress=progress
        )
    return _load(store, record, device)


# Storing


def _train_and_store(
    store: Store,
    dataset: Dataset,
    ref: str,
    read_split: ReadSplit,
    task: Task,
    *,
    config: ExtractorConfig,
    device: Device,
    progress: Progress | None,
) -> ExtractorRecord:
    """Train, write the weights, then the record. Where another worker was first, what it wrote stays."""
    num_classes = len(dataset.classes)
    images, labels = read_split("train")
    labels = labels if task == "classes" else None
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
    fill(network, data, f"{store.uri}/{ref}/{WEIGHTS}")
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
        test_accuracy=accuracy(network, test_images, test_labels) if len(test_images) else None,
        weights=file_entry(WEIGHTS, data),
    )
    return commit(store, record)


def _load(store: Store, record: ExtractorRecord, device: Device) -> Extractor:
    data = read_file(store, record, record.weights, f"delete {store.uri}/{record.ref} and evaluate again")
    network = ExtractorNet(record.shape, record.num_outputs, record.config).to(device)
    fill(network, data, f"{store.uri}/{record.ref}/{WEIGHTS}")
    return Extractor(record, network.eval().requires_grad_(False))


def fill(network: ExtractorNet, data: bytes, where: str) -> None:
    """Give a network the weights of a safetensors file. Raises IntegrityError naming `where`."""
    try:
        network.load_state_dict(load_safetensors(data))
    except (SafetensorError, RuntimeError) as error:
        raise IntegrityError(
            f"{where}: expected an extractor's weights, got {str(error).splitlines()[-1].strip():.120}; "
            "delete its folder and evaluate again"
        ) from None
