"""How does a client connect? One module for each transport, and the parts that they share.

* ``websocket``, ``http`` (with ``http_calls`` and ``event_streams``) and ``tcp`` are the transports.
* ``connection`` has reader, writer, pings and deadlines of a connection.
* ``handshake`` checks and registers new connections; ``refusals`` has the table of all refusals.
* ``outbox`` is the bounded queue of frames for a slow client.
* ``exchange`` is an HTTP request and its response.
* ``cross_origin`` is CORS for HTTP answers.
* ``direct`` is the fast path between a server's WebSocket, or stream, and its handler: a ``direct_connection``.
* ``server_sent_events`` has the format of streams.
"""

from __future__ import annotations

from .connection import Connection
from .event_streams import EventStreamHandler
from .http_calls import CallHandler
from .tcp import TCPHandler
from .websocket import WebSocketHandler

__all__ = ["CallHandler", "Connection", "EventStreamHandler", "TCPHandler", "WebSocketHandler"]
