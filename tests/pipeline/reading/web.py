"""A real HTTP server on loopback whose answers a test states, with ranges, redirects and broken transfers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What the server answers by path, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)  # given out first
    cuts: dict[str, list[int]] = field(default_factory=dict)  # bytes after which a transfer breaks, one an answer
    stated: dict[str, int] = field(default_factory=dict)  # a Content-Length that lies
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and range


@contextmanager
def serving() -> Iterator[Web]:
    """A server for the block."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(web, self)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(web: Web, handler: BaseHTTPRequestHandler) -> None:
    path, byte_range = handler.path, handler.headers.get("Range")
    web.asked.append((path, byte_range))
    if web.statuses.get(path):
        handler.send_error(web.statuses[path].pop(0))
        return
    if path in web.redirects:
        handler.send_response(302)
        handler.send_header("Location", web.redirects[path])
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    if path not in web.files:
        handler.send_error(404)
        return
    data = web.files[path]
    start = int(byte_range.removeprefix("bytes=").removesuffix("-")) if byte_range else 0
    handler.send_response(206 if byte_range else 200)
    if byte_range:
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    handler.send_header("Content-Length", str(web.stated.get(path, len(data) - start)))
    handler.end_headers()
    body = data[start:]
    if web.cuts.get(path):
        body = body[: web.cuts[path].pop(0)]
        handler.close_connection = True
    handler.wfile.write(body)
