"""The import paths and import strings that users were promised. None may move."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from uvicorn.importer import import_from_string

#: Documented in README.md and docs/, or used by the examples: module, and the names that it has for users.
PATHS = {
    "nuropb_gateway_asgi": [
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
    ],
    "nuropb_gateway_asgi.__main__": ["main"],
    "nuropb_gateway_asgi.authentication": [
        "Authenticator",
        "FunctionAuthenticator",
        "Identity",
        "IssuersAuthenticator",
        "JWTAuthenticator",
        "KeySet",
        "OriginPolicy",
        "TokenAuthenticationBackend",
        "TokenUser",
        "bearer_from_header",
        "bearer_from_subprotocols",
        "find_credentials",
        "issue_token",
        "new_secret",
    ],
    "nuropb_gateway_asgi.authorization": [
        "AuthorizedPolicy",
        "Authorizer",
        "CallVerdict",
        "Considered",
        "Decision",
        "ExposePolicy",
        "Policy",
        "RulePolicy",
        "completed",
        "escape_word",
    ],
    "nuropb_gateway_asgi.cli": ["main"],
    "nuropb_gateway_asgi.client": ["Client", "SyncClient", "connect", "connect_sync"],
    "nuropb_gateway_asgi.controller": ["ServiceMeshManagerController"],
    "nuropb_gateway_asgi.exceptions": ["CallError", "GatewayError", "SettingsError"],
    "nuropb_gateway_asgi.gateway": ["Gateway", "combine_lifespans", "configure_logging", "create_app"],
    "nuropb_gateway_asgi.handler_manager": ["Handler", "HandlerManager", "SendCount"],
    "nuropb_gateway_asgi.mesh": ["PublishEvent", "hosting", "serve", "with_context"],
    "nuropb_gateway_asgi.wire.interface": ["CallMessage", "EventMessage", "Mesh", "MeshReceiver", "Reply"],
    "nuropb_gateway_asgi.mesh.embedded": ["EmbeddedMesh"],
    "nuropb_gateway_asgi.wire.errors": [
        "NuropbAuthenticationError",
        "NuropbAuthorizationError",
        "NuropbDeprecatedError",
        "NuropbHandlingError",
        "NuropbTransportError",
        "NuropbValidationError",
    ],
    "nuropb_gateway_asgi.mesh.rabbitmq": ["RabbitMQMesh", "RabbitMQStatistics", "probe"],
    "nuropb_gateway_asgi.protocol": ["CloseCode", "ErrorCode"],
    "nuropb_gateway_asgi.server": ["HTTPProtocol", "WebSocketProtocol", "make_config", "new_event_loop"],
    "nuropb_gateway_asgi.service_mesh_manager": ["ServiceMeshManager", "ServiceMeshManagerController"],
    "nuropb_gateway_asgi.settings": ["Settings"],
    "nuropb_gateway_asgi.topics": ["check_pattern", "check_topic"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PATHS.items() for name in names])
def test_a_public_name_is_where_it_was(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("module", PATHS)
def test_a_public_module_can_be_the_first_that_is_imported(module: str) -> None:
    program = f"import {module} as module\nfor name in {PATHS[module]!r}: getattr(module, name)\n"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "string",
    [
        "nuropb_gateway_asgi.server:HTTPProtocol",
        "nuropb_gateway_asgi.server:WebSocketProtocol",
        "nuropb_gateway_asgi.server:new_event_loop",
    ],
)
def test_what_uvicorn_is_told_to_import_is_there(string: str) -> None:
    assert callable(import_from_string(string))
