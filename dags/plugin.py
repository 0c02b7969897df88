"""The plugin by which Airflow's api-server shows records and reports (`dags.record_pages`); an entry point of atelier.

Every component of Airflow loads it, each task's process too: so the pages themselves are loaded when one is asked for.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from dags.links import PREFIX

Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]
Asgi = Callable[[Any, Receive, Send], Awaitable[None]]


@functools.cache
def _pages() -> Asgi:
    from dags.record_pages import app

    return app


async def pages(scope: Any, receive: Receive, send: Send) -> None:
    """The ASGI application."""
    await _pages()(scope, receive, send)


class AtelierPlugin(AirflowPlugin):
    """What Airflow finds."""

    name = "atelier"
    fastapi_apps = [{"app": pages, "url_prefix": PREFIX, "name": "atelier"}]  # noqa: RUF012 - as Airflow reads it
