"""Every hour: stops Ray jobs whose Airflow task is gone, and shows what garbage the store holds.

A trigger's `on_kill` stops the job of a task that somebody marks or clears; it does not run where the triggerer died,
or where the deferral timed out. Those jobs are found here, by the metadata that the operator gave them.

Garbage is what `atelier gc` says it is; it is deleted only in a run that is started with the parameter `delete`. What a
live Ray job was given is never garbage.
"""

from typing import Any

from airflow.sdk import Param, dag, task

from dags.ray_job import airflow_name, jobs_client

ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}
PARAMS = {
    "delete": Param(False, type="boolean", description="Delete the garbage; else it is only listed in the log"),
    "days": Param(30, type="number", minimum=1, description="Keep what was written to in the last days"),
    "store": Param(None, type=["null", "string"], description="URI of the store; empty: ATELIER_STORE"),
}


@dag(schedule="@hourly", catchup=False, max_active_runs=1, tags=["atelier"], params=PARAMS, doc_md=__doc__)
def housekeeping() -> None:
    """Two tasks that do not depend on each other."""

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

    @task
    def collect_garbage(params: Any = None) -> dict[str, Any]:
        """List, or delete, the records that nobody needs; gives how much it was."""
        from pipeline import gc
        from pipeline.settings import Settings
        from pipeline.store import open_store

        with jobs_client() as client:  # of any Airflow: a job that cannot be asked for might need anything
            needed = {ref for job in client.list() if not job.finished for ref in gc.refs_in(job.entrypoint)}
        uri = params["store"] or Settings.from_environment().store
        if uri is None:
            return {"skipped": "no store: set ATELIER_STORE, or start the run with the parameter `store`"}
        garbage = gc.collect(open_store(uri), params["days"], needed, delete=params["delete"])
        for one in garbage:
            print(f"{one.ref}  {one.objects:,} objects, {one.bytes:,} bytes")
        return {"deleted": params["delete"], **gc.total(garbage)}

    stop_orphans()
    collect_garbage()


def _has_ended(ti: Any, owner: Any) -> bool:
    """Whether the task that a job belongs to has ended, or is unknown. One without a state waits for its turn."""
    map_index = int(owner["map_index"])
    states = ti.get_task_states(
        dag_id=owner["dag_id"], map_index=map_index, task_ids=[owner["task_id"]], run_ids=[owner["run_id"]]
    )
    of_run = states.get(owner["run_id"], {})
    return not of_run or all(state in ENDED for state in of_run.values())


housekeeping()
