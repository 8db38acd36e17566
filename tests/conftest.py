"""What every test shares."""

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run asynchronous tests as the processes run."""
    return "asyncio", {"use_uvloop": True}
