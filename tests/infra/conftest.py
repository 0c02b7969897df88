"""Ray is imported here for its own checks, which start no cluster."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _ray_as_elsewhere() -> Iterator[None]:
    """Ray reads this once a process, when it is imported; tests that start a cluster may come later in this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        yield
