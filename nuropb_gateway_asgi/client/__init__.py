"""The Python client of a gateway: how does a program make calls and receive events?

::

    async with connect("wss://gateway.example.com/ws", token=token) as gateway:
        order = await gateway.request("orders", "get", {"number": 42})

Importing it imports no web framework and no library of a broker. ``docs/clients.md`` is its manual.

* ``_client``: :func:`connect` and :class:`Client`; ``_sync``: both without asyncio;
* ``_connection``: reconnecting; ``_incoming``: the frames that come from the gateway;
* ``_continuation``: a session's way to the next connection; ``_session``: its key, counts and acknowledgements;
* ``_link``: one WebSocket connection from handshake to end; ``_frames``: frames as text;
* ``_token``: fetching tokens, and replacing them before they expire;
* ``_calls``: calls that wait and calls in flight; ``_call``: one; ``_json``: their JSON; ``_backoff``: waits;
* ``_subscriptions``: all subscriptions of a client; ``_subscription``: one; ``_events``: events and notices;
* ``_state``: states of a connection, and the gateway's hello; ``_options``: settings; ``_emitter``: listeners;
* ``_upload``: a file in many calls; ``errors``: the exceptions.
"""

from __future__ import annotations

from ._backoff import Backoff
from ._client import Client, connect
from ._events import Dropped, Gap, GatewayEvent, Position, Recovered, UnsubscribedNotice
from ._options import ClientOptions, Options, Reason, Token
from ._state import Goodbye, Hello, Limits, State
from ._subscription import Subscription
from ._sync import SyncClient, SyncSubscription, connect_sync
from ._upload import upload
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
    "Position",
    "Reason",
    "Recovered",
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
    "upload",
]
