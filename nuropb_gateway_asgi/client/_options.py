"""How a client is to behave."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict

from ._backoff import Backoff

__all__ = ["ClientOptions", "Options", "Token"]

#: A token, or what makes one: a function (called in a thread) or a coroutine function. None says that there is none any
#: more, and closes the client; an exception, that there is none now.
Token: TypeAlias = str | Callable[[], str | Awaitable[str | None] | None]


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """How a client behaves. All times are in seconds."""

    #: Whether to come back after a loss.
    reconnect: bool = True
    backoff: Backoff = field(default_factory=Backoff)
    #: A connection that lasted so long was a good one: the waiting begins anew.
    stable_after: float = 10.0
    #: From the beginning of a connection to the gateway's hello.
    connect_timeout: float = 15.0
    #: After so much silence the gateway is asked whether it is there. None: as the gateway does, at most 30.
    ping_interval: float | None = None
    #: How long the answer may take.
    ping_timeout: float = 10.0
    #: How long before its end a token is replaced: at most this, at most a quarter of what is left.
    refresh_margin: float = 60.0
    #: How much longer than its timeout a call waits for the gateway to say so itself.
    grace: float = 2.0
    #: How many calls may wait to be sent.
    max_queue: int = 10_000
    #: Of a message from the gateway, in bytes; None for no limit.
    max_size: int | None = 16 * 1024 * 1024
    #: For wss:// with a certificate that needs more than the usual.
    ssl: ssl_module.SSLContext | None = None
    #: The URL of a proxy, True for the one that the environment names, None for none.
    proxy: str | Literal[True] | None = True


class Options(TypedDict, total=False):
    """The fields of :class:`ClientOptions` as keyword arguments."""

    reconnect: bool
    backoff: Backoff
    stable_after: float
    connect_timeout: float
    ping_interval: float | None
    ping_timeout: float
    refresh_margin: float
    grace: float
    max_queue: int
    max_size: int | None
    ssl: ssl_module.SSLContext | None
    proxy: str | Literal[True] | None
