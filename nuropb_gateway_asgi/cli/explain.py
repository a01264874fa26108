"""``explain``: why a token may do something, or why not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..settings import ENV_PREFIX, Settings

if TYPE_CHECKING:
    from ..wire.interface import Mesh

__all__ = ["explain", "print_explanation", "read_token"]

TOKEN_VARIABLE = f"{ENV_PREFIX}TOKEN"
EPILOG = f"""Without an option the token is read from the environment: {TOKEN_VARIABLE}. The settings are the gateway's
own. Nothing is called.

\b
Examples:
  nuropb-gateway explain orders.create --token-file token
  nuropb-gateway explain --topic 'orders.#'

\b
Exit codes:
  0  yes
  1  no
  2  the command line or a setting is wrong
"""
_OWN_KEY = "no JWT_KEY is set, so every gateway on the embedded mesh makes up one of its own: this is another one"


@click.command(epilog=EPILOG)
@click.argument("method", required=False)
@click.option("--topic", help="A topic pattern instead, e.g. 'orders.#'.")
@click.option("--token", help="The token; others on this machine can see it.")
@click.option("--token-file", help="A file that holds the token.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True, help="Seconds.")
def explain(
    method: str | None, topic: str | None, token: str | None, token_file: str | None, as_json: bool, timeout: float
) -> int:
    """Say why a token may call METHOD (service.method), or subscribe to a topic, or why not."""
    token = token or (read_token(token_file) if token_file else os.environ.get(TOKEN_VARIABLE))
    return print_explanation(token or "", method=method, topic=topic, as_json=as_json, timeout=timeout)


def print_explanation(
    token: str,
    *,
    method: str | None = None,
    topic: str | None = None,
    as_json: bool = False,
    timeout: float = 5.0,
    settings: Settings | None = None,
) -> int:
    """Print why a token may call ``method`` (``service.method``) or subscribe to ``topic``, or why not.

    ``timeout`` is for the mesh, in seconds. The result is the exit status: 0 for yes, 1 for no. Raises SettingsError,
    and ValueError unless there is a token and exactly one of the other two.
    """
    if not token:
        raise ValueError(f"a token is needed: --token, --token-file or {TOKEN_VARIABLE}")
    if (method is None) == (topic is None):
        raise ValueError("one of service.method and --topic is needed")
    from ..authorization.explain import render

    settings = Settings.from_env() if settings is None else settings
    with _quiet():
        explanation = asyncio.run(_explain(settings, token, method, topic, timeout))
    click.echo(json.dumps(explanation, indent=2, default=str) if as_json else render(explanation))
    return 0 if explanation["outcome"]["allowed"] else 1


def read_token(path: str) -> str:
    """A token from a file; white space around it is not part of it. Raises OSError, and ValueError if it is no text."""
    return Path(path).read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What goes wrong is in the explanation; the log would say it again."""
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
) -> dict[str, Any]:
    from ..authorization.explain import explain as explain_decision
    from ..gateway import Gateway
    from ..handler_manager import HandlerManager
    from ..service_mesh_manager import ServiceMeshManager

    gateway = Gateway(settings)
    # Not the gateway's own, which would take calls of other services as every process of a gateway does.
    patient = dataclasses.replace(settings, request_timeout=min(timeout, settings.request_timeout_max))
    handlers = HandlerManager(patient, gateway.handler_manager.authenticator, gateway.policy)
    manager = ServiceMeshManager(patient, handlers, _make_mesh(settings), gateway.policy)
    action: Literal["call", "subscribe"] = "call" if method is not None else "subscribe"
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
    if not explanation["token"]["valid"] and gateway.development_token is not None:
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
