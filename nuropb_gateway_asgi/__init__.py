"""An ASGI gateway that serves the services of a NuroPb mesh to web clients. ``gateway.py`` has the map of the package.

Public names are imported on first access. A program that only uses ``nuropb_gateway_asgi.client`` then imports no web
framework and no library of a broker.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from ._version import __version__

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from .authentication import (
        Authenticator,
        FunctionAuthenticator,
        Identity,
        JWTAuthenticator,
        KeySet,
        TokenAuthenticationBackend,
    )
    from .controller import ServiceMeshManagerController
    from .exceptions import AuthenticationUnavailable, CallError, GatewayError, SettingsError
    from .gateway import Gateway, combine_lifespans, create_app
    from .handler_manager import Handler, HandlerManager
    from .handlers.event_streams import EventStreamHandler
    from .handlers.http_calls import CallHandler
    from .handlers.tcp import TCPHandler
    from .handlers.websocket import WebSocketHandler
    from .protocol import CloseCode, ErrorCode
    from .service_mesh_manager import ServiceMeshManager
    from .settings import Settings

    app: Starlette

__all__ = [
    "AuthenticationUnavailable",
    "Authenticator",
    "CallError",
    "CallHandler",
    "CloseCode",
    "ErrorCode",
    "EventStreamHandler",
    "FunctionAuthenticator",
    "Gateway",
    "GatewayError",
    "Handler",
    "HandlerManager",
    "Identity",
    "JWTAuthenticator",
    "KeySet",
    "ServiceMeshManager",
    "ServiceMeshManagerController",
    "Settings",
    "SettingsError",
    "TCPHandler",
    "TokenAuthenticationBackend",
    "WebSocketHandler",
    "__version__",
    "combine_lifespans",
    "create_app",
]


#: The modules of the public names.
_MODULES: Final = {
    "AuthenticationUnavailable": ".exceptions",
    "Authenticator": ".authentication",
    "CallError": ".exceptions",
    "CallHandler": ".handlers.http_calls",
    "CloseCode": ".protocol",
    "ErrorCode": ".protocol",
    "EventStreamHandler": ".handlers.event_streams",
    "FunctionAuthenticator": ".authentication",
    "Gateway": ".gateway",
    "GatewayError": ".exceptions",
    "Handler": ".handler_manager",
    "HandlerManager": ".handler_manager",
    "Identity": ".authentication",
    "JWTAuthenticator": ".authentication",
    "KeySet": ".authentication",
    "ServiceMeshManager": ".service_mesh_manager",
    "ServiceMeshManagerController": ".controller",
    "Settings": ".settings",
    "SettingsError": ".exceptions",
    "TCPHandler": ".handlers.tcp",
    "TokenAuthenticationBackend": ".authentication",
    "WebSocketHandler": ".handlers.websocket",
    "combine_lifespans": ".gateway",
    "create_app": ".gateway",
}


def __getattr__(name: str) -> Any:
    # For ``uvicorn nuropb_gateway_asgi:app``. Made from the environment on first access, so that importing the package
    # needs no settings.
    if name == "app":
        make = globals().get("create_app") or __getattr__("create_app")
        app = globals()["app"] = make()
        return app
    if name in _MODULES:
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name], __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
