"""Every hour: shows what garbage the store holds.

Garbage is what `atelier gc` says it is; it is deleted only in a run that is started with the parameter `delete`. What a
live Ray job was given is never garbage.
"""

from typing import Any

from airflow.sdk import Param, dag, task

from dags.ray_job import jobs_client

PARAMS = {
    "delete": Param(False, type="boolean", description="Delete the garbage; else it is only listed in the log"),
    "days": Param(30, type="number", minimum=1, description="Keep what was written to in the last days"),
    "store": Param(None, type=["null", "string"], description="URI of the store; empty: ATELIER_STORE"),
}


@dag(schedule="@hourly", catchup=False, max_active_runs=1, tags=["atelier"], params=PARAMS, doc_md=__doc__)
def housekeeping() -> None:
    """One task."""

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

    collect_garbage()


housekeeping()
