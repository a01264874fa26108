"""Waiting for a condition, without a server: unit tests run where no server but uvicorn is installed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

__all__ = ["DEADLINE", "eventually", "in_time"]

#: Seconds that a test waits at most. Far more than needed, even on a machine with ten times the work that it can do.
DEADLINE: Final = 180.0
#: Seconds between two turns of the event loop that :func:`in_time` counts.
TURN: Final = 0.01


async def eventually(condition: Callable[[], object]) -> None:
    """Poll until ``condition`` holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError after ``seconds``, as far as this process is let run.

    For times that are promised to users. A turn of the event loop that comes late, as on a busy machine, counts as one
    that came in time: what is waited for has lost that time as well.
    """
    async with asyncio.timeout(None) as limit:
        counting = asyncio.create_task(_count(seconds, limit))
        try:
            yield
        finally:
            counting.cancel()
            await asyncio.wait((counting,))


async def _count(seconds: float, limit: asyncio.Timeout) -> None:
    for _ in range(round(seconds / TURN)):
        await asyncio.sleep(TURN)
    limit.reschedule(asyncio.get_running_loop().time())
