"""Waiting for a condition, without a server: unit tests run where no server but uvicorn is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["DEADLINE", "eventually"]

#: Seconds that a test waits at most. Far more than needed, even on a busy machine.
DEADLINE: Final = 20.0


async def eventually(condition: Callable[[], object]) -> None:
    """Poll until ``condition`` holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)
