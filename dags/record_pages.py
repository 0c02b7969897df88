"""What the links of a task open: the record that it made, and that record's files, served by Airflow's api-server.

    /atelier/DAG/RUN/TASK/MAP_INDEX/            the page of the record
    /atelier/DAG/RUN/TASK/MAP_INDEX/report.html   one of its files

A browser can often not reach the store, and has no key to it: the api-server has both. It hands out what the task
itself made and nothing else of the store, to people who may see the task's XComs, and needs no link that expires. The
files come from elsewhere than Airflow does: a browser treats them as a page of a site of its own.
"""

from collections.abc import Iterator
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

from dags.links import base_path
from pipeline.errors import AtelierError, NotFound, RecordError
from pipeline.pages.record import record_page
from pipeline.pages.render import REPORT
from pipeline.pages.serve import INERT, type_of
from pipeline.records import split_uri
from pipeline.store import Store, open_store

RETURNED = "return_value"  # the key under which Airflow keeps what a task returns
READ_BYTES = 8 << 20
# A report brings its own policy; it may run its scripts, but not as a page of Airflow's.
REPORTS = "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox allow-downloads"

app = FastAPI(openapi_url=None)


@app.get(
    "/{dag_id}/{run_id}/{task_id}/{map_index}/{path:path}",
    dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.XCOM))],
)
def show(dag_id: str, run_id: str, task_id: str, map_index: int, path: str) -> Response:
    """The page of what a task made, or of a folder below it, or one file."""
    uri = _returned(dag_id, run_id, task_id, map_index)
    root, ref = split_uri(uri)
    store = open_store(root)
    if not path or path.endswith("/"):
        return HTMLResponse(record_page(store, uri, path))
    return _file(store, f"{ref}/{path}")


def _returned(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """The URI that a task returned. Raises HTTPException where it returned none."""
    with create_session() as session:
        query = XComModel.get_many(key=RETURNED, run_id=run_id, dag_ids=dag_id, task_ids=task_id, map_indexes=map_index)
        value = session.scalar(query.with_only_columns(XComModel.value))
    if not isinstance(value, str):
        raise HTTPException(404, f"{dag_id}, run {run_id}: expected {task_id} to have made a record, it has made none")
    return value


def _file(store: Store, key: str) -> Response:
    size = store.stat(key).bytes
    kind, known = type_of(key)
    headers = {
        "Content-Length": str(size),
        "Content-Security-Policy": REPORTS if key.endswith(f"/{REPORT}") else INERT,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }
    if not known:
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(key.rpartition('/')[2])}"
    return StreamingResponse(_read(store, key, size), media_type=kind, headers=headers)


def _read(store: Store, key: str, size: int) -> Iterator[bytes]:
    """The object's bytes, some of them in memory at a time."""
    for start in range(0, size, READ_BYTES):
        yield store.get_range(key, start, min(READ_BYTES, size - start))


@app.exception_handler(401)
def _log_in(request: Request, _: Exception) -> Response:
    """A link may be opened where nobody is logged in: the login leads back to it."""
    return RedirectResponse(f"{base_path()}/api/v2/auth/login?next={quote(str(request.url), safe='')}")


@app.exception_handler(AtelierError)
def _error(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 404 if isinstance(error, NotFound | RecordError) else 502)
