"""Authentication by the tokens of several issuers, each with keys, rules and users of its own."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from ..exceptions import AuthenticationUnavailable, NotStartedError, SettingsError, TokenExpired
from .identity import Identity
from .jwt_authenticator import JWTAuthenticator
from .key_sets import KeySet
from .strict_json import Unacceptable
from .tokens import parse_claims, parse_compact

__all__ = ["IssuersAuthenticator"]

logger = logging.getLogger(__name__)


class IssuersAuthenticator:
    """An authenticator that checks a token by the authenticator of the issuer that the token names (``iss``).

    The name chooses the authenticator before anything is verified; that authenticator then accepts only tokens with
    this ``iss``, signed by its own keys. A token of an unknown issuer is refused, and causes no fetch of keys.

    Every authenticator needs an issuer and a ``user_prefix``, both different from those of the others: two issuers may
    give two users the same ``sub``. A user id that begins with several prefixes belongs to the issuer of the longest;
    a token of another issuer with this user id is refused. So one prefix may be empty, and no issuer can name the
    users of another. Raises SettingsError.

    It has to be entered if one of its authenticators has to be. While the keys of one issuer are missing, the tokens of
    the others are checked.
    """

    def __init__(self, authenticators: Sequence[JWTAuthenticator]) -> None:
        if not authenticators:
            raise SettingsError("JWT_ISSUERS: no issuer; expected at least one [[issuer]]")
        issuers = Counter(each.issuer for each in authenticators)
        prefixes = Counter(each.user_prefix for each in authenticators)
        for issuer, count in issuers.items():
            if issuer is None:
                raise SettingsError("JWT_ISSUERS: an issuer has no name; expected the iss of its tokens")
            if count > 1:
                raise SettingsError(f"JWT_ISSUERS: {count} issuers are named {issuer}; expected one for each name")
        for prefix, count in prefixes.items():
            if count > 1:
                raise SettingsError(
                    f"JWT_ISSUERS: {count} issuers have the user_prefix {prefix!r}, so each could sign in the users "
                    "of the others; expected one of its own for each"
                )
        self.authenticators = tuple(authenticators)
        self._by_issuer: Mapping[str | None, JWTAuthenticator] = {each.issuer: each for each in authenticators}
        #: The longest first.
        self._prefixes = sorted(prefixes, key=len, reverse=True)
        self._entered = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            for each in self.authenticators:
                await stack.enter_async_context(each)
            self._entered = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._entered.__aexit__(exc_type, exc, traceback)

    @property
    def key_sets(self) -> Mapping[str, KeySet]:
        """The fetched keys of the issuers that have fetched keys, by issuer."""
        return {
            each.issuer: each.key_set
            for each in self.authenticators
            if each.issuer is not None and each.key_set is not None
        }

    @property
    def problem(self) -> str | None:
        """The reason why no token of any issuer can be checked now, or None."""
        problems = {each.issuer: each.problem for each in self.authenticators}
        return None if None in problems.values() else _listed(problems)

    @property
    def warning(self) -> str | None:
        """The reasons why tokens of some issuers cannot be checked, or soon cannot be, or None."""
        return _listed({each.issuer: each.problem or each.warning for each in self.authenticators}) or None

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity that the token proves, or None.

        Raises what the authenticator of the token's issuer raises. Cancellation takes effect at once.
        """
        try:
            issuer = parse_claims(parse_compact(token).payload).get("iss")
            authenticator = self._by_issuer.get(issuer) if isinstance(issuer, str) else None
            if authenticator is None:
                raise Unacceptable("iss is not one of the configured issuers")
            identity = await authenticator(token)
            if identity is not None and self._prefix_of(identity.user_id) != authenticator.user_prefix:
                raise Unacceptable("the user id begins with the user_prefix of another issuer")
        except Unacceptable as exc:
            logger.debug("Token refused: %s", exc)
        except (AuthenticationUnavailable, NotStartedError, TokenExpired):
            raise
        except Exception as exc:
            # As in JWTAuthenticator: a gap in the rules must refuse the token.
            logger.error("Token refused after an unexpected %s", type(exc).__name__)
        else:
            return identity
        return None

    def _prefix_of(self, user_id: str) -> str | None:
        return next((prefix for prefix in self._prefixes if user_id.startswith(prefix)), None)


def _listed(reasons: Mapping[str | None, str | None]) -> str:
    return "; ".join(f"{issuer}: {reason}" for issuer, reason in reasons.items() if reason is not None)
