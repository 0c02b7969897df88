"""Every five minutes: stops Ray jobs whose Airflow task is gone.

A trigger's `on_kill` stops the job of a task that somebody marks or clears; it does not run before the triggerer has
begun to wait, where the triggerer is down or died, or where the deferral timed out. Those jobs are found here, by the
metadata that the operator gave them. It costs one request to Ray, and one to Airflow for each job that is not finished.
"""

from typing import Any

from airflow.sdk import dag, task

from dags.ray_job import airflow_name, jobs_client

ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}


# Not paused where DAGs begin paused: a job that nobody stops holds its GPUs.
@dag(
    schedule="*/5 * * * *",
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    tags=["atelier"],
    doc_md=__doc__,
)
def orphans() -> None:
    """One task."""

    @task
    def stop_orphans(ti: Any = None) -> list[str]:
        """Stop the jobs that no live task waits for; gives their ids."""
        stopped = []
        with jobs_client() as client:
            for job in client.list():
                if job.metadata.get("airflow") != airflow_name() or job.finished:
                    continue
                if _has_ended(ti, job.metadata):
                    client.stop(job.id)
                    stopped.append(job.id)
        return stopped

    stop_orphans()


def _has_ended(ti: Any, owner: Any) -> bool:
    """Whether the task that a job belongs to has ended, or is unknown. One without a state waits for its turn."""
    map_index = int(owner["map_index"])
    states = ti.get_task_states(
        dag_id=owner["dag_id"], map_index=map_index, task_ids=[owner["task_id"]], run_ids=[owner["run_id"]]
    )
    of_run = states.get(owner["run_id"], {})
    return not of_run or all(state in ENDED for state in of_run.values())


orphans()
