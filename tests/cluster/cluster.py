"""The cluster: a store behind a door, three hosts with Ray, and the runs on it."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipeline import weed
from pipeline.artifacts import Run as Record
from pipeline.ids import run_id
from pipeline.jobs import Job, JobsClient, JobsError, entrypoint_of, last_json
from pipeline.recipe import load_recipe
from pipeline.records import load
from pipeline.store import Store
from tests.cluster.hosts import BRIDGE_ADDRESS, Host
from trainers.checkpoints import committed_steps

DOOR_PORT = 18333
DASHBOARD_PORT = 8265
GCS_PORT = 6379
DEADLINE_SECONDS = 600
RECOVERIES: list[tuple[str, float]] = []  # fault, seconds until the run was farther than before
STEP = re.compile(r"step ([\d,]+)/")
RESUMED = re.compile(r"resumed at step ([\d,]+)/[\d,]+ on (\d+) worker")
VAE = {
    "family": "vae",
    "steps": 1500,
    "batch_size": 128,
    "checkpoint_every_steps": 100,
    "log_every_steps": 50,
}
RECIPE: dict[str, Any] = {
    "name": "tried",
    "source": {"kind": "digits"},
    "dataset": {"channels": 1, "height": 8, "width": 8},
    "models": {"vae": VAE},
    "cluster": {"launcher": "ray", "engine": "deepspeed", "zero": 1, "workers": 2, "max_failures": 8},
    "evaluation": {"num_samples": 300},
    "release": {"num_samples": 20},
}
# What a head should look after its nodes by where a lost one matters: Ray's defaults take over a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


def until(condition: Callable[[], object], what: str, seconds: float = 180.0) -> None:
    """Wait for a condition; fails after `seconds`, a limit against hanging only."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come in {seconds:g} s: {what}"
        time.sleep(0.2)


