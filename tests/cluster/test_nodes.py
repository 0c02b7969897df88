"""Faults of workers and their nodes: the run goes on, and ends with the weights of an undisturbed one."""

import time

import pytest

from tests.cluster.conftest import Cluster, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
CUT_SECONDS = 40.0
WORKER = "RayTrainWorker"  # in the title of the process that trains


def test_a_worker_process_killed_in_a_step(cluster: Cluster, undisturbed: str) -> None:
    run = cluster.train("worker-killed")
    run.reach(400)
    assert cluster.workers[1].kill(WORKER) == 1
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
    cluster.whole()
