"""An ASGI gateway that puts the services of a NuroPb mesh on the web. ``gateway.py`` has the map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
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
from .handlers.websocket import WebSocketHandler
from .protocol import CloseCode, ErrorCode
from .service_mesh_manager import ServiceMeshManager
from .settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    app: Starlette

__all__ = [
    "AuthenticationUnavailable",
    "Authenticator",
    "CallError",
    "CloseCode",
    "ErrorCode",
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
    "TokenAuthenticationBackend",
    "WebSocketHandler",
    "__version__",
    "combine_lifespans",
    "create_app",
]


def __getattr__(name: str) -> Any:
    # ``uvicorn nuropb_gateway_asgi:app``: made from the environment when it is first asked for, so that importing the
    # package needs no settings.
    if name == "app":
        app = globals()["app"] = create_app()
        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
