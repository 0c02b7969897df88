"""Links from a task to what it is about.

Airflow asks for them where a task ends, and keeps them as XComs for good: so none holds an address of the store, which
moves, or a signature, which expires. They lead to Airflow's own api-server (`dags.record_pages`).
"""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import attrs
from airflow.sdk import BaseOperatorLink
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.configuration import conf

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

PREFIX = "/atelier"  # of the pages, at the api-server


def base_path() -> str:
    """The path below which Airflow lies at its host; "" for the root."""
    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/")


def page_of(ti_key: "TaskInstanceKey", path: str = "") -> str:
    """The page of what a task made, or of a file of it: below the host by which a person sees Airflow."""
    parts = (ti_key.dag_id, ti_key.run_id, ti_key.task_id, str(ti_key.map_index))
    return f"{base_path()}{PREFIX}/{'/'.join(quote(part, safe='') for part in parts)}/{path}"


def _kept(ti_key: "TaskInstanceKey", key: str) -> str:
    """What a task's instance left under a key of its XComs; "" where it left nothing."""
    found = BaseXCom.get_one(
        key=key, dag_id=ti_key.dag_id, task_id=ti_key.task_id, run_id=ti_key.run_id, map_index=ti_key.map_index
    )
    return found if isinstance(found, str) else ""


@attrs.define(frozen=True)
class RayJobLink(BaseOperatorLink):
    """The page of the task's job in Ray's dashboard. The operator writes it once it has submitted the job."""

    name: str = "Ray job"

    def get_link(self, operator: Any, *, ti_key: "TaskInstanceKey") -> str:
        return _kept(ti_key, self.xcom_key)


@attrs.define(frozen=True)
class RecordLink(BaseOperatorLink):
    """The page of the record that the task made: a dataset, an evaluation, a sample set. None where it made none."""

    name: str = "Record"
    path: str = ""

    def get_link(self, operator: Any, *, ti_key: "TaskInstanceKey") -> str:
        return page_of(ti_key, self.path) if _kept(ti_key, BaseXCom.XCOM_RETURN_KEY) else ""


@attrs.define(frozen=True)
class TensorBoardLink(RecordLink):
    """The event files of a run, for `tensorboard --logdir`."""

    name: str = "TensorBoard files"
    path: str = "tensorboard/"


@attrs.define(frozen=True)
class ReleaseLink(RecordLink):
    """The report of a release, with its samples, figures and downloads."""

    name: str = "Release report"
    path: str = "report.html"
