"""Identities of clients, and the interface of authenticators.

A token is a password until it expires. No repr in this module contains one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeGuard

import msgspec

__all__ = ["Authenticator", "Discreet", "Identity", "is_name"]


class Discreet(msgspec.Struct, frozen=True):
    """A struct whose reprs, including that for the rich library, leave out ``token`` and ``claims``."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        names = [name for name in self.__struct_fields__ if name not in ("token", "claims")]
        return [(name, getattr(self, name)) for name in names]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"


class Identity(Discreet, frozen=True, kw_only=True):
    """An authenticated client.

    ``token`` is the token exactly as the client sent it. ``claims`` is read-only (values nested in it are not copied).
    ``expires_at`` is in unix seconds, or None for an identity that does not expire. The identity ends ``leeway``
    seconds later, so ``expires_at`` may already be past.
    """

    user_id: str
    username: str
    token: str
    claims: Mapping[str, Any] = {}
    expires_at: float | None = None
    leeway: float = 0.0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "claims", MappingProxyType(dict(self.claims)))

    def __hash__(self) -> int:
        return hash((self.user_id, self.token))

    @property
    def ends_at(self) -> float | None:
        """The time from which the identity is refused: the expiry and the leeway; None if it does not expire."""
        return None if self.expires_at is None else self.expires_at + self.leeway

    def has_ended(self, now: float) -> bool:
        """Return whether the identity is refused at this time, in unix seconds."""
        return self.expires_at is not None and self.expires_at + self.leeway <= now


class Authenticator(Protocol):
    """The interface that turns a token into an identity.

    An authenticator may offer more. If it is an asynchronous context manager, the gateway's lifespan enters it. While
    its attribute ``problem`` is not None, the gateway is not ready, and shows the text as the reason. The text of its
    attribute ``warning`` is shown beside the readiness, and does not change it. The gateway reads both attributes at
    each request for its readiness.
    """

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None for a token that is not valid.

        An authenticator never raises because of a client's input. It raises AuthenticationUnavailable if it cannot
        decide now: the token may be valid, and the client is told to try again later. Cancellation passes through.
        """


def is_name(value: object) -> TypeGuard[str]:
    """Return whether ``value`` can be a user id or a username: a printable string of 1 to 256 characters."""
    # Names go into log lines and message headers, where a line break or a direction mark could forge an entry.
    return isinstance(value, str) and 1 <= len(value) <= 256 and value.isprintable()
