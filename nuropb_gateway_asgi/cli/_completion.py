"""Shell completion of services and methods, from the description that a gateway gives within a second."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable
from typing import Any, Final

import click

from ._options import DEFAULT_URL, find_token
from ._session import session
from ._target import parse_url

__all__ = ["complete_method", "complete_service"]

#: Seconds for an answer; a user at a keyboard hardly notices these.
COMPLETION_TIMEOUT: Final = 1.0
#: Names come from services, and shells insert completions unquoted: ``$(...)`` would run when a user presses Enter, a
#: ``*`` be replaced by files, a line break end the command, and a first ``-`` be taken for an option.
_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def complete_service(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of services that begin with ``incomplete``."""
    return _words(_described(ctx, None), incomplete)


def complete_method(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the methods that begin with ``incomplete``, of the service that is already typed."""
    service = ctx.params.get("service")
    if not service:
        return []
    methods = _described(ctx, service).get(service, {}).get("methods", {})
    return _words(methods, incomplete)


def _words(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names that begin with ``incomplete`` and have no meaning for a shell."""
    return [name for name in names if name.startswith(incomplete) and _WORD.fullmatch(name)]


def _described(ctx: click.Context, service: str | None) -> dict[str, Any]:
    """Return the described services. Errors give none: the command itself will report them."""
    from ..client import GatewayError

    async def describe() -> dict[str, Any]:
        async with (
            asyncio.timeout(COMPLETION_TIMEOUT),
            session(target, token, timeout=COMPLETION_TIMEOUT, tell=lambda warning: None) as gateway,
        ):
            services: dict[str, Any] = (await gateway.describe(service))["services"]
            return services

    file = ctx.params.get("token_file")
    with contextlib.suppress(GatewayError, OSError, ValueError, click.UsageError):
        target = parse_url(ctx.params.get("url") or DEFAULT_URL)
        # Standard input belongs to the shell.
        token = None if file == "-" else find_token(ctx.params.get("token"), file)
        if token is not None:
            return asyncio.run(describe())
    return {}
