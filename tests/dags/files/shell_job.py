"""DAGs for tests: one Ray job whose shell command comes with the run."""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, Context

from dags.ray_job import RayJobOperator


class ShellJob(RayJobOperator):
    """The operator as it is, but for the command."""

    def command(self, context: Context) -> list[str]:
        return ["bash", "-c", self.options["command"]]


def shell_job(**options: Any) -> None:
    ShellJob(
        task_id="job",
        verb="shell",
        recipe_json="{}",
        options={"command": "{{ dag_run.conf['command'] }}"},
        deadline_seconds=120,
        **options,
    )


with DAG("shell_job", schedule=None, max_active_runs=4):
    shell_job(retries=1, retry_delay=timedelta(seconds=1), outlets=[Asset(name="shell", uri="memory://shell")])

with DAG("pooled_job", schedule=None, max_active_runs=4):
    shell_job(pool="one_gpu")
