"""The tokens of sessions, found by session, user, token id and token. Pure."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

from ..generation_cache import GenerationCache
from .identity import Identity
from .revocation import Revocation, fingerprint

__all__ = ["Affected", "SessionTokens", "UsedToken", "affected_by"]

#: Tokens that are kept for a session: the latest ones that have not expired.
MAX_USED: Final = 100
#: Ended sessions whose tokens are kept, at least: 5 MB.
MAX_ENDED: Final = 10_000

#: The sessions that a revocation may concern: those whose token has this property.
Affected: TypeAlias = tuple[Literal["everybody", "user", "token_id", "token", "none"], str]


class UsedToken(NamedTuple):
    """A token that a session has used: its fingerprint, and the time at which it ends, or None."""

    token: str
    ends_at: float | None


def affected_by(revocation: Revocation) -> Affected:
    """Return which sessions a revocation may concern."""
    if revocation.token is not None:
        return "token", revocation.token
    if revocation.token_id is not None:
        return "token_id", revocation.token_id
    if revocation.user_id is not None:
        return "user", revocation.user_id
    return "none" if revocation.session_id is not None else "everybody", ""


class SessionTokens:
    """The tokens that the sessions of a transport use and have used, as fingerprints.

    A revocation finds the connections that it concerns without a look at all the others. For a session that has ended,
    its tokens are kept for a while: someone else may have them. Sessions of a single call are ``brief``: their tokens
    are hashed only if a revocation comes meanwhile, and are not kept.
    """

    __slots__ = ("_brief", "_by", "_ended", "_revoked", "_sessions")

    def __init__(self, *, ended: int = MAX_ENDED) -> None:
        self._sessions: dict[str, tuple[UsedToken, ...]] = {}
        #: Brief sessions that are not entered anywhere else.
        self._brief: dict[str, Identity] = {}
        self._by: dict[str, _Index] = {"user": _Index(), "token_id": _Index(), "token": _Index()}
        #: Sessions that were revoked, and have not ended yet.
        self._revoked: set[str] = set()
        self._ended: GenerationCache[str, tuple[UsedToken, ...]] = GenerationCache(ended)

    def __len__(self) -> int:
        return len(self._sessions) + len(self._brief)

    def begin(self, session_id: str, identity: Identity, *, brief: bool = False) -> None:
        """Note the first token of a session."""
        if brief:
            self._brief[session_id] = identity
            return
        used = UsedToken(fingerprint(identity.token), identity.ends_at)
        self._sessions[session_id] = (used,)
        self._enter(session_id, identity, used.token)

    def refresh(self, session_id: str, former: Identity, identity: Identity, now: float) -> None:
        """Note a newer token of a session."""
        self._enter_brief()
        earlier = self._sessions[session_id]
        self._leave(session_id, former, earlier[-1].token)
        used = UsedToken(fingerprint(identity.token), identity.ends_at)
        valid = [each for each in earlier if each.token != used.token and (each.ends_at is None or each.ends_at > now)]
        self._sessions[session_id] = (*valid[1 - MAX_USED :], used)
        self._enter(session_id, identity, used.token)

    def end(self, session_id: str, identity: Identity, *, brief: bool = False) -> None:
        """Note the end of a session."""
        if self._brief.pop(session_id, None) is not None:
            return
        used = self._sessions.pop(session_id)
        self._leave(session_id, identity, used[-1].token)
        self._revoked.discard(session_id)
        if not brief:
            self._ended.add(session_id, used)

    def rename(self, session_id: str, new: str, identity: Identity) -> None:
        """Note that a session has another id from now on."""
        self._enter_brief()
        used = self._sessions.pop(session_id)
        self._leave(session_id, identity, used[-1].token)
        self._sessions[new] = used
        self._enter(new, identity, used[-1].token)
        if session_id in self._revoked:
            self._revoked.discard(session_id)
            self._revoked.add(new)

    def used_by(self, session_id: str) -> tuple[UsedToken, ...]:
        """Return the tokens that a session has used; none if it is unknown."""
        self._enter_brief()
        return self._sessions.get(session_id) or self._ended.get(session_id) or ()

    def revoke(self, session_id: str) -> None:
        """Note that a session is revoked, and with it the tokens that it uses until its end."""
        self._enter_brief()
        if session_id in self._sessions:
            self._revoked.add(session_id)

    def is_revoked(self, session_id: str) -> bool:
        """Return whether a session was revoked."""
        return session_id in self._revoked

    def sessions(self, affected: Affected) -> tuple[str, ...]:
        """Return the sessions whose present token has a property."""
        self._enter_brief()
        kind, name = affected
        if kind == "everybody":
            return tuple(self._sessions)
        index = self._by.get(kind)
        return () if index is None else index.sessions(name)

    def any(self, affected: Affected) -> bool:
        """Return whether there is a session whose present token has a property."""
        self._enter_brief()
        kind, name = affected
        if kind == "everybody":
            return bool(self._sessions)
        index = self._by.get(kind)
        return index is not None and name in index

    def _enter_brief(self) -> None:
        while self._brief:
            self.begin(*self._brief.popitem())

    def _enter(self, session_id: str, identity: Identity, token: str) -> None:
        self._by["user"].add(identity.user_id, session_id)
        self._by["token"].add(token, session_id)
        if isinstance(token_id := identity.claims.get("jti"), str):
            self._by["token_id"].add(token_id, session_id)

    def _leave(self, session_id: str, identity: Identity, token: str) -> None:
        self._by["user"].discard(identity.user_id, session_id)
        self._by["token"].discard(token, session_id)
        if isinstance(token_id := identity.claims.get("jti"), str):
            self._by["token_id"].discard(token_id, session_id)


class _Index:
    """Sessions by one property of their tokens. Most properties have one session, which needs no set."""

    __slots__ = ("_sessions",)

    def __init__(self) -> None:
        self._sessions: dict[str, str | set[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sessions

    def add(self, name: str, session_id: str) -> None:
        known = self._sessions.setdefault(name, session_id)
        if isinstance(known, set):
            known.add(session_id)
        elif known != session_id:
            self._sessions[name] = {known, session_id}

    def discard(self, name: str, session_id: str) -> None:
        known = self._sessions.get(name)
        if isinstance(known, set):
            known.discard(session_id)
        if not known or known == session_id:
            self._sessions.pop(name, None)

    def sessions(self, name: str) -> tuple[str, ...]:
        known = self._sessions.get(name, ())
        return (known,) if isinstance(known, str) else tuple(known)
