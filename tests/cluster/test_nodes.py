"""Faults of workers and their nodes: the run goes on, and ends with the weights of an undisturbed one."""

import signal
import time
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
CUT_SECONDS = 40.0
GRACE_SECONDS = 30
LEAVE = Path(__file__).parents[2] / "infra" / "ray-leave.sh"
WORKER = "RayTrainWorker"  # in the title of the process that trains


def test_a_worker_process_killed_in_a_step(cluster: Cluster, undisturbed: str) -> None:
    run = cluster.train("worker-killed")
    run.reach(400)
    assert cluster.workers[1].signal(WORKER, signal.SIGKILL) == 1
    run.recovers("worker process killed -9")
    assert run.weights() == undisturbed
    assert run.resumed()


def test_a_node_cut_off_and_back(cluster: Cluster, undisturbed: str) -> None:
    run = cluster.train("node-cut")
    run.reach(400)
    cut = time.monotonic()
    cluster.workers[1].cut()
    try:
        until(lambda: cluster.alive() == 1, "Ray gives the node up")
        time.sleep(max(0.0, cut + CUT_SECONDS - time.monotonic()))
    finally:
        cluster.workers[1].mend()
    run.recovers(f"node cut off for {CUT_SECONDS:g} s (from its return)")
    assert run.weights() == undisturbed
    assert run.resumed()


def test_a_spot_node_is_reclaimed_with_30_seconds_of_grace(cluster: Cluster) -> None:
    run = cluster.train("reclaimed", "models.vae.checkpoint_every_steps=100000", "models.vae.steps=100000")
    run.reach(400)
    assert not run.committed()
    cluster.workers[1].reclaim([str(LEAVE), str(GRACE_SECONDS)], GRACE_SECONDS)
    last, was = run.committed()[-1], run.step()
    assert "a node of this run is about to go" in run.log()
    assert last > 400 and was - last < 400, "little is lost of what it did until it went"
    cluster.workers[1].boot()
    run.recovers(f"spot node reclaimed with {GRACE_SECONDS} s of grace (from its return)")
    assert run.resumed() == [(last, 2)]


def test_a_node_gone_for_good_and_another_that_joins(cluster: Cluster) -> None:
    run = cluster.train("elastic", "cluster.min_workers=1", "models.vae.steps=100000")
    run.reach(400)
    cluster.workers[1].power_off()
    run.recovers("node gone for good, elastic: goes on with fewer workers")
    shrunk, workers = run.resumed()[-1]
    assert workers == 1
    run.reach(shrunk + 500)
    cluster.workers[1].boot()
    start = time.monotonic()
    until(lambda: run.resumed()[-1] > (shrunk, 1), "it grows", 300)
    was = run.step()
    run.reach(was)
    cluster.recovered("another node joins, elastic: until it goes on with all", time.monotonic() - start)
    assert run.resumed()[-1][1] == 2
    run.stop()
    straight = cluster.train("straight", "models.vae.steps=100000")
    straight.reach(shrunk + 550)
    straight.stop()
    assert run.losses(shrunk + 500) == pytest.approx(straight.losses(shrunk + 500), rel=1e-4), "the same batches"
