from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, and that is no failure.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that uvicorn and aio-pika have."""
    return "asyncio"
