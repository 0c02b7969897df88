"""`http(s)://host/folder`: the objects under a folder that any static web server shows, to read only.

Every answer is bounded: what was asked for is read and no more, over at most `MAX_REDIRECTS` redirects, none of them
from https to http. A web server lists no folder, so what needs a listing says so. Opened by `pipeline.store`; the
standard library only, which is imported in half the time of an HTTP client of its own.
"""

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import quote, urlsplit

from pipeline.errors import NotFound, StoreError, StoreRefused
from pipeline.objects import Entry, Store, check_key, check_range

MAX_WHOLE_BYTES = 64 << 20  # of an object that is asked for whole: a record
MAX_REDIRECTS = 5
TIMEOUT_SECONDS = 30.0  # of a connection, and of each read
RETRY_WAITS_SECONDS = (0.2, 1.0)
READ_BYTES = 1 << 20
_URI = re.compile(r"https?://[^/?#@\s]+(?:/[^?#\s]*)?")  # no query, no password that an error would show


class WebStore(Store):
    """Objects to read over HTTP."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    @staticmethod
    def serves(uri: str) -> bool:
        """Whether a URI names such a store."""
        return bool(_URI.fullmatch(uri))

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        data, headers = self._read(key, MAX_WHOLE_BYTES + 1)
        if len(data) > MAX_WHOLE_BYTES:
            raise StoreError(f"{self.uri}/{key}: expected at most {MAX_WHOLE_BYTES:,} bytes, got more")
        return data, headers.get("ETag", "").strip('"')

    def get_range(self, key: str, start: int, length: int) -> bytes:
        check_range(start, length)
        return self._read(key, length, start)[0]

    def stat(self, key: str) -> Entry:
        _, headers = self._read(key, 0)
        size, modified = headers.get("Content-Length", "-1"), headers.get("Last-Modified")
        seconds = parsedate_to_datetime(modified).timestamp() if modified else 0.0
        return Entry(key, int(size), headers.get("ETag", "").strip('"'), seconds)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        raise StoreRefused(
            f"{self.uri}/{prefix}: expected a store that lists its objects, got a web server, which does not; "
            "use the store's own URI, s3:// or file://"
        )

    def put(self, key: str, data: bytes | Path) -> str:
        self._refuse(key)

    def create(self, key: str, data: bytes) -> str:
        self._refuse(key)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        self._refuse(key)

    def delete(self, key: str) -> None:
        self._refuse(key)

    def _refuse(self, key: str) -> NoReturn:
        raise StoreRefused(
            f"{self.uri}/{key}: expected a store to write to, got a web server, which is read only; "
            "use the store's own URI, s3:// or file://"
        )

    def _read(self, key: str, most: int, start: int = 0) -> tuple[bytes, dict[str, str]]:
        """At most so many bytes of an object, and the answer's headers; 0 asks for those alone."""
        url = f"{self.uri}/{quote(check_key(key))}"
        for wait_seconds in (*RETRY_WAITS_SECONDS, None):
            try:
                return _fetch(url, most, start)
            except urllib.error.HTTPError as error:
                if error.code < 500 or wait_seconds is None:
                    raise _explained(error, f"{self.uri}/{key}") from None
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                if wait_seconds is None:
                    reason = getattr(error, "reason", None) or error
                    raise StoreError(
                        f"{self.uri}/{key}: {' '.join(str(reason).split()) or type(error).__name__}; is the address "
                        "right, and does the server answer?"
                    ) from None
            time.sleep(wait_seconds)
        raise AssertionError("unreachable")


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """As the base, but to HTTP alone and never from https to http."""
        schemes = ("https",) if urlsplit(req.full_url).scheme == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in schemes:
            raise urllib.error.HTTPError(newurl, code, f"a redirect from {req.full_url}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, most: int, start: int) -> tuple[bytes, dict[str, str]]:
    """One request. Raises HTTPError, OSError, HTTPException."""
    request = urllib.request.Request(url, method="GET" if most else "HEAD")  # noqa: S310 - http(s) by WebStore.serves
    request.add_header("Cache-Control", "no-cache")  # a proxy must not hide that a release was retracted
    if start or most > MAX_WHOLE_BYTES:
        request.add_header("Range", f"bytes={start}-{start + most - 1}")
    opener = urllib.request.build_opener(_Redirects)
    try:
        answer = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the range begins past the object's end
            return b"", {}
        raise
    with answer:
        if answer.status != 206:  # a server that knows no ranges sends all
            _read_bounded(answer, start)
        return _read_bounded(answer, most), dict(answer.headers.items())


def _read_bounded(answer: Any, most: int) -> bytes:
    """Up to so many bytes. Raises HTTPException where the connection ends before what the server announced."""
    parts, left = [], most
    while left and (part := answer.read(min(left, READ_BYTES))):
        parts.append(part)
        left -= len(part)
    if left and answer.length:  # what is still to come by Content-Length
        raise http.client.IncompleteRead(b"".join(parts), answer.length)
    return b"".join(parts)


def _explained(error: urllib.error.HTTPError, where: str) -> Exception:
    if error.code in (404, 410):
        return NotFound(f"{where}: no object there")
    if error.code in (401, 403):
        return StoreRefused(f"{where}: the server answered {error.code}; it does not let you read this")
    if 300 <= error.code < 400:
        return StoreRefused(
            f"{where}: expected at most {MAX_REDIRECTS} redirects, to HTTP and never from https to http, got another, "
            f"to {error.url}"
        )
    return StoreError(f"{where}: the server answered {error.code} {error.reason}; try again")
