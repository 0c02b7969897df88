"""The files of a release as a consumer reads them: bounded, checked against the manifest, kept on disk by digest.

    contents = Contents(store, release, CacheFolder.of(settings))
    model = contents.read("model.onnx")            # IntegrityError where it is not what the manifest states

A folder's files are read where they lie; what comes over a network is kept in the node's cache
(`pipeline.cachefolder`), where it is checked again each time. A disk that is full or read-only costs a fetch each time.
"""

import contextlib
import re

from pipeline.artifacts import FileEntry, Release, file_entry
from pipeline.cachefolder import CacheFolder
from pipeline.errors import IntegrityError, NotFound, RecordError
from pipeline.store import FileStore, Store

FORMAT = "file.v1"
MAX_FILE_BYTES = 16 << 30  # what a manifest may announce
REMEDY = "the release is not as it was published: take another, or ask whoever publishes it"
_SHA256 = re.compile("[0-9a-f]{64}")


class Contents:
    """The files of one release. Safe in threads."""

    def __init__(self, store: Store, release: Release, cache: CacheFolder | None) -> None:
        self.where = f"{store.uri}/{release.ref}"
        self.entries = {entry.name: entry for entry in release.files}
        self._store, self._release = store, release
        self._cache = None if isinstance(store, FileStore) else cache

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises RecordError where the release has no such file, IntegrityError, StoreError."""
        entry = self.entries.get(name)
        if entry is None:
            raise RecordError(f"{self.where}: expected {name}, got a release without it")
        if not _SHA256.fullmatch(entry.sha256) or not 0 <= entry.bytes <= MAX_FILE_BYTES:
            raise IntegrityError(
                f"{self.where}/{name}: expected a SHA-256 and a size of at most {MAX_FILE_BYTES:,} bytes in the "
                f"manifest, got {entry.sha256[:80]!r} and {entry.bytes:,}; {REMEDY}"
            )
        return self._fetched(entry) if self._cache is None else self._cached(self._cache, entry)

    def _cached(self, cache: CacheFolder, entry: FileEntry) -> bytes:
        name = f"{entry.sha256}-{FORMAT}"
        with contextlib.suppress(OSError):
            data = cache.read(name)
            if data is not None and file_entry(entry.name, data) == entry:
                return data
        data = self._fetched(entry)
        with contextlib.suppress(OSError), cache.writing(name):
            cache.write(name, [data])
        return data

    def _fetched(self, entry: FileEntry) -> bytes:
        """From the store: no more than one byte beyond what is stated is read, whatever is there."""
        where = f"{self.where}/{entry.name}"
        try:
            data = self._store.get_range(self._release.key_of(entry), 0, entry.bytes + 1)
        except NotFound:
            raise IntegrityError(f"{where}: expected {entry.bytes:,} bytes, found no object; {REMEDY}") from None
        if len(data) != entry.bytes:
            got = f"{len(data):,}" if len(data) < entry.bytes else "more"
            raise IntegrityError(f"{where}: expected {entry.bytes:,} bytes, got {got}; {REMEDY}")
        found = file_entry(entry.name, data)
        if found != entry:
            raise IntegrityError(f"{where}: expected SHA-256 {entry.sha256}, got {found.sha256}; {REMEDY}")
        return data
