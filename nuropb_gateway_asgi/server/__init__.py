"""How does uvicorn face an open network? Its protocols with limits, and its configuration.

``nuropb-gateway serve`` uses both. Where another program starts uvicorn, the gateway's lifespan puts the two protocols
in place, or the operator names them::

    uvicorn nuropb_gateway_asgi:app --http nuropb_gateway_asgi.server:HTTPProtocol \\
        --ws nuropb_gateway_asgi.server:WebSocketProtocol

* ``http``: limits on request heads, and deadlines for idle connections;
* ``websocket``: limits on WebSocket messages, and a direct way to the application;
* ``opening``: the ordinary handshake of a WebSocket;
* ``frame_limits``: limits on fragments, pings and pongs;
* ``text_frames``: fast path for unfragmented text frames;
* ``message_queue``: the receive queue of a WebSocket;
* ``closing``: refusals, and ends of connections that the client can still read;
* ``placement``: the protocols in a uvicorn that another program starts;
* ``process``: open files, event loop, garbage collector, uvicorn's configuration;
* ``supervisor``: workers, and the signals to them;
* ``_uvicorn``: the names of uvicorn, websockets and h11 on which all this relies; ``_names`` checks them.

The protocols rely on more than the libraries' public interfaces. With a release that lacks one of the names,
``HTTPProtocol`` and ``WebSocketProtocol`` are uvicorn's own, and a warning says so.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
from typing import TYPE_CHECKING, Any

from ._uvicorn import OWN_WAY, unprotected, unsupervised
from .placement import protocols_in_place
from .process import allow_files, make_config, new_event_loop, provide_files, tune_collector

if TYPE_CHECKING:
    from .http import HTTPProtocol
    from .websocket import WebSocketProtocol

__all__ = [
    "HTTPProtocol",
    "WebSocketProtocol",
    "allow_files",
    "make_config",
    "new_event_loop",
    "protocols_in_place",
    "provide_files",
    "tune_collector",
    "unprotected",
    "unsupervised",
]


def __getattr__(name: str) -> Any:
    """Choose the protocols when uvicorn asks for them: before it listens, and with its logging in place."""
    protocols = ("HTTPProtocol", "WebSocketProtocol")
    if name not in protocols:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return dict(zip(protocols, _choose_protocols(), strict=True))[name]


@functools.cache
def _choose_protocols() -> tuple[type[asyncio.Protocol], type[asyncio.Protocol]]:
    reason = unprotected()
    if reason is None:
        from .http import HTTPProtocol
        from .websocket import WebSocketProtocol

        return HTTPProtocol, WebSocketProtocol
    # The gateway's own logger gets its handler from the application, which uvicorn imports last.
    logging.getLogger("uvicorn.error").warning(
        "request heads, fragments and pings have only uvicorn's own limits: %s; install an older release of it, or a "
        "newer release of the gateway",
        reason,
    )
    http, websocket = (path.split(":") for path in OWN_WAY)
    return getattr(importlib.import_module(http[0]), http[1]), getattr(
        importlib.import_module(websocket[0]), websocket[1]
    )
