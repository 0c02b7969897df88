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


def _returned(operator: Any, ti_key: "TaskInstanceKey") -> str:
    """The URI that a task returned, "" where it has none."""
    # Airflow's own worker asks, which has the run's database behind `XCom`; the task's instance is known by its key.
    found = BaseXCom.get_value(ti_key=ti_key, key="return_value")
    return found if isinstance(found, str) else ""


@attrs.define(frozen=True)
class RayJobLink(BaseOperatorLink):
    """The page of the task's job in Ray's dashboard. The operator writes it once it has submitted the job."""

    name: str = "Ray job"

    def get_link(self, operator: Any, *, ti_key: "TaskInstanceKey") -> str:
        return str(BaseXCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


@attrs.define(frozen=True)
class RecordLink(BaseOperatorLink):
    """The folder of the record that the task made: a dataset, an evaluation, a sample set."""

    name: str = "Record"
    folder: str = ""

    def get_link(self, operator: Any, *, ti_key: "TaskInstanceKey") -> str:
        uri = _returned(operator, ti_key)
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
