"""Who is this: what turns a bearer token into an identity.

* `Identity` is what the rest of the gateway knows about a client.
* `JWTAuthenticator` and `FunctionAuthenticator` turn a bearer token into an `Identity`, or into None.
* `TokenAuthenticationBackend` puts the same tokens in front of the HTTP routes of a host application.

What they are made of is in modules of its own, and can be imported from here as well: `KeySet`, `OriginPolicy`,
`find_credentials`, and `new_secret` and `issue_token` for development and tests.

A token is a password until it expires. No repr, log record or exception of this module contains one.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import math
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, Final, Protocol, Self, TypeGuard

import anyio
import anyio.to_thread
import msgspec
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser
from starlette.requests import HTTPConnection

from ..exceptions import AuthenticationUnavailable, NotStartedError, SettingsError
from .credentials import Credentials, Discreet, bearer_from_header, bearer_from_subprotocols, find_credentials
from .key_sets import KeySet
from .keys import Key, KeyRing, issue_token, new_secret, read_key
from .origins import OriginPolicy
from .strict_json import Unacceptable
from .tokens import Compact, is_token, numeric_date, parse_claims, parse_compact

__all__ = [
    "Authenticator",
    "Credentials",
    "FunctionAuthenticator",
    "Identity",
    "JWTAuthenticator",
    "KeySet",
    "OriginPolicy",
    "TokenAuthenticationBackend",
    "TokenUser",
    "bearer_from_header",
    "bearer_from_subprotocols",
    "find_credentials",
    "issue_token",
    "new_secret",
]

logger = logging.getLogger(__name__)


class Identity(Discreet, frozen=True, kw_only=True):
    """A client that has been authenticated.

    ``token`` is the token exactly as it was presented. ``claims`` is read-only (values nested in it are not
    copied). ``expires_at`` is in unix seconds, None when the identity does not expire; within the leeway of
    the `JWTAuthenticator` it may already be past.
    """

    user_id: str
    username: str
    token: str
    claims: Mapping[str, Any] = {}
    expires_at: float | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "claims", MappingProxyType(dict(self.claims)))

    def __hash__(self) -> int:
        return hash((self.user_id, self.token))


class Authenticator(Protocol):
    """Tells who a token belongs to.

    It may have more to it. If it is an asynchronous context manager as well, the gateway's lifespan enters it. If it
    has an attribute ``problem`` that is not None, the gateway is not ready, and the text says why; that of an attribute
    ``warning`` is shown beside it, and changes nothing. Both are read whenever readiness is asked for.
    """

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None for any token that is not valid.

        It never raises for what a client sent. Raises AuthenticationUnavailable when it cannot tell: the token may be
        good, and its client is told to try again later. Cancellation passes through.
        """


# --- A function of the host application

_MAX_THREADS = 40  # as many as anyio has by default


class FunctionAuthenticator:
    """Asks a function of the host application, nuropb_gw's ``authorise_from_token(token) -> dict | None``.

    The function may be synchronous, asynchronous, or return an awaitable. Its dict has ``user_id`` (a string
    or an int), and may have ``username`` and ``expires_at`` or ``exp`` (unix seconds, a datetime, or an ISO
    8601 string; UTC when it has no time zone); the rest becomes the claims, except ``bearer_token``.

    It may raise AuthenticationUnavailable; any other exception refuses the token. The log never has the message of
    an exception of the function, because it may quote the token: a warning has the type, and at debug level follows
    where it was raised.
    """

    def __init__(
        self, function: Callable[[str], Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None]
    ) -> None:
        self._function: Callable[[str], Any] = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        # Of its own, because the host's synchronous endpoints live on anyio's default limiter.
        self._limiter = anyio.CapacityLimiter(_MAX_THREADS)
        self._places = threading.Semaphore(_MAX_THREADS)

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None: a falsy or expired answer, one that is not usable, or an exception.

        Cancellation takes effect at once. A synchronous function, which runs in a worker thread, goes on until
        it returns, unheard; while 40 of them are running, cancelled or not, other calls wait or raise
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
            return _identity_from_answer(token, answer) if answer else None
        except AuthenticationUnavailable:
            raise
        except Unacceptable as exc:
            logger.warning("The authentication function gave no usable answer: %s", exc)
        except Exception as exc:
            logger.warning("The authentication function raised %s", type(exc).__name__)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("It was raised here:\n%s", "".join(traceback.format_tb(exc.__traceback__)))
        return None

    def _run(self, token: str) -> Any:
        # anyio frees the limiter when a call is cancelled, not when its thread is done. Without a count of
        # their own, clients that come and go would add a thread each while a function hangs.
        if not self._places.acquire(blocking=False):
            raise AuthenticationUnavailable(
                f"{_MAX_THREADS} calls of the authentication function have not returned yet"
            )
        try:
            return self._function(token)
        finally:
            self._places.release()


