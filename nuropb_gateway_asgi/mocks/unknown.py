"""Calls that no mock answers, told to the developer with the names of those that are there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from ..authentication import Identity
from ..authorization import Decision
from ..mesh.embedded_host import EmbeddedHost, Interceptor
from ..wire.interface import CallMessage
from ..wire.services import Outcome, describe_service

__all__ = ["UnknownCalls"]

#: Different names that are told; a client that makes up names does not fill the terminal.
MOST_TOLD: Final = 100


class UnknownCalls:
    """Tells of each call of an unknown service or method, once. An interceptor of the mesh, and an authorizer."""

    def __init__(self, tell: Callable[[str], object], then: Interceptor | None = None) -> None:
        self.host: EmbeddedHost | None = None
        #: Set by each call and subscription of a client, of known names, too.
        self.in_use = asyncio.Event()
        self._tell = tell
        self._then = then
        self._told: set[str] = set()

    def admits(self, message: CallMessage, *, is_known: bool) -> bool:
        """Pass the call on."""
        if message.method != "nuropb_describe":  # a page that shows the services does not use them yet
            self.in_use.set()
        return self._then is None or self._then.admits(message, is_known=is_known)

    async def answer(self, message: CallMessage, call: Callable[[], Awaitable[Outcome]]) -> tuple[Outcome, int]:
        """Pass the call on."""
        return (await call(), 1) if self._then is None else await self._then.answer(message, call)

    def __call__(self, identity: Identity, action: str, name: str, default: Decision, /) -> Decision:
        """Leave the decision as it is, and look at the name."""
        if action == "subscribe":
            self.in_use.set()
        if action == "call" and self.host is not None:
            service, _, method = name.rpartition(".")
            services = self.host.services
            if service not in services:
                self._say(
                    service, f"no service {service} is mocked; there are: {', '.join(sorted(services)) or 'none'}"
                )
            elif (
                method not in (known := describe_service(services[service])["methods"]) and method != "nuropb_describe"
            ):
                self._say(name, f"{service} has no method {method}; there are: {', '.join(sorted(known)) or 'none'}")
        return default

    def _say(self, name: str, text: str) -> None:
        if name not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(name)
            self._tell(text)
