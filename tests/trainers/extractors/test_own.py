"""The extractor learns real digits, is the same each time, is stored once, and refuses what it cannot read."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors
from sklearn.datasets import load_digits
from torch import Tensor

from pipeline.artifacts import Dataset
from pipeline.errors import AtelierError, IntegrityError, RecordError, TrainingError, UserError
from pipeline.store import Store, open_store
from tests import made
from trainers.extractors.network import ExtractorConfig, ExtractorNet
from trainers.extractors.own import WEIGHTS, Extractor, load_or_train
from trainers.extractors.training import train_extractor

NUM_TRAIN = 1_500
QUICK = ExtractorConfig(min_images_seen=2_000, epochs=1)


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits of scikit-learn in a fixed random order, uint8 (N, 1, 8, 8)."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[order, None]
    return torch.from_numpy(images), torch.from_numpy(bunch.target.astype(np.int64)[order])


def record_of(classes: tuple[str, ...], shape: tuple[int, int, int] = (1, 8, 8), name: str = "digits") -> Dataset:
    channels, height, width = shape
    own = {"id": f"{len(classes):016d}", "splits": {"train": NUM_TRAIN, "test": 297}}
    return made.record_of([], (height, width, channels), name=name, classes=classes).model_copy(update=own)


@dataclass
class Splits:
    """What `load_or_train` reads; it remembers which splits were asked for."""

    labelled: bool = True
    num_test: int = 297
    asked: list[str] = field(default_factory=list)

    def __call__(self, split: str) -> tuple[Tensor, Tensor | None]:
        self.asked.append(split)
        images, labels = digits()
        rows = slice(NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, NUM_TRAIN + self.num_test)
        return images[rows], labels[rows] if self.labelled else None


DIGITS = record_of(tuple("0123456789"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    """The extractor of the digits with the default settings."""
    return load_or_train(open_store(f"file://{tmp_path_factory.mktemp('store')}"), DIGITS, Splits())


# What it learns


def test_reads_at_least_97_percent_of_unseen_digits(trained: Extractor) -> None:
    images, labels = Splits()("test")
    assert labels is not None
    accuracy = float((trained.predict(images) == labels).double().mean())
    assert accuracy >= 0.97
    assert trained.record.test_accuracy == pytest.approx(accuracy)
    assert trained.record.train_accuracy >= 0.99


def test_note_says_what_it_is(trained: Extractor) -> None:
    assert trained.note == (
        "The 64 penultimate activations of a small convolutional classifier of 10 classes, trained by this pipeline on "
        "the 1,500 images of the dataset's training split; its accuracy on the 297 test images is "
        f"{trained.record.test_accuracy:.2%}."
    )
    assert trained.reads_classes


def test_features_are_of_unit_variance_and_tell_digits_apart(trained: Extractor) -> None:
    images, labels = Splits()("train")
    assert labels is not None
    features_ND = trained.features(images)
    assert features_ND.shape == (NUM_TRAIN, 64)
    assert features_ND.dtype == torch.float32
    assert float(features_ND.var(0).mean()) == pytest.approx(1, abs=0.2)
    distances = torch.cdist(features_ND, features_ND).fill_diagonal_(torch.inf)
    assert float((labels[distances.argmin(1)] == labels).double().mean()) > 0.95


def test_features_do_not_depend_on_batches_or_on_the_type_of_pixels(trained: Extractor) -> None:
    images, _ = Splits()("test")
    features_ND = trained.features(images)
    torch.testing.assert_close(trained.features(images, batch_size=7), features_ND, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.features(images.float() / 255), features_ND, rtol=1e-4, atol=1e-5)


def test_without_labels_it_learns_quarter_turns() -> None:
    images, _ = digits()
    state, accuracy = train_extractor(images[:NUM_TRAIN], None, 0, seed=0)
    assert accuracy > 0.75  # 0, 1 and 8 look the same upside down
    assert state["to_logits.weight"].shape == (4, 64)


def test_a_single_class_counts_as_no_labels() -> None:
    images, labels = digits()
    state, _ = train_extractor(images[:200], labels[:200] * 0, 1, seed=0, config=QUICK)
    assert state["to_logits.weight"].shape == (4, 64)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 12, 30), (1, 17, 5), (3, 96, 96)])
@pytest.mark.parametrize("labelled", [True, False])
def test_images_of_any_shape(shape: tuple[int, int, int], labelled: bool) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, *shape), generator=random, dtype=torch.uint8)
    labels = torch.arange(20) % 3 if labelled else None
    state, _ = train_extractor(images, labels, 3, seed=0, config=ExtractorConfig(min_images_seen=40))
    network = ExtractorNet(shape, 3 if labelled else 4, ExtractorConfig())
    network.load_state_dict(state)
    features_BD, _ = network.eval()(images / 255)
    assert features_BD.shape == (20, 64)
    assert bool(features_BD.isfinite().all())


# The same each time


@pytest.mark.parametrize("labelled", [True, False])
def test_same_seed_gives_the_same_bits_on_any_number_of_threads(labelled: bool) -> None:
    images, labels = digits()
    threads = torch.get_num_threads()

    def train(seed: int) -> bytes:
        state, _ = train_extractor(images[:400], labels[:400] if labelled else None, 10, seed, config=QUICK)
        return save_safetensors(state)

    try:
        torch.set_num_threads(1)
        torch.manual_seed(1)
        first = train(0)
        torch.set_num_threads(2)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        assert train(0) == first
        assert train(1) != first
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        torch.set_num_threads(threads)


def test_progress_counts_up_to_all_steps() -> None:
    images, labels = digits()
    told: list[tuple[int, int]] = []
    train_extractor(
        images[:400], labels[:400], 10, 0, config=QUICK, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(15, 15)]  # 2,000 images in batches of 128
    longer = ExtractorConfig(min_images_seen=128 * 120)
    train_extractor(
        images[:400], labels[:400], 10, 0, config=longer, progress=lambda done, total: told.append((done, total))
    )
    assert told[1:] == [(50, 120), (100, 120), (120, 120)]


# Stored once


def test_it_is_trained_once_for_a_dataset(store: Store) -> None:
    splits = Splits()
    first = load_or_train(store, DIGITS, splits, config=QUICK)
    assert splits.asked == ["train", "test"]
    again = load_or_train(store, DIGITS, splits, config=QUICK)
    assert splits.asked == ["train", "test"]
    assert again.record == first.record
    images, _ = splits("test")
    assert torch.equal(again.features(images), first.features(images))
    assert [entry.key for entry in store.list("")] == [f"{first.ref}/extractor.json", f"{first.ref}/{WEIGHTS}"]
    assert first.ref.startswith(f"{DIGITS.ref}/extractors/")


def test_another_configuration_is_another_extractor(store: Store) -> None:
    other = QUICK.model_copy(update={"seed": 1})
    refs = {load_or_train(store, DIGITS, Splits(), config=config).ref for config in (QUICK, other)}
    assert len(refs) == 2


def test_a_labelled_dataset_has_a_label_free_encoder_too(store: Store) -> None:
    reader, encoder = (load_or_train(store, DIGITS, Splits(), task=task, config=QUICK) for task in (None, "rotations"))
    assert (reader.reads_classes, encoder.reads_classes) == (True, False)
    assert reader.ref != encoder.ref and reader.sha256 != encoder.sha256
    images, _ = Splits()("test")
    features_ND, classes_N = reader.read(images)
    assert classes_N is not None
    assert torch.equal(features_ND, reader.features(images)) and torch.equal(classes_N, reader.predict(images))
    assert encoder.read(images)[1] is None
    with pytest.raises(UserError, match="expected two classes or more to train a classifier on"):
        load_or_train(store, record_of(("one",)), Splits(), task="classes", config=QUICK)


def test_unlabelled_dataset_gets_a_label_free_encoder(store: Store) -> None:
    splits = Splits(labelled=False)
    found = load_or_train(store, record_of(()), splits, config=QUICK)
    assert not found.reads_classes
    assert "label-free encoder" in found.note
    images, _ = splits("test")
    assert found.features(images).shape == (297, 64)
    with pytest.raises(UserError, match="a dataset without classes has no class figures"):
        found.predict(images)


def test_no_test_images_are_said_in_the_note(store: Store) -> None:
    found = load_or_train(store, DIGITS, Splits(num_test=0), config=QUICK)
    assert found.record.test_accuracy is None
    assert "no test images" in found.note


def test_weights_left_by_a_killed_worker_are_taken_with_their_own_figures(store: Store) -> None:
    ref = load_or_train(store, DIGITS, Splits(), config=QUICK).ref
    images, labels = Splits()("train")
    theirs, _ = train_extractor(images, labels, 10, seed=7, config=QUICK)
    store.delete(f"{ref}/extractor.json")
    store.put(f"{ref}/{WEIGHTS}", save_safetensors(theirs))
    found = load_or_train(store, DIGITS, Splits(), config=QUICK)
    assert store.get(f"{ref}/{WEIGHTS}") == save_safetensors(theirs)
    test_images, test_labels = Splits()("test")
    assert test_labels is not None
    assert found.record.test_accuracy == pytest.approx(
        float((found.predict(test_images) == test_labels).double().mean())
    )


def test_worker_that_is_second_takes_what_the_first_wrote(store: Store) -> None:
    won: list[Extractor] = []

    def read_while_another_finishes(split: str) -> tuple[Tensor, Tensor | None]:
        if not won:
            won.append(load_or_train(store, DIGITS, Splits(), config=QUICK))
        return Splits()(split)

    found = load_or_train(store, DIGITS, read_while_another_finishes, config=QUICK)
    assert found.record == won[0].record


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-8], lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 1])],
    ids=["truncated", "empty", "one bit flipped"],
)
def test_damaged_weights_are_refused(store: Store, damage: Damage) -> None:
    key = f"{load_or_train(store, DIGITS, Splits(), config=QUICK).ref}/{WEIGHTS}"
    store.put(key, damage(store.get(key)))
    with pytest.raises(IntegrityError, match=f"{key}: expected .*, got .*; delete .* and evaluate again"):
        load_or_train(store, DIGITS, Splits(), config=QUICK)


def test_missing_weights_are_refused(store: Store) -> None:
    key = f"{load_or_train(store, DIGITS, Splits(), config=QUICK).ref}/{WEIGHTS}"
    store.delete(key)
    with pytest.raises(IntegrityError, match=r"found no object; delete .* and evaluate again"):
        load_or_train(store, DIGITS, Splits(), config=QUICK)


@pytest.mark.parametrize(
    "data", [b"\x80\x04no pickle is read", save_safetensors({"x": torch.zeros(2)})], ids=["pickle", "other tensors"]
)
def test_foreign_weights_without_a_record_are_refused(store: Store, data: bytes) -> None:
    ref = load_or_train(store, DIGITS, Splits(), config=QUICK).ref
    store.delete(f"{ref}/extractor.json")
    store.put(f"{ref}/{WEIGHTS}", data)
    with pytest.raises(IntegrityError, match=r"expected an extractor's weights, got .*; delete its folder"):
        load_or_train(store, DIGITS, Splits(), config=QUICK)


def test_record_with_an_unknown_field_is_refused(store: Store) -> None:
    found = load_or_train(store, DIGITS, Splits(), config=QUICK)
    content = json.loads(found.record.to_bytes()) | {"surprise": 1}
    store.put(f"{found.ref}/extractor.json", json.dumps(content).encode())
    with pytest.raises(RecordError, match="got surprise: Extra inputs are not permitted"):
        load_or_train(store, DIGITS, Splits(), config=QUICK)


# Bad input


def test_images_that_are_not_those_of_the_dataset_are_refused(trained: Extractor) -> None:
    images = torch.zeros(3, 1, 8, 8)
    for wrong in (images[0], images[:, :, :7], images.repeat(1, 3, 1, 1), images[:0]):
        with pytest.raises(UserError, match=r"expected images \(N, 1, 8, 8\) as in its dataset, got"):
            trained.features(wrong)
    with pytest.raises(UserError, match=r"uint8 images or floats in \[0, 1\], got torch.int64"):
        trained.features(images.long())
    with pytest.raises(UserError, match=r"expected floats in \[0, 1\], got \[0, 255\]"):
        trained.predict(torch.stack([images[0], images[0] + 255]))
    images[1, 0, 2, 3] = torch.nan
    with pytest.raises(UserError, match="got NaN or infinity in 1 of 3"):
        trained.features(images)


def test_training_sets_that_teach_nothing_are_refused() -> None:
    images, labels = digits()
    for wrong in (images[:1], images[:5].float(), images[:5, 0]):
        with pytest.raises(UserError, match="expected two or more uint8 training images"):
            train_extractor(wrong, labels[: len(wrong)], 10, 0)
    for wrong_labels in (labels[:4], labels[:5] + 10, labels[:5] - 10):
        with pytest.raises(UserError, match=r"expected a label in \[0, 10\) for each of the 5 images"):
            train_extractor(images[:5], wrong_labels, 10, 0)


def test_loss_that_is_not_finite_stops_the_training() -> None:
    images, labels = digits()
    with pytest.raises(TrainingError, match=r"expected a finite loss, got .* at step") as caught:
        train_extractor(images[:400], labels[:400], 10, 0, config=QUICK.model_copy(update={"lr": torch.inf}))
    assert isinstance(caught.value, AtelierError)
    assert "\n" not in str(caught.value)