class Line:
    """The line to the store, by its door's process."""

    def __init__(self, store_url: str) -> None:
        command = [sys.executable, "-m", "tests.cluster.door", BRIDGE_ADDRESS, str(DOOR_PORT), store_url]
        # A session of its own: Ctrl-C is for the tests, which then end it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._answer()

    def be(self, words: str) -> None:
        """`open`, `shut`, `slow SECONDS` or `errors N`."""
        assert self._process.stdin
        print(words, file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout
        word, requests, faults = self._process.stdout.readline().split()
        assert word == "done"
        self.requests, self.faults = int(requests), int(faults)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Run:
    """A training run as a Ray job, and how far its log says it is."""

    def __init__(self, cluster: "Cluster", job_id: str, run_id: str) -> None:
        self.cluster = cluster
        self.job_id = job_id
        self.ref = f"runs/{run_id}"

    def log(self) -> str:
        """What it has said; "" while Ray does not answer."""
        try:
            with self.cluster.client() as client:
                return client.log(self.job_id)
        except JobsError:
            return ""

    def step(self) -> int:
        """The last step that it has told of."""
        return max(map(_number, STEP.findall(self.log())), default=0)

    def resumed(self) -> list[tuple[int, int]]:
        """The steps that it has resumed at, each with the number of its workers then."""
        return [(_number(step), int(workers)) for step, workers in RESUMED.findall(self.log())]

    def committed(self) -> list[int]:
        """The steps of its checkpoints in the store."""
        return committed_steps(self.cluster.store, self.ref)

    def losses(self, last: int) -> list[float]:
        """Its logged losses up to a step."""
        lines = map(json.loads, self.cluster.store.get(f"{self.ref}/metrics.jsonl").splitlines())
        return [line["vae/loss"] for line in lines if line["step"] <= last]

    def stop(self) -> None:
        """Stop it as a person does; it commits the step that it is at."""
        with self.cluster.client() as client:
            client.stop(self.job_id)
        until(lambda: self.cluster.job(self.job_id).finished, f"{self.job_id} stops")

    def reach(self, step: int, seconds: float = 240.0) -> None:
        """Wait until it is past a step. Fails where the job ends before."""

        def there() -> bool:
            assert not self.cluster.job(self.job_id).finished, self.log()[-3000:]
            return self.step() > step

        until(there, f"step {step} of {self.job_id}", seconds)

    def recovers(self, fault: str, seconds: float = 300.0) -> None:
        """Wait until it is farther than it was at this moment; the seconds it took are printed at the end."""
        start, was = time.monotonic(), self.step()
        until(lambda: self.step() > was, f"farther than step {was} after: {fault}", seconds)
        self.cluster.recovered(fault, time.monotonic() - start)

    def weights(self) -> str:
        """Wait for the run's end; the digest of its weights."""
        uri = self.cluster.result(self.job_id)
        run = load(self.cluster.store, uri.removeprefix(f"{self.cluster.store.uri}/"), Record)
        return next(file.sha256 for file in run.files if file.name == "model.safetensors")


def _number(digits: str) -> int:
    return int(digits.replace(",", ""))


@dataclass
class Cluster:
    """Three hosts with Ray, and the store that they share."""

    line: Line
    head: Host
    workers: list[Host]
    environment: dict[str, str]
    token: str
    store: Store
    home: Path  # of the store's server
    server: weed.WeedState
    dataset: str = ""  # its URI, once it is ingested

    @property
    def dashboard(self) -> str:
        """Ray's Jobs API, as this machine reaches it."""
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def client(self) -> JobsClient:
        return JobsClient(self.dashboard, self.token)

    def submit(self, name: str, *words: str) -> Job:
        """Start a verb of atelier as a Ray job."""
        with self.client() as client:
            line = entrypoint_of(["atelier", *words, "--json"], DEADLINE_SECONDS)
            return client.submit_or_attach(name, line, environment={}, metadata={})

    def train(self, again: str, *overrides: str) -> Run:
        """Start a run of the recipe: the same for every `again`, so its end must be the same."""
        changes = [word for each in overrides for word in ("--set", each)]
        words = ["train", json.dumps(RECIPE), "--model", "vae", "--dataset", self.dataset, "--again", again, *changes]
        recipe = load_recipe(json.dumps(RECIPE), overrides)
        ref = self.dataset.removeprefix(f"{self.store.uri}/")
        return Run(self, self.submit(again, *words).id, run_id(recipe, "vae", ref, again))

    def job(self, job_id: str) -> Job:
        with self.client() as client:
            found = client.find(job_id)
        assert found, job_id
        return found

    def log(self, job_id: str) -> str:
        with self.client() as client:
            return client.log(job_id)

    def result(self, job_id: str, seconds: float = 300.0) -> str:
        """Wait for a job's success; the URI of what it made."""
        until(lambda: self.job(job_id).finished, job_id, seconds)
        log = self.log(job_id)
        assert self.job(job_id).status == "SUCCEEDED", log[-3000:]
        found = last_json(log)
        assert found, log[-3000:]
        return str(found["uri"])

    def alive(self) -> int:
        """How many worker nodes Ray counts; 0 where its head does not answer."""
        found = self.ask("/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE")
        if not found or not found["data"]:
            return 0
        return sum(not node["is_head_node"] for node in found["data"]["result"]["result"])

    def whole(self) -> None:
        """Wait until all hosts are there again."""
        until(self.answers, "Ray's head")
        until(lambda: self.alive() == len(self.workers), "all workers")

    def free_cpus(self) -> int:
        """The CPUs that nothing uses."""
        status = self.ask("/api/cluster_status")
        usage = status["data"]["clusterStatus"]["loadMetricsReport"]["usage"] if status else {}
        used, there = usage.get("CPU", (0.0, 0.0))
        return int(there - used)

    def recovered(self, fault: str, seconds: float) -> None:
        """Note how long a fault took to mend; printed at the end."""
        RECOVERIES.append((fault, seconds))

    def ask(self, path: str) -> Any:
        """What the dashboard says; None where it does not answer."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            return httpx.get(f"{self.dashboard}{path}", headers=headers, timeout=10, trust_env=False).json()
        except (httpx.HTTPError, ValueError):
            return None

    def restore(self) -> None:
        """As it was at the beginning, whatever a test has left: no job, the line open, all hosts there."""
        self.line.be("open")
        for host in (self.head, *self.workers):
            host.mend()
            if not host.on:
                host.boot()
        self.whole()
        with self.client() as client:
            for job in client.list():
                if not job.finished:
                    client.stop(job.id)
        until(self.calm, "no job")

    def calm(self) -> bool:
        """Whether no job is under way."""
        with self.client() as client:
            return all(job.finished for job in client.list())

    def answers(self) -> bool:
        try:
            with self.client() as client:
                client.list()
        except JobsError:
            return False
        return True


def _ray(*words: str) -> list[str]:
    common = ["--block", "--disable-usage-stats", f"--object-store-memory={80 << 20}", "--include-log-monitor=false"]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *common, *words]


def make_hosts(folder: Path, environment: dict[str, str]) -> tuple[Host, list[Host]]:
    head_words = [
        "--head",
        "--node-ip-address=10.77.0.2",
        f"--port={GCS_PORT}",
        "--dashboard-host=10.77.0.2",
        f"--dashboard-port={DASHBOARD_PORT}",
        "--num-cpus=0",
    ]
    head = Host("head", 2, folder / "head", _ray(*head_words), environment | HEALTH)
    workers = []
    for number in (3, 4):
        address = f"--node-ip-address=10.77.0.{number}"
        name = f"worker{number - 2}"
        own = {"ATELIER_CACHE": str(folder / name / "cache")}
        service = _ray(address, f"--address={head.address}:{GCS_PORT}", "--num-cpus=1")
        workers.append(Host(name, number, folder / name, service, environment | own))
    return head, workers
