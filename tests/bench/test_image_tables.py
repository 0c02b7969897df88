"""The tables that need MNIST, on images like it that are made here: protocols, resuming, a perfect sampler's score."""

import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.store import open_store
from tests.bench import image_training, likelihood_table, mnist, stacked_table, tables
from tests.bench.image_training import Probed, Training
from tests.bench.mnist import Images, Stored
from tests.bench.table import Means, curve, part
from trainers import families
from trainers.families import Model

STEPS = 12


def write_idx(folder: Path, part: str, count: int, seed: int) -> None:
    """Random images and all ten labels in turn, gzipped, by the names of the canonical files."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    heads = {
        "images-idx3": struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes(),
        "labels-idx1": struct.pack(">4B1I", 0, 0, 8, 1, count) + labels.tobytes(),
    }
    for name, data in heads.items():
        (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(data, 1))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    write_idx(folder, "train", 600, seed=0)
    write_idx(folder, "t10k", 300, seed=1)
    return folder


def means_of(work: Path, files: Path | None) -> Means:
    return Means(work, torch.device("cpu"), files, lambda line: None)


def test_the_canonical_parts_stay_apart_and_in_order(files: Path, tmp_path: Path) -> None:
    digits = mnist.read(files)
    assert digits.train.images_NCHW.shape == (600, 1, 28, 28)
    assert digits.test.images_NCHW.shape == (300, 1, 28, 28)
    assert digits.train.labels_N[:12].tolist() == [*range(10), 0, 1]
    expected = np.random.default_rng(0).integers(0, 256, (600, 28, 28), dtype=np.uint8)
    assert torch.equal(digits.train.images_NCHW[:, 0], torch.from_numpy(expected))
    dataset = mnist.stored(digits, tmp_path, "d", labelled=True).dataset
    assert dict(dataset.splits) == {"train": 600, "test": 300} and dataset.classes == mnist.CLASSES


def test_without_a_folder_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"--mnist: expected the folder"):
        mnist.read(None)


def test_stacked_images_are_labelled_by_the_number_that_they_show() -> None:
    digits = Images(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 2, 2), torch.arange(10))
    made = mnist.stacked(digits, 50, seed=0)
    shown_N3 = made.images_NCHW[:, :, 0, 0].long()
    assert torch.equal(made.labels_N, shown_N3 @ torch.tensor([100, 10, 1]))
    assert len(made.labels_N.unique()) > 30  # type: ignore[no-untyped-call]  # torch leaves it untyped


def test_a_perfect_sampler_scores_what_the_protocol_says() -> None:
    labels_N = torch.arange(10).repeat_interleave(torch.arange(95, 105))
    shares_K = stacked_table.number_shares(labels_N)
    assert shares_K.sum().item() == pytest.approx(1)
    assert shares_K[907].item() == pytest.approx((104 * 95 * 102) / len(labels_N) ** 3)
    drawn_N = torch.multinomial(shares_K, 26_000, replacement=True, generator=torch.Generator().manual_seed(0))
    found = stacked_table.scores(drawn_N, shares_K)
    assert found["modes"] == 1000
    assert found["reverse_kl"] == pytest.approx(999 / 52_000, abs=0.002)
    half = stacked_table.scores(drawn_N[drawn_N < 500], shares_K)
    assert half["modes"] == 500 and half["reverse_kl"] == pytest.approx(np.log(2), abs=0.05)


def test_test_images_are_binarised_once_by_their_grey() -> None:
    grey = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 50, 50)
    first = likelihood_table.binarized(grey)
    assert torch.equal(first, likelihood_table.binarized(grey))
    assert first[0].max() == 0 and first[2].min() == 1 and 0.4 < first[1].mean() < 0.6


def test_more_samples_bound_the_likelihood_closer() -> None:
    config = families.parse_config("vae", {**likelihood_table.IWAE, "hidden": [20]}, "vae")
    shape = families.DataShape(1, 8, 8, 0)
    network = families.build("vae", config, shape, 0).networks["vae"]
    images = (torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    one, many = (likelihood_table.mean_log_likelihood(network, images, k) for k in (1, 200))
    assert one < many < 0
    assert likelihood_table.mean_log_likelihood(network, images, 200) == many


@pytest.mark.parametrize("name", sorted(tables.FORMS["full"]))
@pytest.mark.parametrize("form", sorted(tables.FORMS))
def test_every_table_runs_states_its_bars_and_is_not_run_again(
    name: str, form: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, means = tables.FORMS[form][name].quick(), means_of(tmp_path / "work", files)
    records = tables.figures(name, table, [0], tmp_path, means)
    assert all(np.isfinite(records[0]["figures"][bar.figure]) for bar in table.bars)
    assert records[0]["figures"]["curve"]
    text, _ = part(name, table, records, "the command")
    assert all(bar.figure in text and bar.words() in text for bar in table.bars)
    assert all(f"| {figure} | " in text for figure in records[0]["figures"] if figure != "curve")
    assert text.startswith(f"## {name}: ") and "the command" in text and "On the way" in text
    monkeypatch.setattr(type(table), "run", None)
    assert tables.figures(name, table, [0], tmp_path, means) == records


def test_a_stopped_training_goes_on_with_its_curve(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mnist.stored(mnist.read(files), tmp_path, "d", labelled=False)
    training = Training("vae", 8, STEPS, {"network": "mlp", "hidden": [8], "latent_size": 2})

    def probe(model: Model, network: nn.Module) -> dict[str, float]:
        return {"sum": sum(p.sum().item() for p in network.parameters())}

    straight = image_training.train(training, data, 0, means_of(tmp_path / "a", files), probe, 4)
    assert [point["step"] for point in straight[1]] == [3, 6, 9, 12]
    other = Stored(open_store(f"file://{tmp_path}/other"), data.dataset)
    for entry in data.store.list("datasets/"):
        other.store.put(entry.key, data.store.get(entry.key))
    with monkeypatch.context() as patch:
        patch.setattr(Probed, "_after_step", dying(Probed._after_step))
        with pytest.raises(KilledError):
            image_training.train(training, other, 0, means_of(tmp_path / "b", files), probe, 4)
    resumed = image_training.train(training, other, 0, means_of(tmp_path / "b", files), probe, 4)
    assert resumed[1] == straight[1]
    pairs = zip(resumed[0].network.parameters(), straight[0].network.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


class KilledError(Exception):
    """Stands for a kill."""


def dying(after_step: object) -> object:
    """The same, but the eighth step is the last one."""

    def killed(self: Probed, network: nn.Module) -> None:
        assert callable(after_step)
        after_step(self, network)
        if self.step == 8:
            raise KilledError

    return killed


def test_a_curve_is_a_table_of_its_points() -> None:
    lines = curve([{"model": "gan", "step": 1200, "agreement": 0.91234}])
    assert "| model | step | agreement |" in lines and "| gan | 1,200 | 0.9123 |" in lines
    assert curve([]) == []


def test_settings_tell_records_apart(tmp_path: Path) -> None:
    table = likelihood_table.CPU
    longer = replace(table, training=replace(table.training, steps=table.training.steps + 1))
    (tmp_path / "r.json").write_text(json.dumps({"settings": table.record()}))
    assert tables.is_done(tmp_path / "r.json", json.loads(json.dumps(table.record())))
    assert not tables.is_done(tmp_path / "r.json", json.loads(json.dumps(longer.record())))
