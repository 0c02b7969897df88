"""A store behind a slow line: each request takes some time longer."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.objects import Entry, Store


@dataclass
class Delayed(Store):
    """Another store, whose every request waits first. It counts what is asked for."""

    inner: Store
    seconds: float
    requests: int = 0

    def __post_init__(self) -> None:
        self.uri = self.inner.uri

    def _wait(self) -> Store:
        self.requests += 1
        time.sleep(self.seconds)
        return self.inner

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        return self._wait().get_with_etag(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._wait().get_range(key, start, length)

    def put(self, key: str, data: bytes | Path) -> str:
        return self._wait().put(key, data)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return self._wait().list(prefix)

    def stat(self, key: str) -> Entry:
        return self._wait().stat(key)

    def delete(self, key: str) -> None:
        self._wait().delete(key)

    def create(self, key: str, data: bytes) -> str:
        return self._wait().create(key, data)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        return self._wait().replace(key, data, etag)
