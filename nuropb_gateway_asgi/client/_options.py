"""The settings of a client."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict

from ._backoff import Backoff

__all__ = ["ClientOptions", "Options", "Reason", "Token", "Trace"]

#: Why a token is needed: for a connection, because the token of the connection expires soon, because the last one was
#: refused, or because the last one had expired.
Reason: TypeAlias = Literal["connect", "refresh", "rejected", "expired"]
#: A token, or a function that returns tokens: a plain function (called in a thread) or a coroutine function. It gets a
#: :data:`Reason` if it has a parameter ``reason``. None means that there are no more tokens, and closes the client.
#: After an exception the client tries again.
Token: TypeAlias = str | Callable[..., str | Awaitable[str | None] | None]

#: A function that returns the caller's span as the W3C's headers have it: ``traceparent``, and perhaps ``tracestate``
#: and ``baggage``. With OpenTelemetry, ``propagate.inject`` fills such a dict.
Trace: TypeAlias = Callable[[], Mapping[str, str] | None]


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """The settings of a client. All times are in seconds."""

    #: Whether to reconnect after a lost connection.
    reconnect: bool = True
    #: Whether calls and subscriptions survive a lost connection, if the gateway offers that.
    resume: bool = True
    backoff: Backoff = field(default_factory=Backoff)
    #: A connection that lasted at least this long resets the backoff.
    stable_after: float = 10.0
    #: From the start of an attempt to the gateway's hello.
    connect_timeout: float = 15.0
    #: Silence after which the client pings the gateway. None: the gateway's own interval, at most 30.
    ping_interval: float | None = None
    #: Timeout of the answer to a ping.
    ping_timeout: float = 10.0
    #: How long before its expiry a token is replaced: at most this, and at most a quarter of its remaining time.
    refresh_margin: float = 60.0
    #: How long after its timeout a call still waits for the gateway's own timeout error.
    grace: float = 2.0
    #: Maximum number of calls that wait to be sent.
    max_queue: int = 10_000
    #: Returns the trace context of a call that is about to be made, or None: see :data:`Trace`.
    trace: Trace | None = None
    #: Levels of JSON in a frame that the gateway accepts (``MAX_JSON_DEPTH``).
    max_depth: int = 32
    #: Whether bytes are sent as ``{"$bytes": "<base64>"}``, and such objects arrive as bytes.
    binary: bool = False
    #: Maximum size of a message from the gateway, in bytes; None for no limit.
    max_size: int | None = 16 * 1024 * 1024
    #: For wss:// with certificates of your own; None for the system's.
    ssl: ssl_module.SSLContext | None = None
    #: The URL of a proxy; True for the proxy that the environment names, None for no proxy.
    proxy: str | Literal[True] | None = True


class Options(TypedDict, total=False):
    """The fields of :class:`ClientOptions` as keyword arguments."""

    reconnect: bool
    resume: bool
    backoff: Backoff
    stable_after: float
    connect_timeout: float
    ping_interval: float | None
    ping_timeout: float
    refresh_margin: float
    grace: float
    max_queue: int
    trace: Trace | None
    max_depth: int
    binary: bool
    max_size: int | None
    ssl: ssl_module.SSLContext | None
    proxy: str | Literal[True] | None
