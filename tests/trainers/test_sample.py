"""Images come from seeds: the same again from the record alone, whatever else is in the batch."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import releases, shards
from pipeline.artifacts import Run
from pipeline.errors import IntegrityError, RecordError
from pipeline.latents import image_seed
from pipeline.pictures import decode_png
from pipeline.records import read_file
from pipeline.settings import Settings
from tests.trainers.conftest import Digits, small_recipe
from trainers import evaluate, families, launch, sample, sampleset

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["vae", "gan"])
def run(request: pytest.FixtureRequest, digits: Digits) -> Run:
    model: str = request.param
    return launch.train(digits.store, small_recipe(), model, digits.dataset, Settings.from_environment(), print)


def test_a_sample_set_can_be_made_again_image_by_image(digits: Digits, run: Run) -> None:
    made = sampleset.sample_run(digits.store, run, count=23, seed=4)
    tar = next(entry for entry in made.files if entry.name.endswith(".tar"))
    found = list(shards.read_shard(read_file(digits.store, made, tar)))
    assert [one.label for one in found] == [index % 10 for index in range(23)]
    sampler = sample.open_sampler(digits.store, run, CPU)
    for one in found[::7]:
        assert one.label is not None
        (images,) = sample.generate(sampler, [one.info["seed"]], [one.label])
        assert np.array_equal(images[0], decode_png(one.image))
        with Image.open(io.BytesIO(one.image)) as image:
            assert image.info["atelier:origin"] == run.ref
            assert image.info["atelier:seed"] == str(one.info["seed"])
    assert sampleset.sample_run(digits.store, run, count=23, seed=4) == made
    assert sampleset.sample_run(digits.store, run, count=23, seed=5).id != made.id


def test_sets_of_different_seeds_share_no_latent() -> None:
    """A set's seed stands in the high bits of its images' seeds, which torch's own generator does not read."""
    sets = [families.latents([image_seed(seed, index) for index in range(300)], 8) for seed in (0, 1, 2)]
    assert len({row.numpy().tobytes() for made in sets for row in made}) == 900


def test_an_evaluation_states_counts_and_intervals(digits: Digits, run: Run) -> None:
    recipe = small_recipe()
    found = evaluate.evaluate(digits.store, recipe, run, Settings.from_environment(), print)
    figures = found.figures
    wanted = {
        "frechet_distance",
        "kernel_distance",
        "precision",
        "recall",
        "class_histogram_distance",
        "label_agreement",
    }
    assert wanted <= figures.keys()
    assert ("negative_elbo" in figures) == (run.family == "vae")
    for name in ("frechet_distance", "label_agreement"):
        figure = figures[name]
        assert figure.low is not None and figure.high is not None and figure.low <= figure.value <= figure.high
        assert (figure.num_samples, figure.num_real) == (100, digits.dataset.splits["test"])
    assert (
        found.protocol.extractor.startswith(f"{digits.dataset.ref}/extractors/")
        and "classifier" in found.extractor_note
    )
    assert evaluate.evaluate(digits.store, recipe, run, Settings.from_environment(), print) == found


def test_a_negative_elbo_is_that_of_the_network_on_the_held_out_split(digits: Digits) -> None:
    recipe = small_recipe()
    run = launch.train(digits.store, recipe, "vae", digits.dataset, Settings.from_environment(), print)
    figures = evaluate.evaluate(digits.store, recipe, run, Settings.from_environment(), print).figures
    assert figures["negative_elbo"].value == pytest.approx(
        figures["rate"].value + figures["distortion"].value, rel=1e-6
    )
    # A uniform guess for every pixel costs log 2 nats a pixel; 12 steps of training must beat it.
    assert figures["negative_elbo"].value < 64 * np.log(2)


def test_a_picture_comes_from_the_release_alone(digits: Digits, run: Run) -> None:
    recipe = small_recipe()
    parents = (
        evaluate.evaluate(digits.store, recipe, run, Settings.from_environment(), print).ref,
        sampleset.sample_set(digits.store, recipe, run).ref,
    )
    release = releases.publish(digits.store, recipe, run.model, run.ref, *parents)
    for entry in run.files:
        digits.store.delete(f"{run.ref}/{entry.name}")
    png, found = sample.picture(digits.store, f"{release.name}@{release.number}", count=20, seed=1, class_name=None)
    assert found == release
    with Image.open(io.BytesIO(png)) as grid:
        assert grid.info["atelier:origin"] == f"{release.name}/{release.number}"
    for entry in run.files:
        digits.store.put(f"{run.ref}/{entry.name}", read_file(digits.store, release, entry))


def test_weights_that_do_not_fit_their_configuration_are_refused(digits: Digits, run: Run) -> None:
    config = next(entry for entry in run.files if entry.name == "config.json")
    whole = read_file(digits.store, run, config)
    from trainers import export

    weights = digits.store.get(f"{run.ref}/model.safetensors")
    with pytest.raises(IntegrityError, match=r"here: the weights do not fit config.json"):
        export.load(whole.replace(b'"height": 8', b'"height": 16'), weights, CPU, "here")
    with pytest.raises(IntegrityError, match=r"here: expected config.json and model.safetensors"):
        export.load(whole, weights[:100], CPU, "here")
    with pytest.raises(IntegrityError, match=r"here: expected config.json"):
        export.load(b'{"family": "vae", "code": "import os"}', weights, CPU, "here")


def test_a_record_without_weights_is_refused(digits: Digits, run: Run) -> None:
    with pytest.raises(RecordError, match=r"expected config.json and model.safetensors"):
        sample.open_sampler(digits.store, run.model_copy(update={"files": ()}), CPU)
