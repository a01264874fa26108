"""The 404 of paths that this gateway could serve, with the setting or the extra that is missing.

The text is the same for everybody, and tells no more than the 404 itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ..settings import ENV_PREFIX, Settings

__all__ = ["explaining_not_found"]

_HTTP: Final = f"calls and events over HTTP are off; {ENV_PREFIX}HTTP=on serves them"
_CONSOLE: Final = f"the console is off; {ENV_PREFIX}CONSOLE=on serves it"
_TOOLS: Final = f'tools for agents are off; {ENV_PREFIX}MCP=on and the extra "mcp" serve them'
_METRICS: Final = 'metrics need the package prometheus-client; install the extra "metrics"'


def explaining_not_found(
    settings: Settings, *, has_tools: bool, has_metrics: bool
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Make the handler of 404 for the gateway's own application."""
    absent: dict[str, str] = {}
    if not settings.has_console:
        absent[""] = _CONSOLE
    if not settings.serves_http:
        absent |= dict.fromkeys(("rpc", "events", "openapi.json"), _HTTP)
    if not has_tools:
        absent["mcp"] = _TOOLS
    if not has_metrics:
        absent["metrics"] = _METRICS

    async def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse(_text(absent, request), status_code=404)

    return answer


def _text(absent: Mapping[str, str], request: Request) -> str:
    # Where an application mounts the gateway, its own path comes first.
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    reason = absent.get(path.removeprefix("/").partition("/")[0])
    return "Not Found" if reason is None else f"Not Found: {reason}"
