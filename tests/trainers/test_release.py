"""A real release: what a sceptic can check of it with torch, and without."""

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline import releases, shards
from pipeline.artifacts import Release, file_entry
from pipeline.errors import IntegrityError
from pipeline.pictures import decode_png
from pipeline.records import read_file
from pipeline.release import verify as verification
from pipeline.release.contents import Contents
from pipeline.release.provenance import SOURCE_TYPE, XMP_KEYWORD
from pipeline.release.runtime import OnnxSampler
from pipeline.release.signing import load_signer
from pipeline.release.verify import verify
from pipeline.settings import Settings
from pipeline.store import open_store
from tests.trainers.conftest import Digits, small_recipe
from trainers import evaluate, launch, sampleset

TAR = "samples/samples-000000.tar"
DESCRIPTION = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
EXTENSION = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


@pytest.fixture(scope="module")
def release(digits: Digits) -> Release:
    recipe, settings = small_recipe(), Settings.from_environment()
    run = launch.train(digits.store, recipe, "gan", digits.dataset, settings, print)
    evaluation = evaluate.evaluate(digits.store, recipe, run, settings, print)
    samples = sampleset.sample_set(digits.store, recipe, run)
    return releases.publish(digits.store, recipe, "gan", run.ref, evaluation.ref, samples.ref)


def made(digits: Digits, release: Release) -> list[shards.Sample]:
    tar = next(entry for entry in release.files if entry.name == TAR)
    return list(shards.read_shard(read_file(digits.store, release, tar)))


def test_its_samples_come_out_of_torch_again_bit_for_bit(digits: Digits, release: Release) -> None:
    found = verify(digits.store, release, (), share=1, seed=0)
    assert found.faults == () and found.regenerated == 30
    assert any("30 made again by torch" in note and "30 of them the same bits" in note for note in found.notes)


def test_its_samples_come_out_of_onnxruntime_within_the_tolerance(
    digits: Digits, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_regenerator", lambda: verification._by_onnx)
    found = verify(digits.store, release, (), share=1, seed=0)
    assert found.faults == () and found.regenerated == 30
    sampler, samples = OnnxSampler("here", Contents(digits.store, release, None).read), made(digits, release)
    images = sampler.images([one.info["seed"] for one in samples], [one.label or 0 for one in samples])
    for image, one in zip(images, samples, strict=True):
        assert abs(image.astype(int) - decode_png(one.image)).max() <= 1


def test_a_set_of_another_network_is_a_fault(digits: Digits, release: Release, tmp_path: Path) -> None:
    """Signed and whole, but the weights are not those that made the images."""
    store = open_store(f"file://{tmp_path}/store")
    for entry in release.files:
        store.put(f"{release.ref}/{entry.name}", digits.store.get(f"{release.ref}/{entry.name}"))
    weights = bytearray(digits.store.get(f"{release.ref}/model.safetensors"))
    weights[-4000:] = np.full(1000, 0.25, "<f4").tobytes()
    store.put(f"{release.ref}/model.safetensors", bytes(weights))
    changed = file_entry("model.safetensors", bytes(weights))
    files = tuple(changed if entry.name == changed.name else entry for entry in release.files)
    signer = load_signer(replace(Settings.from_environment(), home=tmp_path))
    forged = signer.signed(release.model_copy(update={"files": files}))
    found = verify(store, forged, (), share=0.01, seed=0)
    assert len(found.faults) == verification.LEAST_IMAGES
    assert all("expected the image of seed" in fault and "bit for bit, got" in fault for fault in found.faults)


def test_every_image_says_in_xmp_that_a_model_made_it(digits: Digits, release: Release) -> None:
    grid = next(entry for entry in release.files if entry.name == "grid.png")
    pictures = [one.image for one in made(digits, release)[:3]] + [read_file(digits.store, release, grid)]
    for png in pictures:
        with Image.open(io.BytesIO(png)) as image:
            xmp, info = image.info[XMP_KEYWORD], image.info
        (about,) = ElementTree.fromstring(xmp).iter(DESCRIPTION)  # noqa: S314 - our own
        assert about.get(f"{EXTENSION}DigitalSourceType") == SOURCE_TYPE
        assert info["atelier:release"] == "small-gan/1" and info["atelier:origin"] == release.run


def test_a_sampler_that_is_no_onnx_is_refused(digits: Digits, release: Release, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    store.put(f"{release.ref}/model.onnx", b"\x08\x07 no model")
    forged = release.model_copy(update={"files": (file_entry("model.onnx", b"\x08\x07 no model"),)})
    with pytest.raises(IntegrityError, match=r"model.onnx: expected a sampler as ONNX, got "):
        OnnxSampler("here", Contents(store, forged, None).read)
