"""One function over many arguments, in threads or as Ray tasks; a task that dies is run again."""

import os
import signal
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.ingest import ingest
from pipeline.sections import ClusterSpec
from pipeline.settings import Settings
from pipeline.store import open_store
from pipeline.tasks import RAY_PAYS_SECONDS, pool
from tests.pipeline.test_ingest import contents, of
from tests.pipeline.test_ingest_killed import local, many


def doubled(number: int) -> int:
    return 2 * number


def process_of(_: int) -> int:
    return os.getpid()


def fails(number: int) -> int:
    raise SourceError(f"expected another number, got {number}")


def dies_once(folder: Path) -> int:
    """Ends its process the first time."""
    try:
        (folder / "was-here").touch(exist_ok=False)
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_little_work_is_done_in_this_process() -> None:
    with pool(ClusterSpec(), 1.0, 2, Settings.from_environment(), print) as run:
        assert sorted(run(doubled, range(50))) == [2 * number for number in range(50)]
        assert set(run(process_of, range(50))) == {os.getpid()}


def test_an_error_ends_the_whole() -> None:
    with (
        pool(ClusterSpec(), 1.0, 2, Settings.from_environment(), print) as run,
        pytest.raises(SourceError, match="expected another number"),
    ):
        list(run(fails, range(3)))


@pytest.mark.stack
def test_on_ray_a_task_that_dies_is_run_again_and_errors_keep_their_line(tmp_path: Path) -> None:
    with pool(ClusterSpec(), RAY_PAYS_SECONDS, 2, Settings.from_environment(), print) as run:
        assert sorted(run(doubled, range(100))) == [2 * number for number in range(100)]
        assert next(iter(run(dies_once, [tmp_path]))) not in (0, os.getpid())
        with pytest.raises(SourceError, match=r"^expected another number, got 1$"):
            list(run(fails, [1]))


@pytest.mark.stack
def test_an_ingest_on_ray_gives_the_dataset_of_one_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.datasets.parts.PART_IMAGES", 100)
    monkeypatch.setattr("pipeline.tasks.RAY_PAYS_SECONDS", 0)
    recipe = of(many(tmp_path / "raw", 1200), channels=3)
    on_ray, here = (open_store(f"file://{tmp_path}/{name}") for name in ("ray", "here"))
    said: list[str] = []
    ingest(on_ray, recipe, say=said.append)
    assert said[0].startswith("tasks on Ray, ")
    ingest(here, local(recipe))
    assert contents(on_ray) == contents(here)
