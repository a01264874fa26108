"""Files of the package that pages load."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["Asset", "is_asset", "is_known", "read_asset", "serve_asset"]

_MEDIA_TYPES: Final = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """A file as it is served."""

    body: bytes
    media_type: str
    etag: str


def is_asset(name: str) -> bool:
    """Whether a file of this name is something that pages load."""
    return PurePosixPath(name).suffix in _MEDIA_TYPES


@functools.cache
def read_asset(path: str) -> Asset:
    """A file by its path within the package; read once."""
    body = importlib.resources.files(__package__.partition(".")[0]).joinpath(*PurePosixPath(path).parts).read_bytes()
    return Asset(body, _MEDIA_TYPES[PurePosixPath(path).suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def serve_asset(request: Request, asset: Asset, headers: Mapping[str, str]) -> Response:
    """The file, or 304 if the browser has it.

    It is asked for by every page that needs it, so that what a page loads is never older than the gateway.
    """
    all_headers = {"ETag": asset.etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", **headers}
    if is_known(request, asset.etag):
        return Response(status_code=304, headers=all_headers)
    return Response(asset.body, media_type=asset.media_type, headers=all_headers)


def is_known(request: Request, etag: str) -> bool:
    """Whether who asks says that this is what they have (RFC 9110, 13.1.2)."""
    known = request.headers.get("If-None-Match", "").split(",")
    return etag in (each.strip().removeprefix("W/") for each in known)
