"""The calls that an embedded mesh has carried, for the assertions of tests and for recordings."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..mesh.embedded_host import Interceptor
from ..wire.interface import CallMessage
from ..wire.services import Outcome

__all__ = ["Call", "CallLog"]


@dataclass
class Call:
    """A call as its service got it. ``context`` has the caller's token, which the repr leaves out."""

    kind: Literal["request", "command"]
    service: str
    method: str
    params: dict[str, Any]
    context: dict[str, Any] = field(repr=False)
    trace_id: str
    #: Whether there was a service of this name.
    delivered: bool = True
    #: Whether the service has answered; then ``result`` or ``error`` (NuroPb's two members) is set.
    done: bool = False
    result: Any = None
    error: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """The method with its service, as in ``orders.create``."""
        return f"{self.service}.{self.method}"

    @property
    def user_id(self) -> str | None:
        """The caller's user id; None for a call of another service."""
        return self.context.get("user_id")

    def has(self, params: Mapping[str, Any] | None, context: Mapping[str, Any]) -> bool:
        """Return whether the call has exactly these parameters (None: any), and these members of the context."""
        return (params is None or self.params == dict(params)) and all(
            name in self.context and self.context[name] == value for name, value in context.items()
        )


class CallLog:
    """Keeps every call, in order. It passes all calls on, to the services or to another interceptor."""

    def __init__(self, then: Interceptor | None = None) -> None:
        self.calls: list[Call] = []
        self._then = then

    def admits(self, message: CallMessage, *, is_known: bool) -> bool:
        """Keep a call that is not delivered, and a look-up before it: a call of an unknown service ends with that."""
        delivered = (self._then is None or self._then.admits(message, is_known=is_known)) and is_known
        if not delivered:
            self.calls.append(_call(message, delivered=False))
        return delivered

    async def answer(self, message: CallMessage, call: Callable[[], Awaitable[Outcome]]) -> tuple[Outcome, int]:
        """Keep a call, and its outcome once there is one."""
        kept = _call(message)
        if message.method != "nuropb_describe":
            self.calls.append(kept)
        if self._then is None:
            outcome, replies = await call(), 1
        else:
            outcome, replies = await self._then.answer(message, call)
        kept.error = outcome.error
        kept.result = json.loads(outcome.result) if outcome.error is None else None
        kept.done = True  # last: a test in another thread waits for it
        return outcome, replies


def _call(message: CallMessage, *, delivered: bool = True) -> Call:
    return Call(
        message.kind,
        message.service,
        message.method,
        json.loads(bytes(message.params)),
        json.loads(message.context),
        message.trace_id,
        delivered,
    )
