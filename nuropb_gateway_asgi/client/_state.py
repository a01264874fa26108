"""The state of a connection, and the gateway's greeting and farewell on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from .errors import ConnectionClosed, ConnectionLost

__all__ = ["Farewell", "Goodbye", "Hello", "Limits", "State", "number", "read_hello"]


@dataclass(frozen=True)
class Limits:
    """The limits of a gateway, from its hello. Times are in seconds."""

    max_message_size: int = 65536
    max_in_flight: int = 64
    request_timeout: float = 30.0
    ping_interval: float = 30.0


#: The defaults of a gateway.
_USUAL: Final = Limits()


@dataclass(frozen=True)
class State:
    """The state of a client's connection.

    ``connecting`` (fetching a token, then connecting), ``authorising`` (connected, before the gateway's hello),
    ``open``, ``reconnecting`` (waiting for ``delay`` seconds because of ``error``), or ``closed``, for good: by the
    gateway with an ``error``, by the application without.

    ``resumed`` says of ``open`` whether the session goes on after a lost connection: True if no answer and no event is
    missing; False if the session was lost, for the ``reason`` that the gateway names; None if there was none to resume.
    """

    name: Literal["connecting", "authorising", "open", "reconnecting", "closed"]
    delay: float | None = None
    error: ConnectionLost | ConnectionClosed | None = None
    resumed: bool | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Hello:
    """The gateway's first frame on every connection. ``expires_at`` is in seconds since 1970."""

    session_id: str = ""
    user_id: str = ""
    username: str = ""
    protocol: str = ""
    instance_id: str = ""
    expires_at: float | None = None
    limits: Limits = _USUAL
    #: Whether sessions can be resumed.
    resume: bool = False


@dataclass(frozen=True)
class Goodbye:
    """The announcement that the gateway will stop. The client reconnects by itself, after ``retry_after`` seconds."""

    reason: str
    retry_after: float


@dataclass
class Farewell:
    """The gateway's last words on a connection: its last error, and how long the client has to stay away."""

    error: Exception | None = None
    #: Seconds to stay away after the end of the connection, from a goodbye.
    stay_away: float = 0.0
    #: Time of the event loop before which not to reconnect, from an error.
    not_before: float = 0.0

    def wait(self, now: float) -> float:
        """Return the seconds that the gateway asked the client to wait, at the time ``now`` of the event loop."""
        return max(self.stay_away, self.not_before - now, 0.0)


def read_hello(event: object) -> Hello:
    """Read a hello. Missing and invalid members get their defaults."""
    given = event if isinstance(event, dict) else {}
    texts = ("session_id", "user_id", "username", "protocol", "instance_id")
    return Hello(
        **{name: given[name] for name in texts if isinstance(given.get(name), str)},
        expires_at=number(given.get("expires_at")),
        limits=_read_limits(given.get("limits")),
        resume=given.get("resume") is True,
    )


def _read_limits(limits: object) -> Limits:
    given = limits if isinstance(limits, dict) else {}

    def positive(name: str) -> float:
        value = number(given.get(name))
        usual: float = getattr(_USUAL, name)
        return value if value is not None and value > 0 else usual

    return Limits(
        max_message_size=int(positive("max_message_size")),
        # Less than one call would mean no calls at all, and no gateway means that.
        max_in_flight=max(1, int(positive("max_in_flight"))),
        request_timeout=positive("request_timeout"),
        ping_interval=positive("ping_interval"),
    )


def number(value: object) -> float | None:
    """Return a finite number as a float, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None
