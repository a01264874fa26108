"""Limits that all connection kinds of one process share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

from ..authentication.revocation import Revocations
from ..generation_cache import GenerationCache
from ..rates import parse_limit
from ..settings import Settings
from .admission import Admission
from .buckets import RateLimits
from .circuits import ErrorBudgets
from .overload import Overload
from .places import Orphans, Shares
from .slices import Slices
from .turns import LargeFrames

__all__ = ["SharedLimits"]

#: Confirmed commands that are remembered at least, to find the user of one that fails.
REMEMBERED_COMMANDS: Final = 10_000


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """Rate limits, admission, places, error budgets, revocations, slices and turns of a process.

    All connection kinds share them, so a limit per process or per user counts the connections of every kind.
    """

    #: Places for connections, authorised or not yet.
    admission: Admission
    rates: RateLimits
    budgets: ErrorBudgets
    #: Calls that users have given up, and users' places at services.
    orphans: Orphans
    request_places: Shares
    command_places: Shares
    #: Users of commands that the broker has confirmed, by correlation ids: such a command may still fail.
    command_users: GenerationCache[str, str]
    #: Revoked tokens, which are refused even if the authenticator accepts them.
    revocations: Revocations
    #: Calls beyond what the process can do.
    overload: Overload
    #: Long work, done in slices.
    slices: Slices = field(default_factory=Slices)
    #: The turn of large frames.
    large_frames: LargeFrames = field(default_factory=LargeFrames)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits of a process with these settings."""
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
            Orphans(),
            Shares(settings.max_in_flight_per_service),
            Shares(settings.max_in_flight_per_service),
            GenerationCache(REMEMBERED_COMMANDS),
            Revocations(),
            Overload(settings.overload_delay),
        )
