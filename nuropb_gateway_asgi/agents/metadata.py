"""``/.well-known/oauth-protected-resource`` (RFC 9728): where an agent's host gets a token for the tools."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..contracts.endpoints import place_of
from ..contracts.model import Place
from ..settings import Settings

__all__ = ["PATH", "ResourceMetadata"]

#: The path of the tools.
PATH: Final = "/mcp"
_WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"


class ResourceMetadata:
    """The document, and the challenge that leads to it. Without JWT_OIDC_ISSUER there is no document."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.jwt_oidc_issuer
        self._public_place = Place.at(settings.public_url) if settings.public_url else None

    def routes(self) -> list[Route]:
        """Return the routes of the document: at the root, and at the path that RFC 9728 makes of the resource's."""
        if not self._issuer:
            return []
        return [Route(f"{_WELL_KNOWN}{path}", self._serve, methods=["GET"]) for path in ("", PATH)]

    def challenge(self, request: Request, challenge: str = "Bearer") -> str:
        """Return the ``WWW-Authenticate`` header of an answer with status 401: ``challenge``, and the document."""
        if not self._issuer:
            return challenge
        separator = " " if challenge == "Bearer" else ", "
        return f'{challenge}{separator}resource_metadata="{self._base(request)}{_WELL_KNOWN}{PATH}"'

    async def _serve(self, request: Request) -> Response:
        document = {
            "resource": f"{self._base(request)}{PATH}",
            "authorization_servers": [self._issuer],
            "bearer_methods_supported": ["header"],
            "resource_name": "Services of a NuroPb mesh",
        }
        # Hosts in browsers read it before they have a token; it holds no secret.
        headers = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"}
        return JSONResponse(document, headers=headers)

    def _base(self, request: Request) -> str:
        place = self._public_place or place_of(request)
        return f"{'https' if place.secure else 'http'}://{place.host}{place.root}"
