"""Authentication by a function of the host application."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import anyio.to_thread

from ..exceptions import AuthenticationUnavailable
from .identity import Identity, is_name
from .strict_json import Unacceptable
from .tokens import is_token, numeric_date

__all__ = ["FunctionAuthenticator"]

logger = logging.getLogger(__name__)

#: The greatest number of threads for synchronous functions, of each authenticator; anyio's default.
MAX_THREADS: Final = 40


class FunctionAuthenticator:
    """An authenticator that calls a function such as nuropb_gw's ``authorise_from_token(token) -> dict | None``.

    The function may be synchronous, asynchronous, or return an awaitable. Its dict has ``user_id`` (a string or an
    int), and may have ``username`` and ``expires_at`` or ``exp`` (unix seconds, a datetime, or an ISO 8601 string; UTC
    if it has no time zone). The other members become the claims, except ``bearer_token``.

    The function may raise AuthenticationUnavailable. Any other exception refuses the token. The log has the type of the
    exception, and at debug level its traceback, but never its message, which may quote the token.
    """

    def __init__(
        self, function: Callable[[str], Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None]
    ) -> None:
        self._function: Callable[[str], Any] = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        # An own limiter, because anyio's default one is for the host application's synchronous endpoints.
        self._limiter = anyio.CapacityLimiter(MAX_THREADS)
        self._max_threads = MAX_THREADS
        self._places = threading.Semaphore(MAX_THREADS)

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None if the function returns a falsy, expired or unusable answer, or raises.

        Cancellation takes effect at once. A synchronous function runs in a worker thread, and continues there after
        cancellation until it returns. While 40 functions are running, cancelled or not, further calls wait or raise
        AuthenticationUnavailable.
        """
        if not is_token(token):
            return None
        try:
            if self._is_async:
                answer = self._function(token)
            else:
                answer = await anyio.to_thread.run_sync(self._run, token, abandon_on_cancel=True, limiter=self._limiter)
            if inspect.isawaitable(answer):
                answer = await answer
            return _read_answer(token, answer) if answer else None
        except AuthenticationUnavailable:
            raise
        except Unacceptable as exc:
            logger.warning("the authentication function returned an unusable answer: %s", exc)
        except Exception as exc:
            logger.warning("the authentication function raised %s; the token is refused", type(exc).__name__)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("It was raised here:\n%s", "".join(traceback.format_tb(exc.__traceback__)))
        return None

    def _run(self, token: str) -> Any:
        # On cancellation anyio frees the limiter at once, although the thread is still running. Without a count of the
        # threads, clients that come and go would add a thread each while the function hangs.
        if not self._places.acquire(blocking=False):
            raise AuthenticationUnavailable(
                f"{self._max_threads} calls of the authentication function have not returned yet"
            )
        try:
            return self._function(token)
        finally:
            self._places.release()


def _read_answer(token: str, answer: object) -> Identity | None:
    if not isinstance(answer, Mapping):
        raise Unacceptable("it is not a dict")
    claims = dict(answer)
    # nuropb_gw's functions put the token itself here.
    claims.pop("bearer_token", None)
    user_id = claims.pop("user_id", None)
    if type(user_id) is int:
        user_id = str(user_id)
    if not is_name(user_id):
        raise Unacceptable("user_id is not a printable string of 1 to 256 characters")
    username = claims.pop("username", None)
    exp = claims.pop("exp", None)
    expires_at = claims.pop("expires_at", None)
    expires_at = _unix_seconds(exp if expires_at is None else expires_at)
    if expires_at is not None and expires_at <= time.time():
        return None
    return Identity(
        user_id=user_id,
        username=username if is_name(username) else user_id,
        token=token,
        claims=claims,
        expires_at=expires_at,
    )


def _unix_seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise Unacceptable("expires_at is not an ISO 8601 date") from None
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return numeric_date(value, "expires_at")
