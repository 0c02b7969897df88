"""A store's folder behind a web server: the same objects, bounded, redirects within limits, nothing written."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline import webstore
from pipeline.errors import NotFound, StoreError, StoreRefused, UserError
from pipeline.store import open_store

OBJECT = bytes(range(256)) * 8


class Served(BaseHTTPRequestHandler):
    """Answers by the path: redirects, errors, bodies that end early or never."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        what, _, rest = self.path.lstrip("/").partition("/")
        if what == "around":
            self._moved(self.path)
        elif what == "hops":
            self._moved(f"/hops/{int(rest) - 1}" if int(rest) else "/whole")
        elif what == "to-file":
            self._moved("file:///etc/passwd")
        elif what == "to-ftp":
            self._moved("ftp://127.0.0.1/x")
        elif what.isdecimal():
            self.send_error(int(what))
        else:
            self._body(what)

    def _body(self, what: str) -> None:
        first = what == "flaky" and self.asked.count("/flaky") == 1
        self.send_response(200)
        if what != "endless":
            self.send_header("Content-Length", str(len(OBJECT)))
        self.end_headers()
        try:
            self.wfile.write(OBJECT[:100] if what == "short" or first else OBJECT)
            while what == "endless":
                self.wfile.write(OBJECT)
        except ConnectionError:  # the reader has had enough
            pass

    def _moved(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(webstore, "RETRY_WAITS_SECONDS", (0.0,))
    Served.asked.clear()
    with running(Served) as found:
        yield found


class running:  # noqa: N801 - reads as `with running(handler) as uri`
    """A server on loopback for as long as the block."""

    def __init__(self, handler: Any) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_folders_objects_are_those_of_its_web_server(tmp_path: Path) -> None:
    folder = open_store(f"file://{tmp_path}/out")
    folder.put("runs/a b%c/x.bin", OBJECT)
    with running(lambda *a: SimpleHTTPRequestHandler(*a, directory=str(tmp_path))) as uri:
        store = open_store(f"{uri}/out/")
        assert store.uri == f"{uri}/out" and store.get("runs/a b%c/x.bin") == OBJECT
        assert store.get_range("runs/a b%c/x.bin", 250, 10) == OBJECT[250:260]
        assert store.get_range("runs/a b%c/x.bin", len(OBJECT) - 3, 10) == OBJECT[-3:]
        assert store.stat("runs/a b%c/x.bin").bytes == len(OBJECT)
        with pytest.raises(NotFound, match=r"runs/none: no object there"):
            store.get("runs/none")


def test_no_more_is_read_than_was_asked_for(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(uri)
    assert store.get_range("endless", 0, 1000) == OBJECT[:1000]
    monkeypatch.setattr(webstore, "MAX_WHOLE_BYTES", 10_000)
    with pytest.raises(StoreError, match=r"endless: expected at most 10,000 bytes, got more$"):
        store.get("endless")


def test_what_broke_off_is_read_again_and_then_given_up(uri: str) -> None:
    assert open_store(uri).get("flaky") == OBJECT
    with pytest.raises(StoreError, match=r"short: IncompleteRead\(100 bytes read, 1948 more expected\)"):
        open_store(uri).get("short")
    with pytest.raises(StoreError, match=r"503: the server answered 503"):
        open_store(uri).get("503")
    assert Served.asked.count("/flaky") == Served.asked.count("/short") == Served.asked.count("/503") == 2


def test_redirects_are_followed_within_http_and_a_bound(uri: str) -> None:
    store = open_store(uri)
    assert store.get(f"hops/{webstore.MAX_REDIRECTS - 1}") == OBJECT
    for name in (f"hops/{webstore.MAX_REDIRECTS}", "around", "to-file", "to-ftp"):
        with pytest.raises(StoreRefused, match=rf"{name}: expected at most 5 redirects, to HTTP and never"):
            store.get(name)


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request = urllib.request.Request("https://a/x")
    with pytest.raises(urllib.error.HTTPError):
        webstore._Redirects().redirect_request(request, None, 302, "", {}, "http://a/x")  # type: ignore[arg-type]
    assert webstore._Redirects().redirect_request(request, None, 302, "", {}, "https://b/x")  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_read_is_told(uri: str, status: int) -> None:
    with pytest.raises(StoreRefused, match=f"the server answered {status}; it does not let you read this"):
        open_store(uri).get(str(status))


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webstore, "RETRY_WAITS_SECONDS", ())
    with running(Served) as uri:
        pass
    with pytest.raises(StoreError, match=r"x: .*Connection refused; is the address right"):
        open_store(uri).get("x")


def test_nothing_is_written_and_nothing_listed(uri: str) -> None:
    store = open_store(uri)
    with pytest.raises(StoreRefused, match="got a web server, which is read only"):
        store.put("a", b"")
    with pytest.raises(StoreRefused, match="read only"):
        store.create("a", b"")
    with pytest.raises(StoreRefused, match="read only"):
        store.replace("a", b"", "etag")
    with pytest.raises(StoreRefused, match="read only"):
        store.delete("a")
    with pytest.raises(StoreRefused, match="expected a store that lists its objects"):
        list(store.list("a"))
    assert Served.asked == []


@pytest.mark.parametrize("uri", ["http://", "http:///x", "https://user:secret@host/x", "http://host/x?key=1"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"store: expected s3://BUCKET.* https://HOST/FOLDER, got"):
        open_store(uri)
