"""Links from a task to what it is about. Airflow asks for them where a task ends, and keeps them as XComs."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
from airflow.sdk import BaseOperatorLink
from airflow.sdk.bases.xcom import BaseXCom

from pipeline.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


def browse_url(uri: str, endpoint: str | None) -> str:
    """Where a person looks into a folder of the store: the server's listing of it, or AWS's console."""
    scheme, _, path = uri.partition("://")
    if scheme != "s3":
        return uri
    bucket, _, key = path.partition("/")
    if endpoint:
        return f"{endpoint.rstrip('/')}/{bucket}?list-type=2&prefix={quote(key + '/')}"
    return f"https://s3.console.aws.amazon.com/s3/buckets/{bucket}?prefix={quote(key + '/')}"


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
    """The folder of the record that the task made: a dataset, an evaluation, a sample set."""

    name: str = "Record"
    folder: str = ""

    def get_link(self, operator: Any, *, ti_key: "TaskInstanceKey") -> str:
        uri = _kept(ti_key, BaseXCom.XCOM_RETURN_KEY)
        return browse_url(f"{uri}{self.folder}", Settings.from_environment().s3_endpoint) if uri else ""


@attrs.define(frozen=True)
class TensorBoardLink(RecordLink):
    """The folder of a run's event files, for `tensorboard --logdir`."""

    name: str = "TensorBoard files"
    folder: str = "/tensorboard"


@attrs.define(frozen=True)
class ReleaseLink(RecordLink):
    """The folder of a release, with its card and report."""

    name: str = "Release report"
