"""An evaluation end to end: its protocol, its figures, its picture, and the eyes that the recipe asks for."""

import hashlib
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.artifacts import Evaluation, Run
from pipeline.errors import ProtocolMismatch, UserError
from pipeline.protocol import check_comparable, figures_of
from pipeline.records import find, read_file
from pipeline.settings import Settings
from tests.trainers.conftest import Digits, small_recipe
from trainers import launch
from trainers.evaluate import evaluate

SETTINGS = Settings.from_environment


@pytest.fixture(scope="module")
def run(digits: Digits) -> Run:
    return launch.train(digits.store, small_recipe(), "gan", digits.dataset, SETTINGS(), print)


def evaluated(digits: Digits, run: Run, *overrides: str) -> Evaluation:
    return evaluate(digits.store, small_recipe(*overrides), run, SETTINGS(), print)


def test_the_protocol_says_what_was_measured_and_each_figure_names_it(digits: Digits, run: Run) -> None:
    found = evaluated(digits, run)
    protocol = found.protocol
    assert (protocol.name, protocol.dataset, protocol.split) == ("atelier-2", digits.dataset.ref, "test")
    assert (protocol.num_samples, protocol.num_real, protocol.seed) == (100, digits.dataset.splits["test"], 0)
    assert protocol.extractor == protocol.classifier and len(protocol.extractor_sha256) == 64
    assert protocol.preprocessing == "1x8x8, values less 0.5 in [-0.5, 0.5]"
    assert {figure.protocol for figure in found.figures.values()} == {protocol.id}
    for name, figure in found.figures.items():
        assert figure.low is not None and figure.high is not None and figure.floor is not None, name
        assert figure.low <= figure.value <= figure.high, name


def test_the_closest_pairs_are_stored_with_the_record(digits: Digits, run: Run) -> None:
    found = evaluated(digits, run)
    (entry,) = found.files
    with Image.open(io.BytesIO(read_file(digits.store, found, entry))) as picture:
        assert entry.name == "copies.png" and picture.width > 8 * 48


def test_the_same_again_on_another_store_of_results(digits: Digits, run: Run) -> None:
    first = evaluated(digits, run)
    digits.store.delete(f"{first.ref}/evaluation.json")
    assert evaluated(digits, run) == first


def test_evaluations_of_other_samples_are_not_compared(digits: Digits, run: Run) -> None:
    ours, theirs = evaluated(digits, run), evaluated(digits, run, "evaluation.num_samples=120")
    with pytest.raises(ProtocolMismatch, match="num_samples: 100, not 120: the bias of a distance"):
        check_comparable(ours.protocol, theirs.protocol)
    assert figures_of(ours, ours, "recall")[0].value == ours.figures["recall"].value


def test_a_label_free_encoder_can_be_asked_for(digits: Digits, run: Run) -> None:
    found = evaluated(digits, run, "evaluation.extractor=self_supervised")
    assert "label-free encoder" in found.extractor_note
    assert found.protocol.extractor != found.protocol.classifier
    assert "label_agreement" in found.figures


class Pooled(nn.Module):
    def forward(self, images_BCHW: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images_BCHW, 4).flatten(1)


def test_an_extractor_from_a_file_gives_the_features(digits: Digits, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "eyes.ts"
    torch.jit.save(torch.jit.script(Pooled()), str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    section = f"{{path: {path}, sha256: {sha256}, side: 16, channels: 3, values: symmetric}}"
    found = evaluated(digits, run, f"evaluation.extractor={section}")
    assert (found.protocol.extractor, found.protocol.extractor_sha256) == ("file eyes.ts", sha256)
    assert found.protocol.preprocessing == "3 channels, 16x16 (bilinear, antialiased), values symmetric"
    assert found.protocol.classifier and "label_agreement" in found.figures
    wrong = section.replace("side: 16", "side: 2")
    with pytest.raises(UserError, match=r"expected a network that takes images \(1, 3, 2, 2\)") as caught:
        evaluated(digits, run, f"evaluation.extractor={wrong}")
    assert "\n" not in str(caught.value)
    assert find(digits.store, f"evaluations/{'0' * 16}", Evaluation) is None