def _identity_from_answer(token: str, answer: object) -> Identity | None:
    if not isinstance(answer, Mapping):
        raise Unacceptable("it is not a dict")
    claims = dict(answer)
    # nuropb_gw's functions put the token itself here.
    claims.pop("bearer_token", None)
    user_id = claims.pop("user_id", None)
    if type(user_id) is int:
        user_id = str(user_id)
    if not _is_name(user_id):
        raise Unacceptable("user_id is not a printable string of 1 to 256 characters")
    username = claims.pop("username", None)
    exp = claims.pop("exp", None)
    expires_at = claims.pop("expires_at", None)
    expires_at = _unix_seconds(exp if expires_at is None else expires_at)
    if expires_at is not None and expires_at <= time.time():
        return None
    return Identity(
        user_id=user_id,
        username=username if _is_name(username) else user_id,
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


def _is_name(value: object) -> TypeGuard[str]:
    # Names go into log lines and message headers, where a line break or a direction mark could forge one.
    return isinstance(value, str) and 1 <= len(value) <= 256 and value.isprintable()


# --- JSON web tokens

#: Seconds for verifying one signature away from the event loop, with the wait for a thread.
VERIFY_TIMEOUT: Final = 1.0
#: Threads for that, of each authenticator. More of them would only take turns on the cores that the loops need.
_VERIFY_THREADS: Final = 2
#: Tokens whose signature need not be verified again.
_REMEMBERED_TOKENS: Final = 4096


class JWTAuthenticator:
    """Verifies JSON web tokens (RFC 7519) in the compact form (RFC 7515), with one key or those of a `KeySet`.

    ``key`` is a PEM public key or certificate, a secret of at least 32 bytes, or a `KeySet`. ``algorithms`` can
    only narrow what fits the key, and defaults to HS256, RS256 or the one of the key's curve; a `KeySet` has its
    own. ``issuer`` and ``audience`` must be in the token when they are given; a `KeySet` that knows its issuer gives
    that one. ``leeway`` is the tolerated clock difference, in seconds. ``user_claim`` must be in the token, and so
    must ``sub`` and ``exp``.

    With a `KeySet` it has to be entered, which the gateway's lifespan does. Raises SettingsError when a value cannot
    be used; its message never contains the key.
    """

    def __init__(
        self,
        key: str | bytes | KeySet,
        algorithms: Sequence[str] | None = None,
        issuer: str | None = None,
        audience: str | None = None,
        leeway: float = 10,
        user_claim: str = "sub",
        username_claim: str = "preferred_username",
    ) -> None:
        # An empty variable in a deployment must not quietly switch a check off.
        for name, value in {
            "JWT_ISSUER": issuer,
            "JWT_AUDIENCE": audience,
            "JWT_USER_CLAIM": user_claim,
            "JWT_USERNAME_CLAIM": username_claim,
        }.items():
            if value == "":
                raise SettingsError(f"{name}: it is empty; give a value, or do not set it")
        if not (math.isfinite(leeway) and leeway >= 0):
            raise SettingsError("JWT_LEEWAY: it must be a number of seconds, 0 or more")
        #: Where the keys come from, None for a key that was given.
        self.key_set = key if isinstance(key, KeySet) else None
        if isinstance(key, KeySet):
            if algorithms is not None:
                raise SettingsError("JWT_ALGORITHMS: a key set has its own; give them to the KeySet")
            if key.issuer is not None and issuer not in (None, key.issuer):
                raise SettingsError("JWT_ISSUER: it is not JWT_OIDC_ISSUER; give only the latter, or the same in both")
            issuer = issuer or key.issuer
            self._fixed = KeyRing([])
        else:
            self._fixed = KeyRing([read_key(key, algorithms)])
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._user_claim = user_claim
        self._username_claim = username_claim
        self._verified = _VerifiedTokens(_REMEMBERED_TOKENS)
        self._limiter = anyio.CapacityLimiter(_VERIFY_THREADS)

    async def __aenter__(self) -> Self:
        if self.key_set is not None:
            await self.key_set.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.key_set is not None:
            await self.key_set.__aexit__(exc_type, exc, traceback)

    @property
    def problem(self) -> str | None:
        """Why no token can be checked now, or None."""
        problem = None if self.key_set is None else self.key_set.problem
        return None if problem is None else f"keys: {problem}"

    @property
    def warning(self) -> str | None:
        """Why tokens will not be checked for ever, if it stays like this, or None."""
        warning = None if self.key_set is None else self.key_set.warning
        return None if warning is None else f"keys: {warning}"

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity that the token proves, or None.

        Raises AuthenticationUnavailable when the keys cannot be had, or verification takes longer than a second;
        NotStartedError when it has a `KeySet` and was not entered. Cancellation takes effect at once.
        """
        try:
            return await self._identify(token)
        except Unacceptable as exc:
            logger.debug("Token refused: %s", exc)
        except (AuthenticationUnavailable, NotStartedError):
            raise
        except Exception as exc:
            # A gap in the rules of this module must refuse the token, not take the connection's task down.
            logger.error("Token refused after an unexpected %s", type(exc).__name__)
        return None

    async def _identify(self, token: str) -> Identity:
        compact = parse_compact(token)
        digest = hashlib.sha256(token.encode("ascii")).digest()
        ring = self._fixed if self.key_set is None else await self.key_set.ring()
        if self._verified.has(digest, ring, time.time()):
            return self._identity(token, parse_claims(compact.payload))
        if self.key_set is None:
            (key,) = ring.keys  # whatever the token calls it
        else:
            key, ring = await self._find_key(self.key_set, ring, compact)
        await self._verify(key, compact)
        identity = self._identity(token, parse_claims(compact.payload))
        assert identity.expires_at is not None  # noqa: S101 - exp is required
        self._verified.add(digest, ring, identity.expires_at + self._leeway)
        return identity

    @staticmethod
    async def _find_key(key_set: KeySet, ring: KeyRing, compact: Compact) -> tuple[Key, KeyRing]:
        key = ring.find(compact)
        if key is None:
            ring = await key_set.newer_ring()
            key = ring.find(compact)
        if key is None:
            raise Unacceptable("there is no key with its kid")
        return key, ring

    async def _verify(self, key: Key, compact: Compact) -> None:
        if not key.is_slow:
            key.verify(compact)
            return
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT):
                await anyio.to_thread.run_sync(key.verify, compact, abandon_on_cancel=True, limiter=self._limiter)
        except TimeoutError as exc:
            raise AuthenticationUnavailable(f"verifying a token took longer than {VERIFY_TIMEOUT:g} s") from exc

    def _identity(self, token: str, claims: dict[str, Any]) -> Identity:
        now = time.time()
        if "exp" not in claims:  # optional in RFC 7519, 4.1.4; a token without an end is of no use here
            raise Unacceptable("exp is missing")
        expires_at = numeric_date(claims["exp"], "exp")
        if now >= expires_at + self._leeway:
            raise Unacceptable("it has expired")
        # RFC 7519, 4.1.5. It leaves iat to the application: one from the future is a wrong clock or issuer.
        for name in ("nbf", "iat"):
            if name in claims and now < numeric_date(claims[name], name) - self._leeway:
                raise Unacceptable(f"{name} is in the future")
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise Unacceptable("iss is not the configured issuer")
        self._check_audience(claims)
        user_id = claims.get(self._user_claim)
        if not (_is_name(claims.get("sub")) and _is_name(user_id)):
            raise Unacceptable("sub or the user claim is not a printable string of 1 to 256 characters")
        username = claims.get(self._username_claim)
        return Identity(
            user_id=user_id,
            username=username if _is_name(username) else user_id,
            token=token,
            claims=claims,
            expires_at=expires_at,
        )

    def _check_audience(self, claims: dict[str, Any]) -> None:
        audiences = claims.get("aud", [])
        if isinstance(audiences, str):  # RFC 7519, 4.1.3: one audience may stand alone
            audiences = [audiences]
        if not (isinstance(audiences, list) and all(isinstance(audience, str) for audience in audiences)):
            raise Unacceptable("aud is not a string or a list of strings")
        if self._audience is not None and self._audience not in audiences:
            raise Unacceptable("aud does not contain the configured audience")


class _VerifiedTokens:
    """Which tokens have a signature that was verified with a key of a ring, the ones used last; no token is kept.

    Nothing but the signature is remembered: what a token says, and that it has not expired, is looked at each time.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ring: KeyRing | None = None
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def has(self, digest: bytes, ring: KeyRing, now: float) -> bool:
        """Whether it was added with this ring; with another ring everything is forgotten."""
        if ring is not self._ring:
            self._ring = ring
            self._until.clear()
        until = self._until.get(digest)
        if until is None:
            return False
        if now >= until:
            del self._until[digest]
            return False
        self._until.move_to_end(digest)
        return True

    def add(self, digest: bytes, ring: KeyRing, until: float) -> None:
        """Remember it until then, unless its ring is not the one in use any more."""
        if ring is self._ring:
            self._until[digest] = until
            if len(self._until) > self._size:
                self._until.popitem(last=False)


# --- The HTTP routes of a host application


class TokenUser(BaseUser):
    """``request.user`` of an authenticated request. ``identity`` is the user id, as Starlette has it."""

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
    """Lets the gateway's tokens in at the host's own routes, with Starlette's AuthenticationMiddleware.

    The cookie is read for GET and HEAD requests only, as in nuropb_gw: browsers attach it to what other
    sites make them send, and neither forms nor WebSockets have a same-origin rule. Give the middleware an
    ``on_error`` that answers 401 with ``WWW-Authenticate: Bearer``; Starlette's own answers 400.
    """

    def __init__(self, authenticator: Authenticator, cookie_name: str | None = None) -> None:
        self._authenticator = authenticator
        self._cookie_name = cookie_name

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, TokenUser] | None:
        """Return the token's user with its scopes, or None when there is no token.

        Raises AuthenticationError when the token is invalid, unreadable, or contradicts another one; and when it cannot
        be checked now: then the error's cause is an AuthenticationUnavailable, and 503 the answer.
        Cancellation passes through to the authenticator.
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
        if identity is None:
            raise AuthenticationError("Invalid bearer token")
        return AuthCredentials(["authenticated", *_scopes(identity.claims)]), TokenUser(identity)


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    scope = claims.get("scope", "")  # RFC 8693, 4.2: separated by spaces; some issuers write a list
    if isinstance(scope, str):
        return [word for word in scope.split(" ") if word]
    return [item for item in scope if isinstance(item, str)] if isinstance(scope, list) else []
