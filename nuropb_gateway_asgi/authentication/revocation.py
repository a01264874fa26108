"""Tokens that are good by themselves and yet not to be accepted any more.

Pure: times are unix seconds, and given by the caller.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from .jwt_authenticator import Authenticator, Identity

__all__ = ["MAX_KEPT", "Revocation", "RevocationCheck", "Revocations", "fingerprint"]

#: Seconds that a revocation is kept at the most. The broker keeps the records for as long.
MAX_KEPT: Final = 30 * 86400.0
#: Seconds that one is kept where nobody says how long its tokens live.
DEFAULT_KEPT: Final = 7 * 86400.0
#: Characters of a name in a revocation; longer ones are in no token that is accepted.
MAX_NAME_LENGTH: Final = 1024


#: Issued before, kept until.
_NEVER: Final = (-math.inf, -math.inf)


class Revocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which tokens are meant: those of a user that were issued before a time, all that were, or a single one.

    ``until``: when it may be forgotten, as all these tokens have expired then. Raises ValueError for anything else.
    """

    #: Goes with ``issued_before``.
    user_id: str | None = None
    #: The token with this ``jti`` (RFC 7519, 4.1.7).
    token_id: str | None = None
    #: The token with this :func:`fingerprint`.
    token: str | None = None
    #: The token that this session was authorised with. Only the process that has the session knows which that is.
    session_id: str | None = None
    issued_before: float | None = None
    until: float

    def __post_init__(self) -> None:
        names = [name for name in (self.user_id, self.token_id, self.token, self.session_id) if name is not None]
        if len(names) > 1 or (not names and self.issued_before is None):
            raise ValueError("it has to be one of a user, a session, a token id, a token, and a time of issue")
        if names and (self.issued_before is None) != (self.user_id is None):
            raise ValueError("a time of issue goes with a user or stands alone")
        if not all(0 < len(name) <= MAX_NAME_LENGTH for name in names):
            raise ValueError(f"a name has to have 1 to {MAX_NAME_LENGTH} characters")
        if not all(map(math.isfinite, (self.until, self.issued_before or 0.0))):
            raise ValueError("a time has to be in seconds since 1970")


def fingerprint(token: str) -> str:
    """What is remembered of a token: a SHA-256, in hexadecimal, from which nobody gets to the token.

    Of a JSON web token it is that of the signed part. To an ECDSA signature there is always a second one, which anybody
    can work out, so that the same token can be written in two ways.
    """
    signed = token.rpartition(".")[0] if token.count(".") == 2 else token
    return hashlib.sha256(signed.encode()).hexdigest()


def issued_at(identity: Identity) -> float:
    """When the token was issued, as its ``iat`` has it; before everything else if it does not say."""
    value: Any = identity.claims.get("iat")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return -math.inf


class Revocations:
    """What has been revoked and not been forgotten yet."""

    __slots__ = ("_everybody", "_token_ids", "_tokens", "_users")

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}
        self._token_ids: dict[str, float] = {}
        #: Issued before, kept until.
        self._users: dict[str, tuple[float, float]] = {}
        self._everybody = _NEVER

    def __len__(self) -> int:
        everybody = self._everybody[0] > -math.inf
        return len(self._tokens) + len(self._token_ids) + len(self._users) + everybody

    def add(self, revocation: Revocation, now: float) -> None:
        """Take one in, unless it is over. That of a session means nothing here: its token is what has to be added."""
        until = min(revocation.until, now + MAX_KEPT)
        if until <= now:
            return
        for name, kept in ((revocation.token, self._tokens), (revocation.token_id, self._token_ids)):
            if name is not None:
                kept[name] = max(kept.get(name, until), until)
        before = revocation.issued_before
        if before is not None and revocation.user_id is None:
            self._everybody = _latest(self._everybody, (before, until))
        elif before is not None and revocation.user_id is not None:
            known = self._users.get(revocation.user_id, _NEVER)
            self._users[revocation.user_id] = _latest(known, (before, until))

    def refuses(self, identity: Identity) -> bool:
        """Whether this identity's token has been revoked."""
        if not self:
            return False
        before = max(self._everybody[0], self._users.get(identity.user_id, self._everybody)[0])
        if issued_at(identity) < before:
            return True
        token_id = identity.claims.get("jti")
        if isinstance(token_id, str) and token_id in self._token_ids:
            return True
        return bool(self._tokens) and fingerprint(identity.token) in self._tokens

    def forget(self, now: float) -> None:
        """Drop what is over."""
        for kept in (self._tokens, self._token_ids):
            for name in [name for name, until in kept.items() if until <= now]:
                del kept[name]
        for user_id in [user_id for user_id, (_, until) in self._users.items() if until <= now]:
            del self._users[user_id]
        if self._everybody[1] <= now:
            self._everybody = _NEVER


def _latest(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), max(one[1], other[1])


class RevocationCheck:
    """An authenticator that does not accept what was revoked, whatever ``authenticator`` says."""

    def __init__(self, authenticator: Authenticator, revocations: Revocations) -> None:
        self._authenticator = authenticator
        self._revocations = revocations

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None for any token that is not valid, or no longer. Raises as the other one."""
        identity = await self._authenticator(token)
        return None if identity is None or self._revocations.refuses(identity) else identity


#: Decodes a record of a revocation; raises msgspec.MsgspecError for anything else.
decode_revocation: Final[Callable[[bytes], Revocation]] = msgspec.json.Decoder(Revocation).decode
