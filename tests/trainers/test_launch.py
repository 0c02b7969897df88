"""Ray Train and DeepSpeed on a real Ray cluster of this process: the run of several workers, and its recovery."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load as load_safetensors

from pipeline.artifacts import Run
from pipeline.errors import RecipeError
from pipeline.ingest import ingest
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from tests.trainers.conftest import Digits, small_recipe
from trainers import launch

ON_RAY = (
    "cluster.launcher=ray",
    "cluster.engine=deepspeed",
    "cluster.workers=2",
    "cluster.zero=1",
    "cluster.cpus_per_worker=0.5",
)

pytestmark = pytest.mark.stack


def train(
    store_uri: str, overrides: list[str], model: str = "gan", environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Train in a process of its own, so that its Ray cluster ends with it."""
    code = (
        "import sys\n"
        "from pipeline.settings import Settings\n"
        "from pipeline.store import open_store\n"
        "from pipeline.ingest import find_dataset\n"
        "from pipeline.errors import AtelierError\n"
        "from tests.trainers.conftest import small_recipe\n"
        "from trainers import launch\n"
        "store, recipe = open_store(sys.argv[1]), small_recipe(*sys.argv[3:])\n"
        "dataset = find_dataset(store, recipe)\n"
        "say = lambda line: print(line, flush=True)\n"
        "try: run = launch.train(store, recipe, sys.argv[2], dataset, Settings.from_environment(), say)\n"
        "except AtelierError as error: sys.exit(f'{type(error).__name__}: {error}')\n"
        "print(run.ref)\n"
    )
    command = [sys.executable, "-c", code, store_uri, model, *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def weights_of(store: Store, out: str) -> bytes:
    run = next(line for line in out.splitlines() if re.fullmatch(r"runs/\w+", line))  # Ray may say more after it
    return store.get(f"{run}/model.safetensors")


def test_two_deepspeed_workers_train_what_one_torch_worker_trains(s3_uri: str) -> None:
    store = open_store(s3_uri)
    ingest(store, small_recipe())
    on_ray = finished(train(s3_uri, list(ON_RAY)))
    assert "train gan step 12/12" in on_ray
    found = load_safetensors(weights_of(store, on_ray))
    alone = open_store(f"{s3_uri}/alone")
    recipe = small_recipe()
    run = launch.train(alone, recipe, "gan", ingest(alone, recipe), Settings.from_environment(), print)
    for name, tensor in load_safetensors(alone.get(f"{run.ref}/model.safetensors")).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_disturbed_runs_end_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    longer = [*ON_RAY, "models.gan.steps=600", "models.gan.checkpoint_every_steps=100"]
    results = {}
    for name in ("straight", "killed", "stopped"):
        uri = f"file://{tmp_path}/{name}"
        ingest(open_store(uri), small_recipe())
        process = train(uri, longer)
        if name == "killed":
            kill_a_worker(process, open_store(uri))
        if name == "stopped":
            stop_the_starter(process, open_store(uri))
            process = train(uri, longer)
        results[name] = finished(process)
    weights = {name: weights_of(open_store(f"file://{tmp_path}/{name}"), out) for name, out in results.items()}
    for name, out in results.items():
        assert ("resumed at step" in out) == (name != "straight")
        assert weights[name] == weights["straight"], name


def wait_for_checkpoint(process: subprocess.Popen[str], store: Store) -> None:
    deadline = time.monotonic() + 200
    while not any(entry.key.endswith("checkpoint.json") for entry in store.list("runs/")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def stop_the_starter(process: subprocess.Popen[str], store: Store) -> None:
    """SIGTERM reaches the process that started the run; its workers commit the step that they agree on."""
    wait_for_checkpoint(process, store)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    found = re.search(r"^Stopped: train gan: stopped at step (\d+)/600, which is committed, on SIGTERM", err, re.M)
    assert found, err
    assert any(f"/{int(found[1]):09d}/checkpoint.json" in entry.key for entry in store.list("runs/"))


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def two_nodes(auth: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A cluster of two nodes, and the environment that leads to it."""
    environment = {**auth, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # on loopback only
    cluster = subprocess.Popen(
        [sys.executable, "-m", "tests.trainers.nodes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert cluster.stdin and cluster.stdout
    try:
        yield cluster, {**environment, "RAY_ADDRESS": cluster.stdout.readline().strip()}
    finally:
        cluster.stdin.close()
        cluster.wait(60)


@pytest.mark.parametrize("loss", ["kill", "drain 60"])
def test_a_run_that_loses_a_node_goes_on_with_fewer_workers(tmp_path: Path, loss: str) -> None:
    elastic = [
        *("cluster.launcher=ray", "cluster.workers=2", "cluster.min_workers=1"),
        *("models.vae.steps=600", "models.vae.batch_size=384", "models.vae.checkpoint_every_steps=50"),
    ]
    store = open_store(f"file://{tmp_path}/elastic")
    ingest(store, small_recipe())
    with two_nodes(TOKEN) as (cluster, environment):
        process = train(store.uri, elastic, "vae", environment)
        wait_for_checkpoint(process, store)
        assert cluster.stdin
        cluster.stdin.write(f"{loss}\n")
        cluster.stdin.flush()
        if loss != "kill":
            wait_for_hurried_checkpoint(process, store, every=50)
            cluster.stdin.write("kill\n")  # as the cloud does
            cluster.stdin.flush()
        out = finished(process)
    assert "resumed at step" in out and ("about to go" in out) == (loss != "kill"), out
    assert "train vae: on CPUs, as the cluster has no GPU now" in out
    alone = open_store(f"file://{tmp_path}/alone")
    recipe = small_recipe(*elastic[3:])
    run = launch.train(alone, recipe, "vae", ingest(alone, recipe), Settings.from_environment(), print)
    found = load_safetensors(weights_of(store, out))
    wanted = load_safetensors(alone.get(f"{run.ref}/model.safetensors"))
    away = sum((found[name] - wanted[name]).double().square().sum() for name in wanted) ** 0.5
    assert away < 1e-6 * sum(tensor.double().square().sum() for tensor in wanted.values()) ** 0.5


def test_gpus_that_a_cluster_may_get_are_waited_for_and_those_of_this_machine_are_not(tmp_path: Path) -> None:
    on_gpus = ["cluster.launcher=ray", "cluster.workers=2", "cluster.device=cuda"]
    store = open_store(f"file://{tmp_path}/gpus")
    ingest(store, small_recipe())
    with two_nodes({"RAY_AUTH_MODE": "disabled"}) as (_, environment):  # a cluster that asks for no token, too
        # In a home of its own: Ray would take the token that an earlier cluster has left in the user's.
        process = train(store.uri, on_gpus, "vae", {**environment, "HOME": str(tmp_path)})
        assert process.stdout
        assert process.stdout.readline() == "train vae: waits for 2 GPUs; 0 are free now\n"
        process.kill()
        process.communicate()
    cluster = small_recipe(*on_gpus).cluster
    with pytest.raises(RecipeError, match=r"expected at most 1 GPUs \(this machine's\), got workers 2 = 2; lower it"):
        launch._check_size(cluster, True, {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(RecipeError, match=r"expected at most 1 CPUs .* got workers 2 x cpus_per_worker 1 = 2; lower"):
        launch._check_size(cluster, True, {"CPU": 1.0, "GPU": 8.0})


def wait_for_hurried_checkpoint(process: subprocess.Popen[str], store: Store, every: int) -> None:
    """Until there is one between two that are due: what a drain asks for."""
    deadline = time.monotonic() + 50
    while process.poll() is None and time.monotonic() < deadline:
        keys = [entry.key for entry in store.list("runs/") if entry.key.endswith("checkpoint.json")]
        if any(int(key.split("/")[-2]) % every for key in keys):
            return
        time.sleep(0.1)


def kill_a_worker(process: subprocess.Popen[str], store: Store) -> None:
    """Kill -9 one training worker of the process's Ray cluster once a checkpoint is committed."""
    wait_for_checkpoint(process, store)
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in child.name()
    ]
    workers = workers or [
        found
        for found in psutil.process_iter()
        if "RayTrainWorker" in " ".join(found.cmdline()) and process.pid in _parents(found)
    ]
    assert workers
    workers[0].send_signal(signal.SIGKILL)


def _parents(process: psutil.Process) -> list[int]:
    return [parent.pid for parent in process.parents()]


def test_a_damaged_shard_ends_the_run_at_once_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))  # other tests' cache has the shard, sound
    store = open_store(f"file://{tmp_path}/store")
    dataset = ingest(store, small_recipe())
    shard = next(shard for shard in dataset.shards if shard.split == "train")
    key = dataset.key_of(shard)
    store.put(key, store.get(key)[:-512])
    process = train(store.uri, [*ON_RAY, "cluster.engine=torch", "cluster.zero=0"])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    said = f"IntegrityError: {store.uri}/{key}: expected {shard.bytes:,} bytes, got {shard.bytes - 512:,}; "
    assert said + f"run `atelier repair {store.uri}/{dataset.ref}`" in err.strip().splitlines()[-1]
    images = f"train gan: {dataset.splits['train']:,} images in"
    assert len([line for line in out.splitlines() if line.startswith(images)]) == 1  # said once an attempt


def test_more_workers_than_the_machine_has_cpus_is_the_users_mistake(digits: Digits) -> None:
    many = ["cluster.workers=512", "models.gan.batch_size=512", "models.vae.batch_size=512"]
    process = train(digits.store.uri, ["cluster.launcher=ray", "cluster.engine=torch", *many])
    _, err = process.communicate(timeout=120)
    assert "RecipeError: cluster: expected at most" in err and "got workers 512" in err


def test_a_finished_run_is_not_trained_again(digits: Digits) -> None:
    recipe = small_recipe("models.gan.seed=5")
    first = launch.train(digits.store, recipe, "gan", digits.dataset, Settings.from_environment(), print)
    said: list[str] = []
    again = launch.train(digits.store, recipe, "gan", digits.dataset, Settings.from_environment(), said.append)
    assert again == first and said == [] and isinstance(again, Run)
