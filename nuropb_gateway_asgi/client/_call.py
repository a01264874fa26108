"""One call of a client, or one request to the gateway itself."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ._json import encode

__all__ = ["Call", "Kind", "encode_members"]

Kind: TypeAlias = Literal["request", "command", "describe", "subscribe", "unsubscribe", "authorize"]


@dataclass(eq=False)
class Call:
    """A call, or a request to the gateway itself."""

    kind: Kind
    #: The members of the payload as JSON, each after a comma, without ``id`` and ``timeout``.
    members: bytes
    future: asyncio.Future[Any]
    #: By the clock of the event loop.
    deadline: float = math.inf
    idempotent: bool = False
    retries: int = 0
    attempt: int = 0
    #: The id in its answer; empty before it is sent.
    id: str = ""
    #: Whether the caller stopped waiting. The gateway may still be working on the call.
    abandoned: bool = False
    timer: asyncio.TimerHandle | None = None
    pause: asyncio.TimerHandle | None = None

    def stop_timers(self) -> None:
        """Cancel its timers."""
        for timer in (self.timer, self.pause):
            if timer is not None:
                timer.cancel()

    def fail(self, error: BaseException) -> None:
        """End the call with ``error``."""
        self.stop_timers()
        if not self.future.done():
            self.future.set_exception(error)


def encode_members(payload: Mapping[str, object], max_depth: int, *, binary: bool = False) -> bytes:
    """Encode the members of a payload as JSON, each after a comma; None is left out. A frame has ``max_depth`` levels.

    Raises TypeError, which names the path, for a value that JSON lacks.
    """
    members = {name: value for name, value in payload.items() if value is not None}
    text = encode(members, max_depth - 1, binary=binary)[1:-1]
    return b"," + text if text else b""
