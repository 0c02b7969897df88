"""Waits for a store that is away for a while.

A store that has never answered this process is misspelt more often than it is down: five attempts must do. One that has
answered before is waited for, up to `PATIENCE_SECONDS`: less than what the other workers of a run wait for one that
waits here (`trainers.launch.COLLECTIVE_TIMEOUT_SECONDS`), longer than a server takes to restart elsewhere.
"""

import logging
import random
import threading
import time
from typing import Any

PATIENCE_SECONDS = 240.0
MAX_WAIT_SECONDS = 5.0  # between two attempts: a run goes on soon after the store is back
MAX_ATTEMPTS = 80  # of one request, about as long: one that fails for ever may do so among others that succeed
SAY_AFTER_SECONDS = 2.0  # a single lost request is nobody's concern
AWAY = {429, 500, 502, 503, 504}  # statuses that say 'later'

_log = logging.getLogger(__name__)


class Patience:
    """A botocore handler of the event `needs-retry`: gives the seconds to wait before one more attempt, or None.

    One for each client; its threads share it. `uri` is for the log; `broken`: the errors of a connection.
    """

    def __init__(self, uri: str, broken: tuple[type[Exception], ...]) -> None:
        self.uri = uri
        self.broken = broken
        self._has_answered = False
        self._away_since: float | None = None
        self._said = False
        self._lock = threading.Lock()

    def __call__(
        self, response: Any = None, attempts: int = 1, caught_exception: Exception | None = None, **_: Any
    ) -> float | None:
        """`response` is (HTTP response, parsed) or None; `attempts` counts those made so far."""
        status = response[0].status_code if response is not None else None
        broken = isinstance(caught_exception, self.broken)
        with self._lock:
            if status not in AWAY and not broken:
                if status is not None:
                    self._back()
                return None
            if not self._has_answered or attempts >= MAX_ATTEMPTS:
                return None
            if self._away_since is None:
                self._away_since = time.monotonic()
            away_seconds = time.monotonic() - self._away_since
            if away_seconds > SAY_AFTER_SECONDS and not self._said:
                self._said = True
                why = caught_exception or f"status {status}"
                _log.warning("%s is away (%s); waiting for it up to %g s", self.uri, why, PATIENCE_SECONDS)
            if away_seconds > PATIENCE_SECONDS:
                return None
        return random.uniform(0.5, 1.0) * min(0.1 * 2.0 ** min(attempts, 10), MAX_WAIT_SECONDS)  # noqa: S311 - jitter

    def _back(self) -> None:
        if self._said:
            _log.warning("%s is back", self.uri)
        self._has_answered, self._away_since, self._said = True, None, False
