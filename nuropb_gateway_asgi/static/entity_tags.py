"""Entity tags: answers that a client need not download twice (RFC 9110, 8.8.3 and 13.1.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["entity_tag", "tagged_response"]


def entity_tag(body: bytes) -> str:
    """Return the entity tag of a body: a digest, so that the same bytes have the same tag in every process."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def tagged_response(
    request: Request, body: bytes, etag: str, *, media_type: str, headers: Mapping[str, str]
) -> Response:
    """Answer with ``body``, or with 304 if the request's ``If-None-Match`` names its ``etag``."""
    headers = {"ETag": etag, **headers}
    known = request.headers.get("If-None-Match", "").split(",")
    if etag in (each.strip().removeprefix("W/") for each in known):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
