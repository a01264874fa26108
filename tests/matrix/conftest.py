"""A browser for pages that bundlers have built."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.kit.browser import Browser, run_browser


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with run_browser() as running:
        yield running
