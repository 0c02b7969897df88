"""Files from the web, fetched once by their SHA-256 into a folder of downloads.

    fetched("https://host/mnist.npz", sha256, settings.home / "downloads")         # <sha256>.download in it

A file appears there whole, by a rename, under a lock: several processes fetch it once, and a killed one leaves nothing
that is used. A broken transfer goes on where it stopped. `http://` is taken from loopback addresses only: what this
machine serves to itself.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import SourceError

if TYPE_CHECKING:
    import httpx

MAX_DOWNLOAD_BYTES = 256 << 30
KEPT_FREE_BYTES = 256 << 20  # of the disk
COPY_BYTES = 1 << 20
ATTEMPTS = 5
MAX_REDIRECTS = 5
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_url(url: str) -> str:
    """An address that may be fetched, unchanged. Raises SourceError."""
    try:
        parts = urlsplit(url)
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        raise SourceError(f"expected an address https://HOST/FILE, got {url!r}") from None
    plain = parts.scheme == "http" and parts.hostname in LOOPBACK
    if not (parts.scheme == "https" or plain) or not parts.hostname or not port_is_sound:
        raise SourceError(f"expected https://HOST/FILE (http:// on loopback only), got {url!r}")
    if "@" in parts.netloc:
        raise SourceError("expected an address without a password, which records would keep, got one with '@'")
    return url


def fetched(url: str, sha256: str, folder: Path) -> Path:
    """The file behind an address, fetched unless it is in the folder. Raises SourceError."""
    target = folder / f"{sha256}.download"
    with locked(folder, sha256):
        if not target.is_file():
            download(url, sha256, target)
    return target


@contextmanager
def locked(folder: Path, sha256: str) -> Iterator[None]:
    """Hold the lock of one download; what the file system says becomes a SourceError."""
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{sha256}.lock"):
            yield
    except OSError as error:
        raise SourceError(f"{folder}: expected a folder to keep downloads in, got {error}; free space there") from None


def download(url: str, sha256: str, target: Path) -> None:
    """Fetch into place once the SHA-256 is as given. A broken transfer goes on where it stopped."""
    import httpx

    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    trust_env = urlsplit(url).hostname not in LOOPBACK  # no proxy to this machine
    with httpx.Client(timeout=httpx.Timeout(60, connect=10), trust_env=trust_env) as client:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                resumed = _transfer(client, url, part)
            except httpx.HTTPError as error:
                if attempt == ATTEMPTS:
                    part.unlink(missing_ok=True)
                    raise SourceError(f"{url}: expected a file, got {error!r:.200} {ATTEMPTS} times") from None
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 416:
                    part.unlink(missing_ok=True)  # the server has no bytes after those that we have: begin anew
                time.sleep(0.2 * 2**attempt)
                continue
            except SourceError:
                part.unlink(missing_ok=True)
                raise
            with part.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found == sha256:
                part.replace(target)
                return
            part.unlink()
            if not resumed or attempt == ATTEMPTS:  # the file may have changed between two halves
                raise SourceError(f"{url}: expected SHA-256 {sha256}, got {found}; correct source.sha256 or the path")


def _transfer(client: "httpx.Client", url: str, part: Path) -> bool:
    """Append what is missing to the part; whether something was there before. Raises httpx.HTTPError to try again."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with _answer(client, url, headers) as reply:
        resumed = reply.status_code == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        most = min(MAX_DOWNLOAD_BYTES, have + free_bytes(part.parent))
        size = have * resumed
        stated = reply.headers.get("Content-Length", "0")
        if not stated.isdigit() or size + int(stated) > most:
            raise SourceError(f"{url}: expected at most {most:,} bytes (limit, or free disk), got {stated}")
        with part.open("ab" if resumed else "wb") as file:
            for data in reply.iter_raw(COPY_BYTES):
                size += len(data)
                if size > most:
                    raise SourceError(f"{url}: expected at most {most:,} bytes (limit, or free disk), got more")
                file.write(data)
    return resumed


@contextmanager
def _answer(client: "httpx.Client", url: str, headers: dict[str, str]) -> Iterator["httpx.Response"]:
    """The answer with the file, after redirects to allowed addresses only."""
    import httpx

    at = url
    scheme = urlsplit(url).scheme
    for _ in range(MAX_REDIRECTS + 1):
        with client.stream("GET", check_url(at), headers=headers) as reply:
            if reply.has_redirect_location:
                at = str(httpx.URL(at).join(reply.headers["Location"]))
                if urlsplit(at).scheme != scheme:  # down to http://, or to this machine
                    raise SourceError(f"{url}: expected redirects to {scheme}:// only, got one to {at}")
                continue
            if reply.status_code in (408, 416, 429) or reply.status_code >= 500:
                raise httpx.HTTPStatusError(f"status {reply.status_code}", request=reply.request, response=reply)
            if reply.status_code not in (200, 206):
                raise SourceError(f"{url}: expected a file, got status {reply.status_code}; correct the path")
            yield reply
            return
    raise SourceError(f"{url}: expected a file after at most {MAX_REDIRECTS} redirects, got another one to {at}")


def free_bytes(folder: Path) -> int:
    """What may be written to a folder's disk."""
    return max(shutil.disk_usage(folder).free - KEPT_FREE_BYTES, 0)
