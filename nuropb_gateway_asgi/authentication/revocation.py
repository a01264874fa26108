"""Revocations: tokens that are refused before they expire. Pure; the caller gives the time, in unix seconds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from .identity import Authenticator, Identity

__all__ = ["MAX_KEPT", "Revocation", "RevocationCheck", "Revocations", "fingerprint"]

#: The longest time that a revocation is kept, in seconds. The broker keeps its records for the same time.
MAX_KEPT: Final = 30 * 86400.0
#: The time that a revocation is kept if the lifetime of its tokens is unknown, in seconds.
DEFAULT_KEPT: Final = 7 * 86400.0
#: Characters of a name in a revocation. No accepted token contains a longer name.
MAX_NAME_LENGTH: Final = 1024


#: Tokens issued before the first time are refused until the second time.
_NEVER: Final = (-math.inf, -math.inf)


class Revocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A record of revoked tokens: those of a user, or of all users, issued before a time, or a single token.

    At ``until`` all of these tokens have expired, and the revocation may be forgotten. Raises ValueError for any other
    combination.
    """

    #: The user of the tokens; requires ``issued_before``.
    user_id: str | None = None
    #: The token with this ``jti`` (RFC 7519, 4.1.7).
    token_id: str | None = None
    #: The token with this :func:`fingerprint`.
    token: str | None = None
    #: The token of this session. Only the process that holds the session knows the token.
    session_id: str | None = None
    issued_before: float | None = None
    until: float

    def __post_init__(self) -> None:
        names = [name for name in (self.user_id, self.token_id, self.token, self.session_id) if name is not None]
        if len(names) > 1 or (not names and self.issued_before is None):
            raise ValueError("expected exactly one of user_id, session_id, token_id, token, or issued_before alone")
        if names and (self.issued_before is None) != (self.user_id is None):
            raise ValueError("issued_before is required with user_id, and not accepted with a session or a token")
        if not all(0 < len(name) <= MAX_NAME_LENGTH for name in names):
            raise ValueError(f"a name has a wrong length; expected 1 to {MAX_NAME_LENGTH} characters")
        if not all(map(math.isfinite, (self.until, self.issued_before or 0.0))):
            raise ValueError("a time is not finite; expected seconds since 1970")


def fingerprint(token: str) -> str:
    """Return the SHA-256 of a token in hexadecimal, from which the token cannot be recovered.

    For a JSON web token it is the SHA-256 of the signed part: from an ECDSA signature everybody can compute a second
    valid one, so the same token can be written in two ways.
    """
    signed = token.rpartition(".")[0] if token.count(".") == 2 else token
    return hashlib.sha256(signed.encode()).hexdigest()


def issued_at(identity: Identity) -> float:
    """Return the token's time of issue (``iat``), or minus infinity if it has none."""
    value: Any = identity.claims.get("iat")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return -math.inf


class Revocations:
    """The revocations that have not expired."""

    __slots__ = ("_everybody", "_token_ids", "_tokens", "_users")

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}
        self._token_ids: dict[str, float] = {}
        #: By user: tokens issued before the first time are refused until the second time.
        self._users: dict[str, tuple[float, float]] = {}
        self._everybody = _NEVER

    def __len__(self) -> int:
        everybody = self._everybody[0] > -math.inf
        return len(self._tokens) + len(self._token_ids) + len(self._users) + everybody

    def add(self, revocation: Revocation, now: float) -> None:
        """Add a revocation, unless it has expired. That of a session has no effect: add its token instead."""
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
        """Return whether this identity's token has been revoked."""
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
        """Drop expired revocations."""
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
    """An authenticator that refuses revoked tokens which ``authenticator`` would accept."""

    def __init__(self, authenticator: Authenticator, revocations: Revocations) -> None:
        self._authenticator = authenticator
        self._revocations = revocations

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None for an invalid or revoked token. Raises what ``authenticator`` raises."""
        identity = await self._authenticator(token)
        return None if identity is None or self._revocations.refuses(identity) else identity


_decode: Final[Callable[[bytes], Revocation]] = msgspec.json.Decoder(Revocation).decode


def decode_revocation(record: bytes) -> Revocation:
    """Decode the record of a revocation. Raises ValueError for bytes that are none, of whatever kind they are."""
    try:
        record.decode()  # msgspec skips members that it does not know, without a look at their text
        return _decode(record)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError("not the record of a revocation") from error
