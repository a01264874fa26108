"""An ASGI gateway that serves the services of a NuroPb mesh to web clients. ``gateway.py`` has the map of the package.

Public names are imported on first access. A program that only uses ``nuropb_gateway_asgi.client`` then imports no web
framework and no library of a broker.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from ._version import __version__

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from .authentication import (
        Authenticator,
        FunctionAuthenticator,
        Identity,
        IssuersAuthenticator,
        JWTAuthenticator,
        KeySet,
        TokenAuthenticationBackend,
    )
    from .controller import ServiceMeshManagerController
    from .exceptions import AuthenticationUnavailable, CallError, GatewayError, SettingsError, TokenExpired
    from .gateway import Gateway, combine_lifespans
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
    "IssuersAuthenticator",
    "JWTAuthenticator",
    "KeySet",
    "ServiceMeshManager",
    "ServiceMeshManagerController",
    "Settings",
    "SettingsError",
    "TCPHandler",
    "TokenAuthenticationBackend",
    "TokenExpired",
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
    "IssuersAuthenticator": ".authentication",
    "JWTAuthenticator": ".authentication",
    "KeySet": ".authentication",
    "ServiceMeshManager": ".service_mesh_manager",
    "ServiceMeshManagerController": ".controller",
    "Settings": ".settings",
    "SettingsError": ".exceptions",
    "TokenExpired": ".exceptions",
    "TCPHandler": ".handlers.tcp",
    "TokenAuthenticationBackend": ".authentication",
    "WebSocketHandler": ".handlers.websocket",
    "combine_lifespans": ".gateway",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name], __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- for servers --------------------------------------------------------------------------------------------------


def create_app(settings: Settings | None = None, *, announce: bool = True) -> Starlette:
    """Make the application of ``uvicorn nuropb_gateway_asgi:app``: a gateway from the environment, with its logging.

    ``app.state.gateway`` is the gateway. With ``announce`` its token for development is printed, if it has one.
    """
    from .gateway import create_app

    return create_app(settings, announce=announce)


class _Package(types.ModuleType):
    """The package with ``app``: made from the environment on first access, so that imports need no settings."""

    _app: Starlette | None = None

    @property
    def app(self) -> Starlette:
        """The application of ``uvicorn nuropb_gateway_asgi:app``. Exits with one line if a setting is invalid."""
        if self._app is None:
            from .exceptions import SettingsError

            try:
                self._app = create_app()
            except SettingsError as error:
                # uvicorn and gunicorn have the same exit code for a worker that cannot start, and start no other.
                print(f"nuropb-gateway: {error}", file=sys.stderr, flush=True)  # noqa: T201
                raise SystemExit(3) from None
        return self._app


class _Application:
    """The application for servers that evaluate its name in ``vars(module)``, as hypercorn does."""

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        await sys.modules[__name__].app(scope, receive, send)


sys.modules[__name__].__class__ = _Package
globals()["app"] = _Application()  # found by vars() alone: an access to the attribute finds the property first
