"""Faults of the object store: all wait for it and go on, and nothing half-written is ever visible."""

import hashlib
import json
import threading
import time

import pytest

from pipeline import weed
from pipeline.errors import NotFound
from pipeline.store import Store, open_store
from tests.cluster.cluster import RECIPE, Cluster, Run, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
DOWN_SECONDS = 60.0
SLOW_SECONDS = 0.5  # later for each request
RECORDS = ("run.json", "checkpoint.json", "evaluation.json", "samples.json", "manifest.json", "dataset.json")


class Witness(threading.Thread):
    """Reads every record again and again, past the door, and each of the files that it names."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self.store = store
        self.seen: set[str] = set()
        self.broken: list[str] = []
        self._ends = threading.Event()

    def run(self) -> None:
        while not self._ends.wait(1.0):
            for entry in self.store.list(""):
                if entry.key.endswith(RECORDS):
                    self._read(entry.key)

    def end(self) -> None:
        self._ends.set()
        self.join()

    def _read(self, key: str) -> None:
        folder = key.rpartition("/")[0]
        try:
            record = json.loads(self.store.get(key))
            files = [file for file in record.get("files", []) if key not in self.seen]
            found = {file["name"]: self.store.get(f"{folder}/{file['name']}") for file in files}
        except NotFound:  # an old checkpoint: its record goes first, so it must be gone by now
            if any(entry.key == key for entry in self.store.list(folder)):
                self.broken.append(key)
            return
        except ValueError:
            self.broken.append(key)
            return
        for file in files:
            if hashlib.sha256(found[file["name"]]).hexdigest() != file["sha256"]:
                self.broken.append(f"{folder}/{file['name']}")
        self.seen.add(key)


@pytest.fixture
def witness(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Reads along while a test runs."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", cluster.server.endpoint)
    found = Witness(open_store(weed.STORE_URI))
    found.start()
    return found


def ends_as(run: Run, undisturbed: str, witness: Witness) -> None:
    assert run.weights() == undisturbed
    witness.end()
    assert not witness.broken
    assert f"{run.ref}/run.json" in witness.seen


def test_the_store_answers_late(cluster: Cluster, undisturbed: str, witness: Witness) -> None:
    cluster.line.be(f"slow {SLOW_SECONDS}")
    run = cluster.train("store-slow")
    ends_as(run, undisturbed, witness)
    cluster.line.be("open")
    assert cluster.line.faults > 20
    assert not run.resumed()


def test_the_store_is_down_for_a_minute(cluster: Cluster, undisturbed: str, witness: Witness) -> None:
    run = cluster.train("store-down")
    run.reach(400)
    cluster.line.be("shut")
    weed.stop(cluster.server)
    time.sleep(DOWN_SECONDS)
    weed.start(cluster.home, cluster.server.s3_port)
    cluster.line.be("open")
    run.recovers(f"store down for {DOWN_SECONDS:g} s (from its return)")
    ends_as(run, undisturbed, witness)
    assert not run.resumed(), "it waits; nobody starts anew"


def test_one_answer_in_five_is_503_from_images_to_release(cluster: Cluster, undisturbed: str, witness: Witness) -> None:
    cluster.line.be("errors 5")
    recipe = json.dumps(RECIPE | {"name": "stormy"})
    job = cluster.submit("stormy", "run", recipe)
    until(lambda: cluster.job(job.id).finished, "the run", 400)
    cluster.line.be("open")
    assert cluster.job(job.id).status == "SUCCEEDED", cluster.log(job.id)[-3000:]
    assert cluster.line.faults > 20
    witness.end()
    assert not witness.broken
    assert len([key for key in witness.seen if key.startswith("releases/stormy") and "manifest" in key]) == 1
    checked = cluster.submit("verify", "verify", "stormy-vae@champion")
    until(lambda: cluster.job(checked.id).finished, "verify")
    assert cluster.job(checked.id).status == "SUCCEEDED", cluster.log(checked.id)[-3000:]
