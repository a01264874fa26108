"""Authentication by JSON web tokens.

A token is a password until it expires. No log line and no exception of this module contains one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.to_thread

from ..exceptions import AuthenticationUnavailable, NotStartedError, SettingsError, TokenExpired
from .identity import Identity, is_name
from .key_sets import KeySet
from .keys import Key, KeyRing, read_key
from .strict_json import Unacceptable
from .tokens import Compact, numeric_date, parse_claims, parse_compact
from .verified_tokens import VerifiedTokens

__all__ = ["JWTAuthenticator"]

logger = logging.getLogger(__name__)

#: Seconds for verifying one signature in a thread, including the wait for the thread.
VERIFY_TIMEOUT: Final = 1.0
#: Threads for verification, of each authenticator. More threads would compete for the cores of the event loops.
VERIFY_THREADS: Final = 2
#: Characters of the text before the user ids of an issuer.
MAX_PREFIX: Final = 64
#: The greatest number of tokens whose signature is not verified again.
MAX_REMEMBERED: Final = 4096


class JWTAuthenticator:
    """An authenticator of JSON web tokens (RFC 7519) in the compact form (RFC 7515), by one key or a `KeySet`.

    ``key`` is a PEM public key or certificate, a secret of at least 32 bytes, or a `KeySet`. ``algorithms`` can only
    narrow the algorithms that fit the key. The default is HS256, RS256, EdDSA or the one of the key's curve; a
    `KeySet` has its own. A token must have the ``issuer`` and one of the ``audience``, if they are given; a `KeySet`
    that knows its issuer sets the issuer. With ``client_id``, tokens without ``aud`` are accepted if their
    ``client_id`` and ``azp`` are among these; without ``audience`` this is required of all tokens. A token must have
    ``exp`` and ``user_claim``. ``leeway`` is the tolerated difference of clocks, in seconds. ``user_prefix`` is put
    before the user id, so that the users of several issuers have different ids.

    An authenticator with a `KeySet` has to be entered; the gateway's lifespan does so. Raises SettingsError for an
    unusable value; the message never contains the key.
    """

    def __init__(
        self,
        key: str | bytes | KeySet,
        algorithms: Sequence[str] | None = None,
        issuer: str | None = None,
        audience: str | Sequence[str] | None = None,
        leeway: float = 10,
        user_claim: str = "sub",
        username_claim: str = "preferred_username",
        client_id: str | Sequence[str] | None = None,
        user_prefix: str = "",
    ) -> None:
        # An empty variable in a deployment must not silently switch a check off.
        for name, value in {
            "JWT_ISSUER": issuer,
            "JWT_USER_CLAIM": user_claim,
            "JWT_USERNAME_CLAIM": username_claim,
        }.items():
            if value == "":
                raise SettingsError(f"{name}: empty; give a value, or do not set it")
        if not (math.isfinite(leeway) and leeway >= 0):
            raise SettingsError("JWT_LEEWAY: out of range; expected a number of seconds, 0 or more")
        if user_prefix and not (is_name(user_prefix) and len(user_prefix) <= MAX_PREFIX):
            raise SettingsError(f"user_prefix: not at most {MAX_PREFIX} printable characters; expected a short text")
        #: The source of the keys, or None for a given key.
        self.key_set = key if isinstance(key, KeySet) else None
        if isinstance(key, KeySet):
            if algorithms is not None:
                raise SettingsError("JWT_ALGORITHMS: a key set has its own algorithms; give them to the KeySet")
            if key.issuer is not None and issuer not in (None, key.issuer):
                raise SettingsError("JWT_ISSUER: different from JWT_OIDC_ISSUER; set only the latter, or both the same")
            issuer = issuer or key.issuer
            self._fixed = KeyRing([])
        else:
            self._fixed = KeyRing([read_key(key, algorithms)])
        self.issuer = issuer
        self.user_prefix = user_prefix
        self._audiences = _names("JWT_AUDIENCE", audience)
        self._client_ids = _names("JWT_CLIENT_ID", client_id)
        self._leeway = leeway
        self._user_claim = user_claim
        self._username_claim = username_claim
        self._verified = VerifiedTokens(MAX_REMEMBERED)
        self._limiter = anyio.CapacityLimiter(VERIFY_THREADS)

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
        """The reason why no token can be checked now, or None."""
        problem = None if self.key_set is None else self.key_set.problem
        return None if problem is None else f"keys: {problem}"

    @property
    def warning(self) -> str | None:
        """The reason why tokens can no longer be checked after a day, if it persists, or None."""
        warning = None if self.key_set is None else self.key_set.warning
        return None if warning is None else f"keys: {warning}"

    @property
    def checks_audience(self) -> bool:
        """Whether tokens for other applications of the same issuer are refused."""
        return bool(self._audiences or self._client_ids)

    @property
    def remembered(self) -> int:
        """The number of tokens whose signature is not verified again."""
        return len(self._verified)

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity that the token proves, or None.

        Raises TokenExpired for a genuine token that has expired; AuthenticationUnavailable if there are no keys, or if
        verification takes longer than a second; NotStartedError if it has a `KeySet` and was not entered. Cancellation
        takes effect at once.
        """
        try:
            return await self._identify(token)
        except Unacceptable as exc:
            logger.debug("Token refused: %s", exc)
        except (AuthenticationUnavailable, NotStartedError, TokenExpired):
            raise
        except Exception as exc:
            # A gap in these rules must refuse the token, and not end the connection's task.
            logger.error("Token refused after an unexpected %s", type(exc).__name__)
        return None

    async def _identify(self, token: str) -> Identity:
        compact = parse_compact(token)
        digest = hashlib.sha256(token.encode("ascii")).digest()
        ring = self._fixed if self.key_set is None else await self.key_set.ring()
        if self._verified.has(digest, ring, time.time()):
            return self._identity(token, parse_claims(compact.payload))
        if self.key_set is None:
            (key,) = ring.keys  # whatever kid the token has
        else:
            key, ring = await self._find_key(self.key_set, ring, token, compact)
        await self._verify(key, compact)
        identity = self._identity(token, parse_claims(compact.payload))
        assert identity.ends_at is not None  # noqa: S101 - exp is required
        self._verified.add(digest, ring, identity.ends_at)
        return identity

    async def _find_key(self, key_set: KeySet, ring: KeyRing, token: str, compact: Compact) -> tuple[Key, KeyRing]:
        key = ring.find(compact)
        if key is not None:
            return key, ring
        # A token that would be refused with any key causes no fetch.
        claims = parse_claims(compact.payload)
        try:
            self._identity(token, claims)
        except TokenExpired as error:  # or a made-up one
            raise Unacceptable(str(error)) from error
        age = time.time() - numeric_date(claims["iat"], "iat") - self._leeway if "iat" in claims else 0.0
        return await key_set.find_newer(compact, max(age, 0.0))

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
        if "exp" not in claims:  # optional in RFC 7519, 4.1.4; a token that never expires could not be withdrawn
            raise Unacceptable("the token has no exp claim")
        expires_at = numeric_date(claims["exp"], "exp")
        if now >= expires_at + self._leeway:
            raise TokenExpired("the token has expired")
        # RFC 7519, 4.1.5 for nbf. It leaves iat to the application: a future iat means a wrong clock or issuer.
        for name in ("nbf", "iat"):
            if name in claims and now < numeric_date(claims[name], name) - self._leeway:
                raise Unacceptable(f"{name} is in the future")
        if self.issuer is not None and claims.get("iss") != self.issuer:
            raise Unacceptable("iss is not the configured issuer")
        self._check_audience(claims)
        user_id = claims.get(self._user_claim)
        # Without sub a token is accepted only by another claim; a strange sub is a sign of a strange token.
        if not (is_name(claims.get("sub", user_id)) and is_name(user_id)):
            raise Unacceptable("sub or the user claim is not a printable string of 1 to 256 characters")
        user_id = self.user_prefix + user_id
        if not is_name(user_id):
            raise Unacceptable("the user id is longer than 256 characters with its prefix")
        username = claims.get(self._username_claim)
        return Identity(
            user_id=user_id,
            username=username if is_name(username) else user_id,
            token=token,
            claims=claims,
            expires_at=expires_at,
            leeway=self._leeway,
        )

    def _check_audience(self, claims: dict[str, Any]) -> None:
        audiences = claims.get("aud", [])
        if isinstance(audiences, str):  # RFC 7519, 4.1.3: a single audience may be a string
            audiences = [audiences]
        if not (isinstance(audiences, list) and all(isinstance(audience, str) for audience in audiences)):
            raise Unacceptable("aud is not a string or a list of strings")
        if self._audiences and ("aud" in claims or not self._client_ids):
            if self._audiences.isdisjoint(audiences):
                raise Unacceptable("aud does not contain the configured audience")
        elif self._client_ids:
            self._check_client(claims)

    def _check_client(self, claims: dict[str, Any]) -> None:
        # RFC 9068, 2.2 for client_id, OpenID Connect Core 1.0, 2 for azp. Two that differ are a strange token.
        named = [claims[name] for name in ("client_id", "azp") if name in claims]
        if not named or not all(isinstance(name, str) and name in self._client_ids for name in named):
            raise Unacceptable("client_id or azp is not a configured client")


def _names(setting: str, value: str | Sequence[str] | None) -> frozenset[str]:
    names = [] if value is None else [value] if isinstance(value, str) else list(value)
    if "" in names or (value is not None and not names):
        raise SettingsError(f"{setting}: empty; give a value, or do not set it")
    return frozenset(names)
