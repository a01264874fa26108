"""The gateway's tokens for the host application's own HTTP routes, with Starlette's AuthenticationMiddleware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser
from starlette.requests import HTTPConnection

from ..exceptions import AuthenticationFailed, AuthenticationUnavailable
from .credentials import find_credentials
from .identity import Authenticator, Identity

__all__ = ["TokenAuthenticationBackend", "TokenUser"]


class TokenUser(BaseUser):
    """``request.user`` of an authenticated request. ``identity`` is the user id, as in Starlette."""

    def __init__(self, full_identity: Identity) -> None:
        self.full_identity = full_identity

    @property
    def is_authenticated(self) -> bool:
        """Always True."""
        return True

    @property
    def display_name(self) -> str:
        """The username."""
        return self.full_identity.username

    @property
    def identity(self) -> str:
        """The user id."""
        return self.full_identity.user_id


class TokenAuthenticationBackend(AuthenticationBackend):
    """A backend that accepts the gateway's tokens.

    As in nuropb_gw, the cookie is read for GET and HEAD requests only: browsers attach it to requests that other sites
    cause, and neither forms nor WebSockets have a same-origin rule. Give the middleware an ``on_error`` that answers
    with 401 and ``WWW-Authenticate: Bearer``; Starlette's default answers with 400.
    """

    def __init__(self, authenticator: Authenticator, cookie_name: str | None = None) -> None:
        self._authenticator = authenticator
        self._cookie_name = cookie_name

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, TokenUser] | None:
        """Return the token's user with its scopes, or None if there is no token.

        Raises AuthenticationError if the token is invalid, cannot be read, or contradicts another token. It also raises
        AuthenticationError if the token cannot be checked now: the cause is an AuthenticationUnavailable then, and the
        right answer 503. Cancellation passes through to the authenticator.
        """
        is_safe = conn.scope.get("method") in ("GET", "HEAD")  # a WebSocket has no method
        credentials = find_credentials(
            conn.headers, conn.scope.get("subprotocols", ()), self._cookie_name if is_safe else None
        )
        if credentials.conflict or credentials.malformed:
            raise AuthenticationError("Invalid bearer token")
        if credentials.token is None:
            return None
        try:
            identity = await self._authenticator(credentials.token)
        except AuthenticationUnavailable as exc:
            raise AuthenticationError("Tokens cannot be checked now") from exc
        except AuthenticationFailed as exc:
            raise AuthenticationError("Invalid bearer token") from exc
        if identity is None:
            raise AuthenticationError("Invalid bearer token")
        return AuthCredentials(["authenticated", *_scopes(identity.claims)]), TokenUser(identity)


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    scope = claims.get("scope", "")  # RFC 8693, 4.2: separated by spaces; some issuers write a list
    if isinstance(scope, str):
        return [word for word in scope.split(" ") if word]
    return [item for item in scope if isinstance(item, str)] if isinstance(scope, list) else []
