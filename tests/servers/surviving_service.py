"""A service that comes back after an outage of the broker. NuroPb's own never do, so this package hosts it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from nuropb_gateway_asgi.mesh import hosting
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh

__all__ = ["SurvivingService", "host"]


class SurvivingService:
    """Counts its calls by the id that each of them brings along."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.holding = 0
        self.released = asyncio.Event()

    def echo(self, id: str = "", **params: Any) -> str:  # noqa: A002
        """The id itself."""
        self.calls[id] += 1
        return id

    async def hold(self, id: str = "") -> str:  # noqa: A002
        """The id, once the test has set ``released``."""
        self.calls[id] += 1
        self.holding += 1
        await self.released.wait()
        return id

    def fail(self, id: str = "") -> None:  # noqa: A002
        """An error, for which NuroPb answers twice."""
        self.calls[id] += 1
        raise ValueError("it does not work")

    @property
    def repeated(self) -> int:
        """Calls that came more than once."""
        return sum(count > 1 for count in self.calls.values())


@contextlib.asynccontextmanager
async def host(url: str, name: str, service: object, *, concurrency: int = 1000) -> AsyncIterator[RabbitMQMesh]:
    """Have ``service`` called as ``name``, in this event loop; it need not be reachable at once."""
    async with hosting(service, url, service_name=name, concurrency=concurrency, drain_timeout=0.0) as manager:
        assert isinstance(manager.mesh, RabbitMQMesh)
        yield manager.mesh
