"""A second server in the process of the gateway, for an application that is none of its clients' business."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
import uvicorn
from uvicorn.server import ServerState

from ._uvicorn import OWN_WAY, unprotected

__all__ = ["serving_beside"]

#: Connections and requests at the same time; one more gets 503.
CONCURRENCY: Final = 32
#: Seconds that an idle connection is kept, and that connections have at the end.
KEEP_ALIVE: Final = 5
END_TIMEOUT: Final = 1.0


@contextlib.asynccontextmanager
async def serving_beside(app: Any, listener: socket.socket) -> AsyncIterator[None]:
    """Serve HTTP at ``listener`` as long as the context lasts: no WebSockets, no lifespan, no access log, no signals.

    At the end connections have a second for their responses.
    """
    own = f"{__package__}:HTTPProtocol" if unprotected() is None else OWN_WAY[0]
    config = uvicorn.Config(
        app,
        http=own,
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=CONCURRENCY,
        timeout_keep_alive=KEEP_ALIVE,
    )
    config.load()
    state = ServerState()
    protocol_class: Any = config.http_protocol_class

    def make() -> Any:
        protocol = protocol_class(config=config, server_state=state, app_state={})
        protocol.access_log = False  # as an argument it would silence the log of the process's first server, too
        return protocol

    server = await asyncio.get_running_loop().create_server(make, sock=listener)
    try:
        yield
    finally:
        server.close()
        connections: set[Any] = state.connections
        for connection in tuple(connections):
            connection.shutdown()
        with anyio.move_on_after(END_TIMEOUT, shield=True):
            while connections:  # noqa: ASYNC110 - uvicorn tells nobody
                await asyncio.sleep(0.01)
        for connection in tuple(connections):
            connection.transport.abort()
        for task in tuple(state.tasks):
            task.cancel()
