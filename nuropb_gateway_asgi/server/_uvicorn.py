"""Names inside uvicorn, websockets and h11 on which this room relies.

A test derives the same names from the source of the package, so the table is complete. It leaves out asyncio's
contract, which uvicorn cannot rename: the callbacks of protocols (``connection_made``, ``data_received``,
``pause_writing``, ...) and the methods of transports, event loops, events and queues.

With a release that lacks one of the names, or no longer calls or reads it, uvicorn's own protocols are used; see
:func:`unprotected`.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

from ._names import Reliance, describe, faults

__all__ = [
    "ACCEPT_FAILED",
    "DRAIN",
    "LOGGERS",
    "LOG_TEXTS",
    "OWN_WAY",
    "PLACEMENT",
    "RELIED_ON",
    "SUPERVISION",
    "LogText",
    "unplaced",
    "unprotected",
    "unsupervised",
]

_H11: Final = "uvicorn.protocols.http.h11_impl"
_SANSIO: Final = "uvicorn.protocols.websockets.websockets_sansio_impl"

#: Names for the protocols, the event loop and the configuration. Tested with uvicorn 0.52 to 0.54, websockets 15 to
#: 17, and h11 0.16.
RELIED_ON: Final = (
    Reliance(
        owner=f"{_H11}:H11Protocol",
        overrides="handle_websocket_upgrade(event) on_response_complete() send_400_response(msg)",
        replaces="send_400_response",
        uses="app_state client config connections cycle flow headers loop scheme scope server server_state transport "
        "ws_protocol_class",
        sets="conn",
    ),
    Reliance(
        owner=f"{_H11}:RequestResponseCycle",
        uses="message_event response_complete",
        sets="disconnected",
    ),
    Reliance(owner="uvicorn.protocols.http.flow_control:FlowControl", uses="write_paused"),
    Reliance(
        owner=f"{_SANSIO}:WebSocketsSansIOProtocol",
        overrides="handle_close(event) handle_connect(event) handle_parser_exception() handle_ping() "
        "keepalive_timeout() receive() send(message) send_keepalive_ping() send_receive_event_to_app()",
        replaces="handle_parser_exception pause_writing receive",
        uses="app_state asgi_version close_timeout config connections curr_msg_data_type disconnected handle_pong "
        "handshake_initiated logger loop on_task_complete ping_timeout response root_path run_asgi schedule_ping "
        "start_keepalive tasks",
        sets="client close_sent close_timer default_headers frames handshake_complete pending_ping_payload "
        "ping_sent_at ping_timer pong_timer queue read_paused scheme scope server transport writable",
        # All connections share the event: clear() would stop them all.
        lends={"queue": "empty get put_nowait", "writable": "is_set set wait"},
    ),
    Reliance(owner="uvicorn", documented="Config"),
    Reliance(owner="uvicorn.config", uses="LOGGING_CONFIG"),
    Reliance(
        owner="uvicorn.config:Config",
        documented="h11_max_incomplete_event_size timeout_keep_alive ws_max_size ws_per_message_deflate",
    ),
    Reliance(owner="uvicorn.server:ServerState", uses="default_headers"),
    Reliance(owner="uvicorn.protocols.utils", uses="get_client_addr get_path_with_query_string"),
    Reliance(owner="uvicorn.server", uses="ServerState"),
    Reliance(owner="uvicorn.loops.auto", uses="auto_loop_factory"),
    Reliance(
        owner="websockets.server:ServerProtocol",
        overrides="fail(code, reason) recv_frame(frame) reject(status, text)",
        uses="available_extensions close_sent data_to_send handshake_exc logger parser send_close",
        sets="extensions",
    ),
    Reliance(
        owner="websockets.server:ServerProtocol",
        overrides="send_response(response)",
        called_through=f"{_SANSIO}:WebSocketsSansIOProtocol.conn",
    ),
    Reliance(owner="websockets.http11", sets="MAX_LINE_LENGTH"),
    Reliance(owner="websockets.utils", uses="apply_mask"),  # and websockets.speedups, where it could be compiled
    Reliance(owner="websockets.exceptions", documented="ProtocolError"),
    Reliance(owner="websockets.frames:Close", documented="code reason"),
    Reliance(owner="websockets.frames:Frame", documented="data opcode"),
    Reliance(owner="websockets.frames", documented="Frame"),
    Reliance(owner="websockets.protocol", documented="State"),
    Reliance(owner="websockets.protocol:State", documented="CONNECTING OPEN"),
    Reliance(owner="websockets.frames:Opcode", documented="CLOSE CONT PING PONG"),
    Reliance(owner="websockets.http11:Request", documented="headers"),
    Reliance(owner="websockets.http11:Response", documented="headers"),
    Reliance(owner="h11", documented="Connection Data IDLE RemoteProtocolError Request Response SEND_RESPONSE SERVER"),
    Reliance(
        owner="h11:Connection",
        overrides="next_event()",
        called_through=f"{_H11}:H11Protocol.conn",
        documented="our_state their_state trailing_data",
    ),
    Reliance(owner="h11:Data", documented="chunk_start data"),
    Reliance(owner="h11:RemoteProtocolError", documented="error_status_hint"),
    Reliance(owner="h11:Request", documented="headers http_version method target"),
)

#: Names for the supervisor of ``nuropb-gateway serve --workers``.
SUPERVISION: Final = (
    Reliance(owner="uvicorn.supervisors", documented="Multiprocess"),
    Reliance(
        owner="uvicorn.supervisors.multiprocess:Multiprocess",
        overrides="join_all() keep_subprocess_alive()",
        # uvicorn composes this name from the signal's, so no code refers to it.
        documented="handle_hup",
        replaces="join_all handle_hup",
        uses="processes signal_queue",
    ),
    Reliance(owner="uvicorn.supervisors.multiprocess:Process", uses="exitcode is_ready pid process"),
)

#: Names for the protocols' place in a uvicorn that another program has configured.
PLACEMENT: Final = (
    Reliance(owner="uvicorn.lifespan.on:LifespanOn", uses="config main startup_event"),
    Reliance(
        owner="uvicorn.config:Config",
        sets="http_protocol_class",
        called_through="uvicorn.server:Server.config",
    ),
    Reliance(
        owner="uvicorn.config:Config",
        sets="ws_protocol_class",
        called_through=f"{_H11}:H11Protocol.config",
        documented="http is_ssl ws",
    ),
)

#: Names for the gateway's drain. Without them uvicorn's shutdown waits for clients that do not read.
DRAIN: Final = (
    Reliance(owner="uvicorn:Server", documented="config", uses="server_state"),
    Reliance(owner="uvicorn.server:ServerState", uses="connections"),
    Reliance(owner="uvicorn.config:Config", documented="timeout_graceful_shutdown"),
    Reliance(owner=f"{_H11}:H11Protocol", uses="transport"),
    Reliance(owner=f"{_SANSIO}:WebSocketsSansIOProtocol", uses="transport"),
)

#: uvicorn's own protocols for HTTP and WebSockets, the fall-back of :data:`RELIED_ON`.
OWN_WAY: Final = (
    "uvicorn.protocols.http.auto:AutoHTTPProtocol",
    "uvicorn.protocols.websockets.auto:AutoWebSocketsProtocol",
)


class LogText(NamedTuple):
    """A text by which the gateway recognises a log record of a library."""

    text: str
    #: The module that logs the text.
    source: str
    #: The room of the gateway that compares the text.
    room: str
    #: The library's first major version that logs the text; allowed older ones log nothing in its place.
    since: int = 0


#: asyncio's message when a process has no files left for new connections.
ACCEPT_FAILED: Final = "socket.accept() out of system resource"

#: Loggers of uvicorn that the gateway filters, or writes to.
LOGGERS: Final = ("uvicorn.access", "uvicorn.asgi", "uvicorn.error")

#: All texts that the gateway compares with log records, and with reports to asyncio's exception handler.
LOG_TEXTS: Final = (
    LogText(ACCEPT_FAILED, "asyncio.selector_events", "server"),
    LogText('"WebSocket ', _SANSIO, "observability"),
    LogText("[accepted]", _SANSIO, "observability"),
    LogText("connection rejected", "websockets.server", "observability"),
    LogText("connection open", "websockets.server", "observability"),
    LogText("connection closed", "websockets.protocol", "observability", since=16),
    LogText("Invalid HTTP request received", _H11, "observability"),
    LogText("Invalid UTF-8", _SANSIO, "observability"),
    LogText("ASGI callable returned without completing", _SANSIO, "handlers"),
)


@functools.cache
def unprotected() -> str | None:
    """Return the reason for uvicorn's own protocols instead of the gateway's, or None if the gateway's are used.

    The reason is a difference between :data:`RELIED_ON` and the installed libraries.
    """
    return describe(fault for reliance in RELIED_ON for fault in faults(reliance)) or None


@functools.cache
def unplaced() -> str | None:
    """Return the reason why a uvicorn of another program keeps its protocols, or None if they can be replaced."""
    return describe(fault for reliance in PLACEMENT for fault in faults(reliance)) or None


@functools.cache
def unsupervised() -> str | None:
    """Return the reason for uvicorn's own supervisor instead of the gateway's, or None if the gateway's is used."""
    return describe(fault for reliance in SUPERVISION for fault in faults(reliance)) or None
