from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .fakes import FakeGateway, HandlerHarness, running


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    """A started gateway on which clients may do everything."""
    async with running() as gateway:
        yield gateway


@pytest.fixture
def harness() -> HandlerHarness:
    """A HandlerManager with the default settings, on which clients may do everything."""
    return HandlerHarness()
