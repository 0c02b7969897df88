"""A web server for the gallery, on loopback: any store's pages and releases, read-only.

What it hands out are the objects under `gallery/` and `releases/` and nothing else of the store, to requests that name
this machine: a page of another site that lets its own name point here (DNS rebinding) gets nothing.
"""

import mimetypes
import posixpath
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from pipeline.errors import AtelierError, NotFound, UserError
from pipeline.pages.gallery import HOME
from pipeline.store import Store

ADDRESS = "127.0.0.1"
SERVED = ("gallery/", "releases/")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".jsonl": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
# What is no page of ours (a release's own files) may do nothing at all in a browser.
INERT = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; sandbox"


def type_of(path: str) -> tuple[str, bool]:
    """A file's media type, and whether a browser shows it rather than saves it."""
    suffix = posixpath.splitext(path)[1]
    if suffix in TYPES:
        return TYPES[suffix], True
    return mimetypes.types_map.get(suffix, "application/octet-stream"), False


class GalleryServer(ThreadingHTTPServer):
    """Serves a store's gallery until it is shut down."""

    daemon_threads = True

    def __init__(self, store: Store, port: int) -> None:
        """Listen; port 0 takes a free one. Raises UserError where the port is taken."""
        self.store = store
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise UserError(f"--port: expected a free port of {ADDRESS}, got {port}: {error.strerror}") from None

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://{ADDRESS}:{self.server_port}/{HOME}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GalleryServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        """A line for each request would hide the address."""

    def _answer(self, *, body: bool) -> None:
        if not self._for_us():
            self._send(HTTPStatus.FORBIDDEN, b"expected a request to 127.0.0.1 or localhost\n", body=body)
            return
        path = unquote(urlsplit(self.path).path).lstrip("/")
        if path in ("", "gallery", "gallery/"):
            self._redirect()
            return
        if not path.startswith(SERVED) or posixpath.normpath(path) != path:
            self._send(HTTPStatus.NOT_FOUND, b"no page there\n", body=body)
            return
        try:
            data, etag = self.server.store.get_with_etag(path)
        except NotFound:
            self._send(HTTPStatus.NOT_FOUND, b"no page there\n", body=body)
        except AtelierError as error:
            self._send(HTTPStatus.BAD_GATEWAY, f"{error}\n".encode(), body=body)
        else:
            self._object(path, data, f'"{etag}"', body=body)

    def _for_us(self) -> bool:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return host in (ADDRESS, "localhost")

    def _redirect(self) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", f"/{HOME}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _object(self, path: str, data: bytes, etag: str, *, body: bool) -> None:
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if not path.startswith("gallery/") and not path.endswith("/report.html"):
            headers["Content-Security-Policy"] = INERT
        if self.headers.get("If-None-Match") == etag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", body=False, headers=headers)
            return
        self._send(HTTPStatus.OK, data, body=body, kind=type_of(path)[0], headers=headers)

    def _send(
        self,
        status: HTTPStatus,
        data: bytes,
        *,
        body: bool,
        kind: str = "text/plain; charset=utf-8",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
