"""How does a person use the gateway? The console: a web page that is a client like any other (``docs/console.md``).

The console is plain files, without a build step. It loads files of its gateway only, and has the permissions of the
token that is pasted into it.
"""

from __future__ import annotations

import functools
import html
import importlib.resources
from collections.abc import Iterator, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ..static.assets import Asset, is_asset, read_asset, serve_asset
from ..static.entity_tags import entity_tag

__all__ = ["CONTENT_SECURITY_POLICY", "admin_routes", "console_routes"]

#: Scripts and styles are files of the gateway, requests go to the gateway, and no page may frame the console.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def console_routes(path: str, agents: str | None, *, development: bool, faults: str | None = None) -> list[BaseRoute]:
    """Return the routes of the page (``/``) and of its files.

    ``path`` is the path of the WebSocket, ``agents`` that of the tools for agents, or None if these are off, and
    ``faults`` that of the faults on demand, which only a gateway for development has.

    With ``development`` the page reads a token from the fragment of its own address. That is for a gateway that made
    the token itself, for this run: on any other gateway, a link could sign a person in as somebody else.
    """
    page = _page(path, agents, development, faults)

    async def serve_page(request: Request) -> Response:
        return serve_asset(request, page, _PAGE_HEADERS)

    return [
        Route("/", serve_page, methods=["GET"], name="console"),
        Route("/console/{file:path}", _serve_file, methods=["GET"]),
    ]


def admin_routes(*, needs_token: bool) -> list[BaseRoute]:
    """Return the routes of the page of the admin API (``/``) and of its files, for the address of that API alone.

    The page asks for the admin token if requests need one, and keeps it in memory.
    """
    page = _filled(read_asset("console/admin.html"), {"token": "yes" if needs_token else "no"})

    async def serve_page(request: Request) -> Response:
        return serve_asset(request, page, _PAGE_HEADERS)

    return [
        Route("/", serve_page, methods=["GET"], name="admin"),
        Route("/console/{file:path}", _serve_file, methods=["GET"]),
    ]


async def _serve_file(request: Request) -> Response:
    file = request.path_params["file"]
    if file not in _files():
        return PlainTextResponse("Not Found", status_code=404)
    return serve_asset(request, read_asset(f"console/{file}"), _PAGE_HEADERS)


def _page(path: str, agents: str | None, development: bool, faults: str | None) -> Asset:
    # Relative, so that the page works wherever the gateway is mounted.
    values = {
        "socket": f".{path}",
        "agents": "" if agents is None else f".{agents}",
        "faults": "" if faults is None else f".{faults}",
        "development": "yes" if development else "no",
    }
    return _filled(read_asset("console/index.html"), values)


def _filled(page: Asset, values: Mapping[str, str]) -> Asset:
    body = page.body.decode()
    for name, value in values.items():
        body = body.replace(f"{{{{{name}}}}}", html.escape(value))
    encoded = body.encode()
    return Asset(encoded, page.media_type, entity_tag(encoded))


@functools.cache
def _files() -> frozenset[str]:
    """List the files that the page may load. Requests are compared with these names and never become a path."""
    root = importlib.resources.files(__package__)

    def names() -> Iterator[str]:
        for entry in root.iterdir():
            if is_asset(entry.name) and not entry.name.endswith(".html"):
                yield entry.name
        for entry in root.joinpath("vendor").iterdir():
            if is_asset(entry.name):
                yield f"vendor/{entry.name}"

    return frozenset(names())
