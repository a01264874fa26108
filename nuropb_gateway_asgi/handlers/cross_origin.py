"""CORS: pages of the origins that may connect may also read HTTP answers."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ..authentication.origins import OriginPolicy

__all__ = ["CrossOrigin"]


class CrossOrigin(CORSMiddleware):
    """Starlette's CORS middleware, for the origins of an ``OriginPolicy``."""

    def __init__(
        self,
        app: ASGIApp,
        origins: OriginPolicy,
        *,
        methods: Sequence[str],
        request_headers: Sequence[str],
        response_headers: Sequence[str] = (),
        cookies: bool = False,
    ) -> None:
        super().__init__(
            app,
            allow_methods=methods,
            allow_headers=request_headers,
            allow_credentials=cookies,
            expose_headers=response_headers,
        )
        self._origins = origins

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether a page of this origin may read the answer."""
        return self._origins.allows(origin)
