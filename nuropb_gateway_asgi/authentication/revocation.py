"""Revocations: tokens that are refused before they expire. Pure; the caller gives the time, in unix seconds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from ..exceptions import AuthenticationUnavailable
from .identity import Authenticator, Identity

__all__ = [
    "MAX_KEPT",
    "Revocation",
    "RevocationCheck",
    "Revocations",
    "Unrevocation",
    "decode_record",
    "encode_record",
    "fingerprint",
]

#: The longest time that a revocation is kept, in seconds. The broker keeps its records for the same time.
MAX_KEPT: Final = 30 * 86400.0
#: The time that a revocation is kept if the lifetime of its tokens is unknown, in seconds.
DEFAULT_KEPT: Final = 7 * 86400.0
#: Characters of a name in a revocation. No accepted token contains a longer name.
MAX_NAME_LENGTH: Final = 1024
#: Revocations that one call of :meth:`Revocations.forget` looks at: less than a millisecond's work.
FORGET_AT_ONCE: Final = 1000


T = TypeVar("T")

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
    #: The tokens of this session. Only the process that holds the session knows the tokens.
    session_id: str | None = None
    #: The session that used ``token``, if its revocation is the cause; older releases ignore this member.
    of_session: str | None = None
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


class Unrevocation(msgspec.Struct, frozen=True):
    """A record that takes a revocation back.

    With ``issued_before``, revocations of tokens issued before this time or an earlier one are taken back. Older
    releases cannot read it, so their processes go on refusing the tokens.
    """

    unrevoke: Revocation


def fingerprint(token: str) -> str:
    """Return the SHA-256 of a token in hexadecimal, from which the token cannot be recovered.

    For a JSON web token it is the SHA-256 of the signed part: from an ECDSA signature everybody can compute a second
    valid one, so the same token can be written in two ways.
    """
    signed = token.rpartition(".")[0] if token.count(".") == 2 else token
    return hashlib.sha256(signed.encode(errors="surrogatepass")).hexdigest()


def issued_at(identity: Identity) -> float:
    """Return the token's time of issue (``iat``), or minus infinity if it has none."""
    value: Any = identity.claims.get("iat")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return -math.inf


