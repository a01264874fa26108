"""How does a client connect? One module for each transport, and their common parts.

``websocket``, ``http`` (calls and event streams) and ``tcp`` are the transports. They share ``connection`` (reader,
writer, pings, deadlines), ``handshake`` (authentication and refusals), ``outbox`` (frames waiting for a client),
``exchange`` (a call as an HTTP request), ``cross_origin`` (CORS) and ``direct`` (the fast path of a WebSocket's text).
"""

from __future__ import annotations

from .connection import Connection
from .http import CallHandler, EventStreamHandler
from .tcp import TCPHandler
from .websocket import WebSocketHandler

__all__ = ["CallHandler", "Connection", "EventStreamHandler", "TCPHandler", "WebSocketHandler"]
