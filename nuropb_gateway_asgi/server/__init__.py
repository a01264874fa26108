"""How does uvicorn face an open network? Its protocols with limits, and its configuration.

``nuropb-gateway serve`` uses all of this; for uvicorn by itself, name the two protocols::

    uvicorn nuropb_gateway_asgi:app --http nuropb_gateway_asgi.server:HTTPProtocol \\
        --ws nuropb_gateway_asgi.server:WebSocketProtocol
"""

from __future__ import annotations

from .websocket import (
    HTTPProtocol,
    WebSocketProtocol,
    allow_files,
    make_config,
    new_event_loop,
    tune_collector,
    unprotected,
)

__all__ = [
    "HTTPProtocol",
    "WebSocketProtocol",
    "allow_files",
    "make_config",
    "new_event_loop",
    "tune_collector",
    "unprotected",
]
