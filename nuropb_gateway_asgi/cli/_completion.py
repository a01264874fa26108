"""What a shell offers for services and methods: what the gateway at hand describes, if it does so at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import click

from ._session import DEFAULT_URL, find_token, session
from ._target import parse_url

__all__ = ["complete_method", "complete_service"]

#: Seconds that somebody at a keyboard does not notice much.
PATIENCE: Final = 1.0


def complete_service(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The services that begin so."""
    return [name for name in _described(ctx, None) if name.startswith(incomplete)]


def complete_method(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The methods of the service before it that begin so."""
    service = ctx.params.get("service")
    if not service:
        return []
    methods = _described(ctx, service).get(service, {}).get("methods", {})
    return [name for name in methods if name.startswith(incomplete)]


def _described(ctx: click.Context, service: str | None) -> dict[str, Any]:
    """What there is; nothing where anything is wrong, as the command itself says what."""
    from ..client import GatewayError

    async def describe() -> dict[str, Any]:
        async with (
            asyncio.timeout(PATIENCE),
            session(target, token, timeout=PATIENCE, tell=lambda warning: None) as gateway,
        ):
            services: dict[str, Any] = (await gateway.describe(service))["services"]
            return services

    file = ctx.params.get("token_file")
    with contextlib.suppress(GatewayError, OSError, ValueError, click.UsageError):
        target = parse_url(ctx.params.get("url") or DEFAULT_URL)
        # Standard input is the shell's.
        token = None if file == "-" else find_token(ctx.params.get("token"), file)
        if token is not None:
            return asyncio.run(describe())
    return {}
