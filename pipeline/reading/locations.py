"""Where a source's path leads: a local folder or file, `s3://bucket/prefix`, or a file or archive from the web.

    place = open_location("s3://bucket/flowers", None, "images")
    for file in place.files():          # in the order of the tree, lazily; Rejected for what can be no file
        data = place.read(file.address)
        with place.open(file.address) as stream: ...     # seekable

`https://` needs the field `sha256`. An archive (tar, tar.gz, tgz, zip) is unpacked into the folder of downloads on each
machine that reads it, and is then a folder; `https://host/flowers.zip#flowers/train` leads to a folder inside it. A
file of the source's own kind (`https://host/mnist.npz`) is used as it is.
"""

import re
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from pipeline.errors import SourceError, UserError
from pipeline.reading.archives import unpacked
from pipeline.reading.downloads import check_url, fetched
from pipeline.reading.places import Bucket, Folder, Location, scanned
from pipeline.settings import Settings
from pipeline.sources import SourceBase
from pipeline.store import open_store

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
SHA256 = re.compile(r"[0-9a-f]{64}")


class PathSource(SourceBase):
    """A source with a path."""

    what: ClassVar[str] = "files"  # what it looks for, in words
    endings: ClassVar[tuple[str, ...]] = ()  # of single files that it takes

    path: str = Field(min_length=1)
    sha256: str | None = Field(None, validate_default=True)  # of what an https:// path leads to

    @field_validator("path")
    @classmethod
    def _leads_somewhere(cls, path: str) -> str:
        if path.startswith("s3://"):
            try:
                open_store(path)
            except UserError:
                raise ValueError("expected s3://bucket or s3://bucket/prefix") from None
        elif "://" in path and (complaint := _complaint(path, (*ARCHIVES, *cls.endings))):
            raise ValueError(complaint)
        return path

    @field_validator("sha256")
    @classmethod
    def _goes_with_the_web(cls, sha256: str | None, info: ValidationInfo) -> str | None:
        on_web = "://" in info.data.get("path", "") and not info.data["path"].startswith("s3://")
        if on_web and (sha256 is None or not SHA256.fullmatch(sha256)):
            raise ValueError("expected 64 hex digits in lower case beside an https:// path (sha256sum FILE gives them)")
        if not on_web and sha256 is not None and "path" in info.data:
            raise ValueError("expected no sha256 beside a path that is not https://")
        return sha256

    @property
    def remote(self) -> bool:
        return self.location().remote

    def location(self) -> Location:
        """Where the path leads. Raises SourceError where nothing is there."""
        return open_location(self.path, self.sha256, self.what, self.endings)


def open_location(path: str, sha256: str | None, what: str, endings: tuple[str, ...] = ()) -> Location:
    """Where a path leads; `endings` are those of single files that it may name. Raises SourceError."""
    if path.startswith("s3://"):
        head, _, last = path.rstrip("/").rpartition("/")
        if last.lower().endswith(endings) and head != "s3:/":
            bucket = Bucket(head, path, last)
            if bucket.find(last):
                return bucket
        return Bucket(path, path)
    if "://" in path:
        return _from_web(path, str(sha256), endings)
    root = Path(path).expanduser()
    if root.is_file() and root.name.lower().endswith(endings):
        return Folder(root.parent, path, root.name)
    if not root.is_dir():
        one = f" or one file ({', '.join(endings)})" if endings else ""
        raise SourceError(f"expected a folder of {what}{one} at {path}, found none (seen from {Path.cwd()})")
    return Folder(root, path)


def _complaint(path: str, endings: tuple[str, ...]) -> str | None:
    """What is wrong with a path that is not a local one."""
    scheme = path.partition("://")[0]
    if scheme not in ("http", "https"):
        return f"expected a local path, s3://bucket/prefix, or https://host/FILE that ends in {', '.join(endings)}"
    try:
        check_url(path)
    except SourceError as error:
        return str(error).partition(", got ")[0]
    parts = urlsplit(path)
    if not parts.path.lower().endswith(endings):
        return f"expected a file that ends in {', '.join(endings)}"
    if parts.fragment and {"", ".", ".."} & set(parts.fragment.split("/")):
        return "expected a folder inside the archive after '#', such as #flowers/train"
    return None


def _from_web(path: str, sha256: str, endings: tuple[str, ...]) -> Location:
    """A file as it is, or what an archive holds, on this machine."""
    downloads = Settings.from_environment().home / "downloads"
    url, _, inside = path.partition("#")
    name = urlsplit(url).path.rpartition("/")[2]
    if name.lower().endswith(endings):
        file = fetched(url, sha256, downloads)
        return Folder(file.parent, path, file.name, sha256, name)
    root = unpacked(url, sha256, downloads)
    if not (root / inside).is_dir():
        there = ", ".join(scanned(str(root))[0][:5]) or "nothing"
        raise SourceError(f"{url}: expected a folder {inside} in the archive, found {there}; correct what follows '#'")
    return Folder(root / inside, path, seal=sha256)
