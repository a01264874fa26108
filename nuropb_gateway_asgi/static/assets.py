"""Files of the package that pages load."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from .entity_tags import entity_tag, tagged_response

__all__ = ["Asset", "is_asset", "read_asset", "serve_asset"]

_MEDIA_TYPES: Final = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """The content of a file, its media type and its entity tag."""

    body: bytes
    media_type: str
    etag: str


def is_asset(name: str) -> bool:
    """Whether pages load files with this name's suffix."""
    return PurePosixPath(name).suffix in _MEDIA_TYPES


@functools.cache
def read_asset(path: str) -> Asset:
    """Read a file, given its path within the package. Each file is read once."""
    body = importlib.resources.files(__package__.partition(".")[0]).joinpath(*PurePosixPath(path).parts).read_bytes()
    return Asset(body, _MEDIA_TYPES[PurePosixPath(path).suffix], entity_tag(body))


def serve_asset(request: Request, asset: Asset, headers: Mapping[str, str]) -> Response:
    """Answer with the file, or with 304 if the browser has this version.

    Browsers ask on every page load, so a page never runs files that are older than the gateway.
    """
    fixed = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return tagged_response(request, asset.body, asset.etag, media_type=asset.media_type, headers=fixed | dict(headers))
