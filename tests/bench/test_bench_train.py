"""Whether `make bench-train` runs and says what it must, for a moment and without peers; never how fast."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from tests.bench.rows import Row
from tests.bench.train import OUT, main
from tests.bench.training import bare, gpu, whole, zero
from tests.bench.training.cases import PLAIN, SHAPE, Case, random_images
from tests.bench.training.clock import Clock
from tests.bench.training.peers_asked import Peers
from trainers.summary import CountFlops, summarise

FIELDS = {field.name for field in fields(Row)}
ENGINES = ("single device", "DeepSpeed ZeRO-0")


@pytest.fixture(autouse=True)
def process_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmark sets the threads and the rank of this process: put both back."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("heard", [True, False])
def test_peers_that_end_are_told_with_their_last_words(tmp_path: Path, heard: bool) -> None:
    """Before they read what they are asked, or after."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\n{'read line' if heard else 'exec <&-'}\necho 'No module named lightning' >&2\nexit 1\n"
    )
    python.chmod(0o755)
    with Peers(python, tmp_path / "images.pt", tmp_path) as peers:
        if not heard:
            time.sleep(0.5)  # it has ended: the pipe is broken
        with pytest.raises(UserError, match=r"lightning: expected a figure.*: No module named lightning"):
            peers.seconds_per_step("lightning", Case("VAE tiny", "vae", 16), 1, 0)


def test_every_row_states_its_figure_and_its_limit(tmp_path: Path) -> None:
    out = tmp_path / "bench-train.json"
    main(peers=None, quick=True, out=out)
    rows = json.loads(out.read_text())
    assert all(set(one) == FIELDS for one in rows)
    assert all(math.isfinite(one["value"]) and one["unit"] for one in rows)
    assert all((one["bar"] is None) == (one["holds"] is None) for one in rows)
    assert all(one["limit"] and one["limit_value"] > 0 for one in rows)
    differences = [one for one in rows if "overhead" in one["figure"]]  # of two figures as noisy as a moment's are
    assert all(one["value"] > 0 and one["limit_share"] > 0 for one in rows if one not in differences)
    figures = [one["figure"] for one in rows]
    for family in ("VAE tiny", "GAN tiny (R3GAN's loss)", "GAN tiny (DCGAN's loss)"):
        assert all(f"train {family}, {engine}" in figures for engine in ENGINES)
    assert all(f"a step's overhead at a trivial network, {engine}" in figures for engine in ENGINES)
    peers_of_two = {one["peer"] for one in rows if one["figure"].endswith("on 2 workers")}
    assert peers_of_two == {"compute on half the batch, then gloo", "the same on 1 worker"}
    assert any("checkpoint" in figure for figure in figures)
    assert {one["figure"][:6] for one in rows if one["figure"].startswith("ZeRO")} == {
        f"ZeRO {stage}" for stage in zero.stages()
    }


@pytest.mark.parametrize(
    "case",
    [Case("v", "vae", 8), Case("g", "gan", 8), Case("p", "gan", 8, PLAIN), Case("b", "vae", 2, {"preset": "base"})],
)
def test_a_bare_loop_does_the_trainers_arithmetic(case: Case) -> None:
    steps = 2
    with CountFlops() as counted:
        bare.run(case, random_images(40), steps, lambda: None)
    found = summarise(case.family, case.all_options, SHAPE, case.batch_size)
    assert counted.total == found.flops_per_step * steps


@pytest.mark.parametrize("case", [Case("v", "vae", 8), Case("g", "gan", 8)])
def test_a_bare_loop_makes_the_steps_that_are_asked(case: Case) -> None:
    clock = Clock()
    bare.run(case, random_images(20), 5, clock.tick)  # epochs of two whole batches and a half
    assert len(clock.marks) == 5


def test_a_bare_vae_learns() -> None:
    torch.manual_seed(0)
    case = Case("v", "vae", 16, {"network": "mlp", "hidden": [32], "latent_size": 4})
    network = bare.vae_of(case)
    white = torch.ones(16, 1, 28, 28)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = bare.negative_elbo(network, white)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_rows_of_a_gpu_state_images_a_second_and_their_share_of_the_peak(tmp_path: Path) -> None:
    data = whole.make_data(random_images(32, 0, side=16, channels=3), tmp_path)
    device = torch.device("cpu")  # as any device: what is measured there is the GPU's business
    peak = gpu.product_peak(device, size=64)
    for case in gpu.cases(batch_size=4, preset="tiny"):
        (found,) = gpu.rows(case, data, device, peak)
        assert found.value > 0
        assert found.limit_value and found.limit_share == pytest.approx(found.value / found.limit_value)
        assert "at 16 pixels" in found.figure


def test_a_clock_leaves_the_warm_up_out_and_sees_what_stalls() -> None:
    clock = Clock([0.0, 10.0, 11.0, 12.0, 13.0, 19.0, 20.0])
    assert clock.seconds_per_step(warmup=1) == 2.0
    assert clock.durations() == [10.0, 1.0, 1.0, 1.0, 6.0, 1.0]
    assert clock.beyond_median(first=4, last=6) == 5.0


def test_a_checkpoint_weighs_by_how_often_it_comes() -> None:
    clock = Clock([0.0, 9.0, 10.0, 11.0, 12.0, 19.0, 20.0])  # the usual step takes 1 s, the checkpoint after five 6 s
    assert clock.seconds_per_step_with_checkpoints(warmup=1, checkpoint=5, each_seconds=60) == pytest.approx(1.1)


def test_the_rows_are_written_where_git_does_not_look() -> None:
    assert OUT.parts[-3:] == ("bench", "out", "bench-train.json")
