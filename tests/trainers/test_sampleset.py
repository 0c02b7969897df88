"""A sample set is the same, byte for byte, for any number of workers: threads of this process, or Ray tasks."""

import pickle
from pathlib import Path

import pytest

from pipeline.artifacts import Run, SampleSet
from pipeline.sections import ClusterSpec
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from tests.trainers.conftest import Digits, small_recipe
from trainers import launch, sample, sampleset

COUNT = 23
SHARD = 5


@pytest.fixture(scope="module")
def run(digits: Digits) -> Run:
    return launch.train(digits.store, small_recipe(), "gan", digits.dataset, Settings.from_environment(), print)


def made_in(folder: Path, digits: Digits, run: Run, said: list[str] | None = None, **cluster: str) -> SampleSet:
    """The set, made in a fresh store that has nothing but the run."""
    store = open_store(f"file://{folder}")
    for name in (*(entry.name for entry in run.files), run.file_name):
        store.put(f"{run.ref}/{name}", digits.store.get(f"{run.ref}/{name}"))
    spec = ClusterSpec.model_validate({"launcher": "local", "engine": "torch", **cluster})
    return sampleset.sample_run(
        store, run, COUNT, 4, spec, Settings.from_environment(), (said if said is not None else []).append
    )


def contents(store: Store, made: SampleSet) -> dict[str, bytes]:
    return {entry.name: store.get(made.key_of(entry)) for entry in made.files}


def test_one_thread_or_two_write_the_same_bytes(
    tmp_path: Path, digits: Digits, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampleset, "SHARD_IMAGES", SHARD)
    found = []
    for cores in (1, 2):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        made = made_in(tmp_path / str(cores), digits, run)
        found.append((made, contents(open_store(f"file://{tmp_path}/{cores}"), made)))
    assert found[0] == found[1]
    assert [name for name in found[0][1] if name.endswith(".tar")] == [f"samples-{n:06d}.tar" for n in range(5)]


def test_a_shard_does_not_depend_on_what_was_made_before(
    tmp_path: Path, digits: Digits, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampleset, "SHARD_IMAGES", SHARD)
    made = made_in(tmp_path, digits, run)
    store = open_store(f"file://{tmp_path}")
    whole = contents(store, made)
    order = sampleset.Order(store.uri, run.ref, "again", 4, 1)
    for start in (15, 5):
        part = pickle.loads(pickle.dumps(sampleset.Part(order, range(start, start + SHARD))))  # noqa: S301 - as Ray
        sample.opened_here.cache_clear()  # as in a worker of its own
        rows, entry = sampleset.write_part(part)
        assert rows == part.rows and store.get(f"again/{entry.name}") == whole[entry.name]


@pytest.mark.stack
def test_ray_tasks_write_the_same_bytes(
    tmp_path: Path, digits: Digits, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = made_in(tmp_path / "here", digits, run)
    alone = contents(open_store(f"file://{tmp_path}/here"), here)
    monkeypatch.setattr("pipeline.tasks.RAY_PAYS_SECONDS", 0.0)
    said: list[str] = []
    made = made_in(tmp_path / "ray", digits, run, said, launcher="ray")
    assert said and said[0].startswith("tasks on Ray")
    assert made == here and contents(open_store(f"file://{tmp_path}/ray"), made) == alone
