"""What the tests of several figures share."""

import pytest

from trainers.metrics import distances


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows or so, so that small sets are cut into many, the last one shorter."""
    monkeypatch.setattr(distances, "BLOCK_BYTES", 7 * 8 * 187)
