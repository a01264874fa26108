"""What counts for a whole process, whatever the kind of connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ..authentication.revocation import Revocations
from ..rates import parse_limit
from ..settings import Settings
from .admission import Admission
from .buckets import RateLimits
from .circuits import ErrorBudgets

__all__ = ["SharedLimits"]


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """What the kinds of connections of one process share: a limit "per process" or "per user" is over all of them."""

    #: Places for connections, authorised or not yet.
    admission: Admission
    rates: RateLimits
    budgets: ErrorBudgets
    #: Tokens that are not accepted any more, whatever the authenticator says.
    revocations: Revocations

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of a process with these settings."""
        return cls(
            Admission(
                settings.max_connections,
                max_per_user=settings.max_connections_per_user,
                max_per_address=settings.max_connections_per_address or None,
                handshakes=parse_limit(settings.handshake_rate),
                per_address=parse_limit(settings.handshake_rate_per_address),
            ),
            RateLimits(parse_limit(settings.rate_limit), parse_limit(settings.rate_limit_user)),
            ErrorBudgets(),
            Revocations(),
        )
