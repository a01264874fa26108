"""The token of a client: fetched for every connection, and replaced before it expires."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ._backoff import Backoff
from ._options import Reason, Token
from .errors import GatewayError, PermissionDenied, TokenRefreshFailed, Unauthenticated, caused_by

__all__ = ["TokenRefresh", "TokenSource"]


class TokenSource:
    """The application's token, or its function that returns tokens."""

    def __init__(self, token: Token | None) -> None:
        self._token: Any = token
        self._takes_reason = _takes_reason(token)
        self._fetching = asyncio.Lock()

    @property
    def is_given(self) -> bool:
        """Whether the application gave a token or a function. Otherwise connections are made without a token."""
        return self._token is not None

    @property
    def is_renewable(self) -> bool:
        """Whether another call of :meth:`fetch` may return another token."""
        return callable(self._token)

    async def fetch(self, reason: Reason) -> str | None:
        """Return a token, or None if the application has none any more. Raises what its function raises.

        The function is called once at a time: a provider that rotates refresh tokens would take two calls for a theft.
        """
        if self._token is None or isinstance(self._token, str):
            return self._token
        async with self._fetching:
            function = functools.partial(self._token, reason=reason) if self._takes_reason else self._token
            # A plain function runs in a thread, as it may block, for example on a request to a server.
            asynchronous = inspect.iscoroutinefunction(self._token)
            token = function() if asynchronous else await asyncio.to_thread(function)
            token = await token if inspect.isawaitable(token) else token
            return None if token is None else str(token)


def _takes_reason(token: object) -> bool:
    """Return whether a function of the application has a parameter ``reason``."""
    try:
        parameter = inspect.signature(token).parameters.get("reason") if callable(token) else None
    except ValueError:  # some functions written in C have no signature
        return False
    return parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY


class TokenRefresh:
    """Replaces the token of an open connection before it expires.

    ``margin`` is in seconds, at most, before the expiry. ``authorize`` sends a token on the open connection; ``warn``
    receives the failures.
    """

    def __init__(
        self,
        source: TokenSource,
        *,
        margin: float,
        backoff: Backoff,
        authorize: Callable[[str], Awaitable[object]],
        warn: Callable[[GatewayError], object],
    ) -> None:
        self._source = source
        self._margin = margin
        self._backoff = backoff
        self._authorize = authorize
        self._warn = warn
        self._expires_at: float | None = None
        #: Set when the gateway has sent an expiry.
        self._news = asyncio.Event()

    def note_expiry(self, expires_at: float | None) -> None:
        """Take the expiry of the current token from the gateway: seconds since 1970, or None for never."""
        self._expires_at = expires_at
        self._news.set()

    async def run(self) -> None:
        """Replace the token again and again, until it is cancelled.

        After a replacement that failed for good it waits for the next connection.
        """
        if not self._source.is_renewable:
            return
        self._expires_at = None
        while True:
            self._news.clear()
            delay = self._delay()
            try:
                async with asyncio.timeout(delay):
                    await self._news.wait()
            except TimeoutError:
                if not await self._replace():
                    self._expires_at = None

    def _delay(self) -> float | None:
        """Return the seconds until the token has to be replaced; None if it does not expire."""
        if self._expires_at is None:
            return None
        left = self._expires_at - time.time()
        if left <= 0:
            # The clocks disagree by more than the token's lifetime. Only the gateway knows the end, and closes then.
            return None
        margin = min(self._margin, left / 4) * (0.5 + self._backoff.random() / 2)
        return left - margin

    async def _replace(self) -> bool:
        """Try to replace the token until it expires, and return whether that succeeded."""
        expires_at = self._expires_at or 0.0
        attempt = 0
        while True:
            try:
                token = await self._source.fetch("refresh")
                if token is None:
                    raise Unauthenticated("unauthenticated", "there is no token any more")
                await self._authorize(token)
            except Exception as error:
                self._warn(caused_by(TokenRefreshFailed("the token could not be replaced"), error))
                # A token of another user is refused here. It is used for the next connection, after this one ends.
                wait = self._backoff.delay(attempt)
                if isinstance(error, PermissionDenied) or time.time() + wait >= expires_at:
                    return False
                attempt += 1
                await asyncio.sleep(wait)
            else:
                return True
