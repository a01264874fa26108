"""How does a program in Python use a gateway? Calls, events, and a connection that heals. ``docs/clients.md`` has more.

::

    async with connect("wss://gateway.example.com/ws", token=token) as gateway:
        order = await gateway.request("orders", "get", {"number": 42})

It needs nothing of the gateway itself, and importing it imports no web framework and no broker's library.
"""

from __future__ import annotations

from ._backoff import Backoff
from ._client import Client, connect
from ._options import ClientOptions, Options, Token
from ._state import Goodbye, Hello, Limits, State
from ._subscriptions import Dropped, Gap, GatewayEvent, Subscription, UnsubscribedNotice
from ._sync import SyncClient, SyncSubscription, connect_sync
from .errors import (
    BadRequest,
    CallFailed,
    CallTimeout,
    Cancelled,
    ConnectionClosed,
    ConnectionLost,
    Deprecated,
    DuplicateId,
    GatewayError,
    InternalError,
    InvalidParams,
    MeshUnavailable,
    MethodNotFound,
    PayloadTooLarge,
    PermissionDenied,
    ServiceError,
    ServiceUnavailable,
    TokenRefreshFailed,
    TooManyRequests,
    Unauthenticated,
    UnexpectedFrame,
    Unsubscribed,
)

__all__ = [
    "Backoff",
    "BadRequest",
    "CallFailed",
    "CallTimeout",
    "Cancelled",
    "Client",
    "ClientOptions",
    "ConnectionClosed",
    "ConnectionLost",
    "Deprecated",
    "Dropped",
    "DuplicateId",
    "Gap",
    "GatewayError",
    "GatewayEvent",
    "Goodbye",
    "Hello",
    "InternalError",
    "InvalidParams",
    "Limits",
    "MeshUnavailable",
    "MethodNotFound",
    "Options",
    "PayloadTooLarge",
    "PermissionDenied",
    "ServiceError",
    "ServiceUnavailable",
    "State",
    "Subscription",
    "SyncClient",
    "SyncSubscription",
    "Token",
    "TokenRefreshFailed",
    "TooManyRequests",
    "Unauthenticated",
    "UnexpectedFrame",
    "Unsubscribed",
    "UnsubscribedNotice",
    "connect",
    "connect_sync",
]