class Revocations:
    """The revocations that have not expired."""

    __slots__ = ("_everybody", "_of_sessions", "_token_ids", "_tokens", "_unchecked", "_users", "complete")

    def __init__(self) -> None:
        #: Whether all revocations from before the start of this process are known. Until then no token is accepted.
        self.complete = True
        #: By fingerprint: the times until which the token is refused, by the session whose revocation is the cause, or
        #: None. A token may have been used by several sessions, and one that is taken back does not free the others'.
        self._tokens: dict[str, dict[str | None, float]] = {}
        #: The fingerprints of the tokens that are refused because of a session's revocation.
        self._of_sessions: dict[str, set[str]] = {}
        self._token_ids: dict[str, float] = {}
        #: By user: tokens issued before the first time are refused until the second time.
        self._users: dict[str, tuple[float, float]] = {}
        self._everybody = _NEVER
        #: Keys of the three dictionaries that the present round of :meth:`forget` has not looked at.
        self._unchecked: list[tuple[str, str]] = []

    def __len__(self) -> int:
        everybody = self._everybody[0] > -math.inf
        return len(self._tokens) + len(self._token_ids) + len(self._users) + everybody

    def add(self, revocation: Revocation, now: float) -> bool:
        """Add a revocation, unless it has expired; return whether it changed anything.

        That of a session has no effect: add its tokens instead.
        """
        until = min(revocation.until, now + MAX_KEPT)
        if until <= now:
            return False
        if revocation.token is not None:
            return self._add_token(revocation.token, until, revocation.of_session)
        if revocation.token_id is not None:
            known_until = self._token_ids.get(revocation.token_id, -math.inf)
            self._token_ids[revocation.token_id] = max(known_until, until)
            return until > known_until
        before = revocation.issued_before
        if before is None:
            return False
        if revocation.user_id is None:
            known, self._everybody = self._everybody, _latest(self._everybody, (before, until))
            return self._everybody != known
        known = self._users.get(revocation.user_id, _NEVER)
        latest = self._users[revocation.user_id] = _latest(known, (before, until))
        return latest != known

    def _add_token(self, token: str, until: float, session_id: str | None) -> bool:
        causes = self._tokens.setdefault(token, {})
        if until <= causes.get(session_id, -math.inf):
            return False
        causes[session_id] = until
        if session_id is not None:
            self._of_sessions.setdefault(session_id, set()).add(token)
        return True

    def remove(self, revocation: Revocation) -> None:
        """Take a revocation back; that of a session with all tokens that are refused because of it."""
        if revocation.session_id is not None:
            for token in self._of_sessions.pop(revocation.session_id, ()):
                causes = self._tokens[token]
                del causes[revocation.session_id]
                if not causes:
                    del self._tokens[token]
        elif revocation.token is not None:
            self._drop_token(revocation.token)
        elif revocation.token_id is not None:
            self._token_ids.pop(revocation.token_id, None)
        elif revocation.issued_before is not None:
            self._remove_issued_before(revocation.user_id, revocation.issued_before)

    def _remove_issued_before(self, user_id: str | None, issued_before: float) -> None:
        if user_id is not None:
            if self._users.get(user_id, _NEVER)[0] <= issued_before:
                self._users.pop(user_id, None)
        elif self._everybody[0] <= issued_before:
            self._everybody = _NEVER

    def _drop_token(self, token: str) -> None:
        for session_id in self._tokens.pop(token, ()):
            if session_id is not None:
                tokens = self._of_sessions[session_id]
                tokens.discard(token)
                if not tokens:
                    del self._of_sessions[session_id]

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

    def forget(self, now: float) -> bool:
        """Drop expired revocations, after at most :data:`FORGET_AT_ONCE` looks; return whether all were looked at."""
        if self._everybody[1] <= now:
            self._everybody = _NEVER
        if not self._unchecked:
            self._unchecked = [
                (kind, name)
                for kind, names in (("token", self._tokens), ("token_id", self._token_ids), ("user", self._users))
                for name in names
            ]
        for _ in range(min(FORGET_AT_ONCE, len(self._unchecked))):
            self._forget_one(*self._unchecked.pop(), now)
        return not self._unchecked

    def _forget_one(self, kind: str, name: str, now: float) -> None:
        if kind == "token":
            if max(self._tokens.get(name, {}).values(), default=math.inf) <= now:
                self._drop_token(name)
        elif kind == "token_id":
            if self._token_ids.get(name, math.inf) <= now:
                del self._token_ids[name]
        elif self._users.get(name, (0.0, math.inf))[1] <= now:
            del self._users[name]


def _latest(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), max(one[1], other[1])


class RevocationCheck:
    """An authenticator that refuses revoked tokens which ``authenticator`` would accept."""

    def __init__(self, authenticator: Authenticator, revocations: Revocations) -> None:
        self._authenticator = authenticator
        self._revocations = revocations

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None for an invalid or revoked token. Raises what ``authenticator`` raises.

        Raises AuthenticationUnavailable until the revocations from before the start are known.
        """
        if not self._revocations.complete:
            raise AuthenticationUnavailable("the revocations have not been read yet")
        identity = await self._authenticator(token)
        return None if identity is None or self._revocations.refuses(identity) else identity


def encode_record(record: Revocation | Unrevocation) -> bytes:
    """Encode a record for all processes of the gateway."""
    return msgspec.json.encode(record)


def decode_record(record: bytes) -> Revocation | Unrevocation:
    """Decode a record, as :func:`encode_record` writes it. Raises ValueError for any other bytes."""
    if record.startswith(b'{"unrevoke"'):
        return _decode(record, _decode_unrevocation)
    return _decode(record, _decode_revocation)


def decode_revocation(record: bytes) -> Revocation:
    """Decode the record of a revocation. Raises ValueError for any other bytes."""
    return _decode(record, _decode_revocation)


def _decode(record: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        record.decode()  # msgspec skips members that it does not know, without a look at their text
        return decode(record)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError("not the record of a revocation") from error


_decode_revocation: Final[Callable[[bytes], Revocation]] = msgspec.json.Decoder(Revocation).decode
_decode_unrevocation: Final[Callable[[bytes], Unrevocation]] = msgspec.json.Decoder(Unrevocation).decode
