"""Where a client is on its way to the gateway, and what the gateway said of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from .errors import ConnectionClosed, ConnectionLost

__all__ = ["Goodbye", "Hello", "Limits", "State", "number", "read_hello"]


@dataclass(frozen=True)
class Limits:
    """What the gateway allows: from its hello. Times are in seconds."""

    max_message_size: int = 65536
    max_in_flight: int = 64
    request_timeout: float = 30.0
    ping_interval: float = 30.0


_USUAL: Final = Limits()


@dataclass(frozen=True)
class State:
    """Where a client is on its way to the gateway.

    ``connecting`` (a token is fetched, a connection made), ``authorising`` (the gateway has not said hello yet),
    ``open``, ``reconnecting`` (waiting for ``delay`` seconds because of ``error``), and ``closed``, for good: by the
    gateway, which ``error`` tells of, or without an error by the application.
    """

    name: Literal["connecting", "authorising", "open", "reconnecting", "closed"]
    delay: float | None = None
    error: ConnectionLost | ConnectionClosed | None = None


@dataclass(frozen=True)
class Hello:
    """What the gateway says first on every connection. ``expires_at`` is in seconds since 1970."""

    session_id: str = ""
    user_id: str = ""
    username: str = ""
    protocol: str = ""
    instance_id: str = ""
    expires_at: float | None = None
    limits: Limits = _USUAL


@dataclass(frozen=True)
class Goodbye:
    """The gateway will stop; the client comes back by itself, not before ``retry_after`` seconds."""

    reason: str
    retry_after: float


def read_hello(event: object) -> Hello:
    """The hello of a gateway, with the usual in the place of what is missing or wrong."""
    given = event if isinstance(event, dict) else {}
    texts = ("session_id", "user_id", "username", "protocol", "instance_id")
    return Hello(
        **{name: given[name] for name in texts if isinstance(given.get(name), str)},
        expires_at=number(given.get("expires_at")),
        limits=_read_limits(given.get("limits")),
    )


def _read_limits(limits: object) -> Limits:
    given = limits if isinstance(limits, dict) else {}

    def positive(name: str) -> float:
        value = number(given.get(name))
        usual: float = getattr(_USUAL, name)
        return value if value is not None and value > 0 else usual

    return Limits(
        max_message_size=int(positive("max_message_size")),
        # A fraction of a call is no room for one, but a gateway that lets nobody call means something else.
        max_in_flight=max(1, int(positive("max_in_flight"))),
        request_timeout=positive("request_timeout"),
        ping_interval=positive("ping_interval"),
    )


def number(value: object) -> float | None:
    """A finite number as a float, or None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None
