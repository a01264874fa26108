"""The last step of an explanation: whether the mesh and the service are there, and whether the method exists."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any, Final, Protocol

from ...exceptions import CallError
from ...wire.description import Description

__all__ = ["CONNECT_POLL_INTERVAL", "DescribingManager", "ask_mesh"]

#: Seconds between two checks of the connection to the mesh, or of the keys.
CONNECT_POLL_INTERVAL: Final = 0.02


class DescribingManager(Protocol):
    """The part of the ServiceMeshManager that an explanation needs: a mesh connection, and descriptions of services."""

    async def __aenter__(self) -> Any:
        """Connect to the mesh."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect from the mesh."""

    @property
    def connected(self) -> bool:
        """Whether the mesh takes messages now."""
        ...

    @property
    def problem(self) -> str | None:
        """The reason why the mesh takes no messages, or None."""
        ...

    async def describe(self, service: str) -> Description:
        """Ask a service for its description. Raises CallError."""
        ...


async def ask_mesh(
    manager: DescribingManager,
    asked: tuple[str, str, str] | None,
    timeout: float,  # noqa: ASYNC109
) -> dict[str, Any]:
    """Return the state of the mesh and, if ``asked`` (service, dot, method) is given, of the service and its method.

    Waits up to ``timeout`` seconds for a connection.
    """
    async with manager:
        for _ in range(math.ceil(timeout / CONNECT_POLL_INTERVAL)):
            if manager.connected:
                break
            await asyncio.sleep(CONNECT_POLL_INTERVAL)
        mesh: dict[str, Any] = {"connected": manager.connected, "problem": manager.problem}
        if asked is None or not manager.connected:
            return mesh
        service, _, method = asked
        try:
            description = await manager.describe(service)
        except CallError as error:
            return mesh | {"service": {"answers": False, "code": error.code, "why": error.description}}
    return mesh | {"service": _service(description, method)}


def _service(description: Description, method: str) -> dict[str, Any]:
    found = {"answers": True, "version": description.version, "describes_itself": description.methods is not None}
    found["gateway"] = description.is_gateway
    info = (description.methods or {}).get(method)
    if description.methods is None:
        return found
    if info is None:
        return found | {"method": None}
    usable = description.public_key is not None and not description.keys_differ
    encryption = {"required": info.requires_encryption, "possible": not info.requires_encryption or usable}
    return found | {"method": {"description": info.description, "encryption": encryption}}
