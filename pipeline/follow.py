"""Run a recipe in Airflow and watch it: trigger `<name>_dataset`, follow it, then the `<name>_models` run it starts.

Airflow is asked over its REST API for runs, tasks and XComs, Ray over its Jobs API for the progress of running jobs. On
a terminal a table is redrawn in place; elsewhere there is a line for each change of state, and progress now and then.
Leaving (Ctrl-C) ends the watching; the runs go on in Airflow.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline import stack
from pipeline.airflow_client import AirflowClient, StageView
from pipeline.artifacts import digest_of
from pipeline.errors import AtelierError, RecipeError
from pipeline.jobs import JobsClient, JobsError, own_lines
from pipeline.pools import make_pools
from pipeline.recipe import Recipe, load_recipe, recipe_files
from pipeline.settings import Settings, update_environment
from pipeline.store import Store, open_store

POLL_SECONDS = 1.0
PROGRESS_SECONDS = 10.0  # between two progress lines of a task, without a terminal
ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}
STYLES = {
    "success": "green",
    "failed": "red",
    "upstream_failed": "red",
    "running": "cyan",
    "up_for_retry": "yellow",
}
_COUNT = re.compile(r"\b\d[\d,]*/\d[\d,]*\b")
_WORKER = re.compile(r"^\([^)]*pid=[^)]*\)\s*")


@dataclass(frozen=True)
class FollowResult:
    """What the runs made: URIs by task (`ingest`, `vae.train` ...), and how long each task took."""

    uris: Mapping[str, str]
    seconds: Mapping[str, float]
    notes: Mapping[str, str]
    runs: tuple[str, ...]  # URLs of the two runs in Airflow


@contextmanager
def run_on_airflow(settings: Settings, recipe: Recipe, console: Console) -> Iterator[tuple[Store, Mapping[str, float]]]:
    """Run a recipe on the embedded stack; gives the stack's store, and the seconds of each stage.

    The stack is started for it and stopped at the end, unless it was up already.
    """
    home = settings.home
    earlier = stack.state(home)
    stays_up = earlier is not None and stack.is_up(earlier) and earlier.airflow is not None
    with console.status("starting the stack") as status:

        def say(line: str) -> None:
            status.update(line)
            if not console.is_terminal:
                console.print(line, markup=False, soft_wrap=True)

        running = stack.up(home, say=say)
        hand_over(recipe, home, running.recipe_folders)
    try:
        console.print(stack.describe(running), markup=False, soft_wrap=True)
        result = follow(running, recipe, console)
        update_environment(running.environment())
        yield open_store(running.environment()["ATELIER_STORE"]), result.seconds
    finally:
        if not stays_up:
            stack.down(home)


def hand_over(recipe: Recipe, home: Path, folders: Sequence[Path]) -> None:
    """See to it that the stack's Airflow reads this very recipe, which may come from elsewhere or have overrides.

    Of two files of the same name Airflow reads the one in the later folder, and the stack's own is the last.
    """
    own = stack.recipes_folder(home)
    own.mkdir(exist_ok=True)
    for file in own.glob("*.yaml"):
        if _name_in(file) in {recipe.name, None}:
            file.unlink()
    files = {file.name: file for file in recipe_files(folders)}
    same = next((file for file in files.values() if _name_in(file) == recipe.name), None)
    if same is None or load_recipe(str(same)).to_json() != recipe.to_json():
        (own / (same.name if same else f"{recipe.name}.yaml")).write_text(recipe.to_json() + "\n")


def _name_in(file: Path) -> str | None:
    """The name of the recipe in a file; None where there is no valid one."""
    try:
        return load_recipe(str(file)).name
    except RecipeError:
        return None


def follow(running: stack.StackState, recipe: Recipe, console: Console) -> FollowResult:
    """Run the recipe's DAGs to their end. Raises AtelierError (UserError for a mistake) with a failed task's error."""
    assert running.airflow is not None and running.ray is not None
    dags = [f"{recipe.name}_dataset", f"{recipe.name}_models"]
    with AirflowClient(running.airflow) as airflow, JobsClient(running.ray.dashboard, running.ray.token) as jobs:
        with console.status("waiting for Airflow to read the recipe"):
            for dag_id in dags:
                airflow.wait_for_dag(dag_id, digest_of(recipe.to_json()))
        for line in make_pools(airflow, [recipe]):
            console.print(line, markup=False, soft_wrap=True)
        runs = [airflow.trigger(dags[0])]
        watch = _Watch(airflow, jobs, console, tuple(recipe.models))
        with watch.shown():
            watch.to_the_end(dags[0], runs[0])
            runs.append(airflow.run_started_by(dags[0], runs[0], dags[1]))
            watch.to_the_end(dags[1], runs[1])
        return watch.result(tuple(airflow.page(dag_id, run_id) for dag_id, run_id in zip(dags, runs, strict=True)))


@dataclass
class _Watch:
    """The stages seen so far, and how they are shown."""

    airflow: AirflowClient
    jobs: JobsClient
    console: Console
    models: tuple[str, ...] = ()
    views: dict[tuple[str, str], StageView] = field(default_factory=dict)
    noted_at: dict[str, float] = field(default_factory=dict)
    live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Redraw a table while the block runs, on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            console=self.console, get_renderable=lambda: stage_table(self.views.values()), refresh_per_second=4
        ) as live:
            self.live = live
            yield

    def to_the_end(self, dag_id: str, run_id: str) -> None:
        """Watch a run until it has ended. Raises the error of its first failed task."""
        while True:
            state = self.airflow.run_state(dag_id, run_id)
            stages = self.airflow.stages(dag_id, run_id, self.models)
            self._show(stages, self._notes(stages))
            if state in {"success", "failed"}:
                break
            time.sleep(POLL_SECONDS)
        failed = [stage for stage in stages if stage.state == "failed"]
        for stage in failed[1:]:
            self.console.print(f"error: {self.airflow.error_of(stage)}", markup=False, soft_wrap=True, style="red")
        if failed:
            raise self.airflow.error_of(failed[0])
        if state == "failed":
            raise AtelierError(f"{dag_id} failed; see {self.airflow.page(dag_id, run_id)}")

    def result(self, pages: tuple[str, ...]) -> FollowResult:
        """What came of the stages."""
        stages = list(self.views.values())
        values = {stage.name: self.airflow.result_of(stage) for stage in stages}
        return FollowResult(
            uris={name: value for name, value in values.items() if isinstance(value, str)},
            seconds={stage.name: stage.seconds for stage in stages},
            notes={stage.name: stage.note for stage in stages},
            runs=pages,
        )

    def _notes(self, stages: Sequence[StageView]) -> dict[str, str]:
        """The newest progress line of each task that is busy, or that has ended since the last look."""
        last = {stage.name: view.state for stage in stages if (view := self.views.get((stage.dag_id, stage.name)))}
        wanted = {
            stage.name
            for stage in stages
            if stage.state == "running" or (stage.state in ENDED and last.get(stage.name) not in ENDED)
        }
        if not wanted:
            return {}
        try:
            of_run = [job for job in self.jobs.list() if job.metadata.get("run_id") == stages[0].run_id]
            names = {(stage.task_id, str(stage.map_index)): stage.name for stage in stages}
            newest = {
                names.get((job.metadata["task_id"], job.metadata["map_index"]), ""): job.id
                for job in sorted(of_run, key=lambda job: job.attempt)
            }
            logs = {task: self.jobs.log(newest[task]) for task in sorted(wanted & newest.keys())}
        except JobsError:
            return {}  # progress is a courtesy: a Ray that does not answer is the operator's concern
        ended = {stage.name for stage in stages if stage.state in ENDED}
        return {task: progress_of(log, ended=task in ended) for task, log in logs.items()}

    def _show(self, stages: Sequence[StageView], notes: Mapping[str, str]) -> None:
        for stage in stages:
            key = (stage.dag_id, stage.name)
            old = self.views.get(key)
            note = notes.get(stage.name) or (old.note if old else "")
            waits = stage.state == "waiting" and old is not None and old.state == "running"
            view = replace(
                stage, note=note, state="running" if waits else stage.state
            )  # its job is done, its turn comes
            self.views[key] = view
            if self.live is None:
                self._print(view, old)

    def _print(self, view: StageView, old: StageView | None) -> None:
        """One line for a change of state that matters, or for progress that is due."""
        seconds = f" after {view.seconds:.0f} s" if view.state in ENDED else ""
        now = time.monotonic()
        if view.state != (old.state if old else "") and view.state not in {"", "waiting"}:
            note = f": {view.note}" if view.note and view.state in ENDED else ""
            self.console.print(f"{view.name}: {view.state}{seconds}{note}", markup=False, soft_wrap=True)
        elif view.state == "running" and old and view.note and view.note != old.note:
            if now - self.noted_at.get(view.name, 0.0) < PROGRESS_SECONDS:
                self.views[view.dag_id, view.name] = old  # so that it is still news when it is due
                return
            self.noted_at[view.name] = now
            self.console.print(f"{view.name}: {view.note}", markup=False, soft_wrap=True)


def progress_of(log: str, *, ended: bool = False) -> str:
    """The newest line of a job's log that counts something (`step 300/1500`), or its last words where it has ended."""
    lines = [_WORKER.sub("", line) for line in own_lines(log)[-200:] if not line.startswith("{")]
    counting = [line for line in lines if _COUNT.search(line)]
    found = lines if ended else counting or lines
    return found[-1][:160] if found else ""


def stage_table(views: Iterable[StageView]) -> Table:
    """The live view: a row for each stage."""
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("progress", overflow="ellipsis", no_wrap=True, ratio=1)  # what is cut on a narrow terminal
    for view in views:
        seconds = f"{view.seconds:.0f}" if view.seconds else ""
        style = STYLES.get(view.state, "dim")
        table.add_row(view.name, f"[{style}]{view.state}[/]", seconds, view.note.replace("[", "\\["))
    return table
