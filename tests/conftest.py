from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that uvicorn and aio-pika have."""
    return "asyncio"
