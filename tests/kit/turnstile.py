"""A service that answers when a test wants it to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh

from .gateways import RunningGateway, make_gateway, run_gateway

__all__ = ["Turnstile", "at_turnstile"]


class Turnstile:
    """A service whose calls wait until it is opened, so that tests need not wait for time to pass."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        #: Calls of ``wait`` that have returned.
        self.through = 0

    async def wait(self) -> str:
        """Wait for ``open``. The call that is let through closes the turnstile again."""
        await self._opened.wait()
        self._opened.clear()
        self.through += 1
        return "through"

    def open(self) -> str:
        """Let all waiting calls through, or else the next one."""
        self._opened.set()
        return "open"

    def big(self, size: int) -> str:
        """Answer with a text of ``size`` characters."""
        return "x" * size


@contextlib.asynccontextmanager
async def at_turnstile() -> AsyncIterator[tuple[RunningGateway, Turnstile]]:
    """Run a gateway whose only service is a turnstile."""
    turnstile = Turnstile()
    gateway = make_gateway(mesh=EmbeddedMesh({"turnstile": turnstile}), expose=["turnstile.*"])
    async with run_gateway(gateway) as running:
        yield running, turnstile
