"""The command ``explain``: may a token call a method or subscribe to a topic, and why?"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from ..settings import Settings
from ._development import with_kept_key
from ._options import SECONDS, TOKEN_VARIABLE

if TYPE_CHECKING:
    from ..wire.interface import Mesh

__all__ = ["explain", "print_explanation", "read_token"]

EPILOG: Final = f"""Without an option the token comes from {TOKEN_VARIABLE}. The settings must be the gateway's own.
No method is called.

\b
Examples:
  nuropb-gateway explain orders.create --token-file token
  nuropb-gateway explain orders.create --tool
  nuropb-gateway explain --topic 'orders.#'

\b
Exit codes:
  0  allowed
  1  not allowed
  2  invalid command line or setting
"""
_OWN_KEY: Final = "JWT_KEY is not set, so every process generates its own key: this is not the key of a running gateway"


@click.command(epilog=EPILOG)
@click.argument("method", required=False)
@click.option("--topic", help="Explain a subscription to this topic pattern instead, e.g. 'orders.#'.")
@click.option("--tool", "is_tool", is_flag=True, help="Explain a call of METHOD by the token's agent (MCP).")
@click.option("--token", help="The token. Other users of this machine can see it.")
@click.option("--token-file", help="File with the token.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--timeout", type=SECONDS, default=5.0, show_default=True, help="Seconds to wait for the mesh.")
def explain(
    method: str | None,
    topic: str | None,
    is_tool: bool,
    token: str | None,
    token_file: str | None,
    as_json: bool,
    timeout: float,
) -> int:
    """Say whether a token may call METHOD (service.method) or subscribe to a topic, and why."""
    token = token or (read_token(token_file) if token_file else os.environ.get(TOKEN_VARIABLE))
    return print_explanation(token or "", method=method, topic=topic, is_tool=is_tool, as_json=as_json, timeout=timeout)


def print_explanation(
    token: str,
    *,
    method: str | None = None,
    topic: str | None = None,
    is_tool: bool = False,
    as_json: bool = False,
    timeout: float = 5.0,
    settings: Settings | None = None,
) -> int:
    """Print whether a token may call ``method`` (``service.method``) or subscribe to ``topic``, and why.

    With ``is_tool`` the call is one by an agent with this token.
    ``timeout`` is for the mesh, in seconds. Returns the exit code: 0 for allowed, 1 for not allowed. Raises
    SettingsError, and ValueError unless there is a token and exactly one of ``method`` and ``topic``.
    """
    if not token:
        raise ValueError(f"a token is needed: --token, --token-file or {TOKEN_VARIABLE}")
    if (method is None) == (topic is None):
        raise ValueError("one of service.method and --topic is needed")
    if is_tool and method is None:
        raise ValueError("--tool is about a method, not about a topic")
    from ..authorization.explain import render

    settings = with_kept_key(Settings.from_env(), make=False) if settings is None else settings
    with _quiet():
        explanation = asyncio.run(_explain(settings, token, method, topic, timeout, is_tool=is_tool))
    click.echo(json.dumps(explanation, indent=2, default=str) if as_json else render(explanation))
    return 0 if explanation["outcome"]["allowed"] else 1


def read_token(path: str) -> str:
    """Read a token from a file, without surrounding white space. Raises OSError, and ValueError if it is not text."""
    return Path(path).read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the package's log: the explanation contains the errors."""
    package, handler = logging.getLogger("nuropb_gateway_asgi"), logging.NullHandler()
    propagates, package.propagate = package.propagate, False
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.propagate = propagates


async def _explain(
    settings: Settings,
    token: str,
    method: str | None,
    topic: str | None,
    timeout: float,  # noqa: ASYNC109
    *,
    is_tool: bool,
) -> dict[str, Any]:
    from ..authorization.explain import explain as explain_decision
    from ..gateway import Gateway
    from ..handler_manager import HandlerManager
    from ..service_mesh_manager import ServiceMeshManager

    gateway = Gateway(settings)
    # Not the gateway's own manager, which would receive calls of other services, as every process of a gateway does.
    patient = dataclasses.replace(settings, request_timeout=min(timeout, settings.request_timeout_max))
    handlers = HandlerManager(patient, gateway.handler_manager.authenticator, gateway.policy)
    manager = ServiceMeshManager(patient, handlers, _make_mesh(settings), gateway.policy)
    action: Literal["call", "subscribe", "tool"] = "tool" if is_tool else "call" if method is not None else "subscribe"
    async with gateway.authentication():
        explanation = await explain_decision(
            settings,
            handlers.authenticator,
            handlers.revocations,
            gateway.policy,
            manager,
            token=token,
            action=action,
            name=method or topic or "",
            timeout=timeout,
        )
    is_kept = bool(settings.development_key_file)
    if not explanation["token"]["valid"] and gateway.development_token is not None and not is_kept:
        explanation["token"]["why"].append(_OWN_KEY)
    return explanation


def _make_mesh(settings: Settings) -> Mesh:
    if settings.embedded:
        from ..mesh.demo import DemoService
        from ..mesh.embedded import EmbeddedMesh

        return EmbeddedMesh({"demo": DemoService()}, service_name=settings.service_name)
    from ..mesh.rabbitmq import RabbitMQMesh

    return RabbitMQMesh(
        settings.mesh_url, service_name=settings.service_name, instance_id=settings.instance_id, role="observer"
    )
