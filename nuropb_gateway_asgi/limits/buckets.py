"""Rate limits of clients, and the token buckets that hold them. Pure.

Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable
from typing import Final, Literal, NamedTuple

from ..rates import CallRate, Rate

__all__ = ["Excess", "RateLimits", "TokenBuckets"]

#: Refused frames of one connection within REFUSALS_WINDOW seconds, before it is closed.
REFUSALS_ALLOWED: Final = 100
REFUSALS_WINDOW: Final = 60.0
#: New bindings of the broker for one user: at once as many as all connections of a user may subscribe to by default, so
#: that reconnecting clients are not refused. Each takes the broker, and each process with a subscriber, about a
#: millisecond.
NEW_BINDINGS: Final = Rate(100, "s", 10_000)
#: Buckets of users in one generation; beyond it the buckets not used lately are forgotten, full or not.
MAX_BUCKETS: Final = 50_000


class Excess(NamedTuple):
    """A frame over a limit: the scope of the limit, and the seconds to wait."""

    scope: Literal["connection", "user", "rule", "bindings"]
    wait: float


class TokenBuckets:
    """A token bucket for each key. An unknown bucket is full.

    A bucket is one number, the moment at which it will be full again (the generic cell rate algorithm, ITU-T I.371), so
    it needs no refill and no timer. Buckets are kept in two generations, each as long as an empty bucket takes to fill:
    a bucket that was not used for a whole generation is full, and can be dropped. ``most`` is the size of a generation.
    """

    __slots__ = ("_fill_time", "_interval", "_most", "_old", "_rotation", "_tolerance", "_young")

    def __init__(self, rate: Rate, most: float | None = None) -> None:
        self._most = MAX_BUCKETS if most is None else most
        self._interval = rate.interval
        self._fill_time = rate.burst * rate.interval
        self._tolerance = (rate.burst - 1) * rate.interval
        self._young: dict[Hashable, float] = {}
        self._old: dict[Hashable, float] = {}
        self._rotation = 0.0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def take(self, key: Hashable, now: float) -> float:
        """Take a token from the bucket of ``key`` and return 0, or return the seconds until it has one."""
        full_at = self._young.get(key)
        if full_at is None or now >= self._rotation or len(self._young) >= self._most:
            full_at = self._full_at(key, now)
        elif full_at < now:
            full_at = now
        wait = full_at - now - self._tolerance
        if wait > 1e-9:  # sums of floats are not exact
            return wait
        self._young[key] = full_at + self._interval
        return 0.0

    def wait(self, key: Hashable, now: float) -> float:
        """Return the seconds until the bucket of ``key`` has a token."""
        wait = self._full_at(key, now) - now - self._tolerance
        return wait if wait > 1e-9 else 0.0

    def spend(self, key: Hashable, now: float, count: int) -> None:
        """Take ``count`` tokens from the bucket of ``key``, or all that it has."""
        self._young[key] = min(self._full_at(key, now) + count * self._interval, now + self._fill_time)

    def charge(self, key: Hashable, now: float, count: int) -> None:
        """Take ``count`` tokens from the bucket of ``key``, on credit if it has fewer.

        The next token comes once the debt is paid. A bucket owes as many tokens as it holds at most, so that something
        which costs more than a whole bucket is possible.
        """
        self._young[key] = min(self._full_at(key, now) + count * self._interval, now + 2 * self._fill_time)

    def _full_at(self, key: Hashable, now: float) -> float:
        if now >= self._rotation or len(self._young) >= self._most:
            self._old, self._young = self._young, {}
            self._rotation = now + self._fill_time
        full_at = self._young.get(key)
        if full_at is None:
            full_at = self._old.get(key, now)
        return full_at if full_at > now else now

    def forget(self, key: Hashable) -> None:
        """Drop the bucket of ``key``, which will not be used again."""
        self._young.pop(key, None)
        self._old.pop(key, None)


class RateLimits:
    """The rate limits of a process: of connections, users, and calls of a rule. None is no limit."""

    __slots__ = ("_bindings", "_calls", "_connections", "_refusals", "_users")

    def __init__(self, connection: Rate | None, user: Rate | None) -> None:
        # As many as connections at most: each bucket is dropped with its connection.
        self._connections = None if connection is None else TokenBuckets(connection, math.inf)
        self._users = None if user is None else TokenBuckets(user)
        self._bindings = TokenBuckets(NEW_BINDINGS)
        # The buckets of a rule go with it when the policy is loaded again.
        self._calls: weakref.WeakKeyDictionary[CallRate, TokenBuckets] = weakref.WeakKeyDictionary()
        self._refusals: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        """The number of connections with a bucket, and of those with refused frames."""
        return len(self._refusals) + (0 if self._connections is None else len(self._connections))

    @property
    def call_rates(self) -> list[CallRate]:
        """The rates of calls that have buckets."""
        return list(self._calls)

    def on_frame(self, session_id: str, user_id: str, now: float) -> Excess | None:
        """Count a frame; return the excess if it is over a limit."""
        if self._connections is not None:
            wait = self._connections.take(session_id, now)
            if wait:
                return Excess("connection", wait)
        if self._users is not None:
            wait = self._users.take(user_id, now)
            if wait:
                return Excess("user", wait)
        return None

    def charge(self, session_id: str, user_id: str, now: float, count: int) -> None:
        """Charge a counted frame for its real price: ``count`` units more. Later frames wait until it is paid."""
        if self._connections is not None:
            self._connections.charge(session_id, now, count)
        if self._users is not None:
            self._users.charge(user_id, now, count)

    def on_call(self, limit: CallRate, user_id: str, now: float) -> Excess | None:
        """Count a call of a rule with ``limit``; return the excess if it is over the limit."""
        buckets = self._calls.get(limit)
        if buckets is None:
            buckets = self._calls[limit] = TokenBuckets(limit.rate)
        wait = buckets.take(user_id if limit.per == "user" else None, now)
        return Excess("rule", wait) if wait else None

    def on_bindings(self, user_id: str, now: float, count: int) -> Excess | None:
        """Count topics that the broker has to bind for a user; return the excess if there are too many."""
        wait = self._bindings.take(user_id, now)
        if wait:
            return Excess("bindings", wait)
        self._bindings.charge(user_id, now, count - 1)
        return None

    def on_refusal(self, session_id: str, now: float) -> bool:
        """Count a refused frame; return whether the connection has had so many that it is to be closed."""
        started, count = self._refusals.get(session_id, (now, 0))
        if now - started >= REFUSALS_WINDOW:
            started, count = now, 0
        self._refusals[session_id] = (started, count + 1)
        return count >= REFUSALS_ALLOWED

    def forget(self, session_id: str) -> None:
        """Forget a connection that has ended; the buckets of its user stay."""
        if self._connections is not None:
            self._connections.forget(session_id)
        self._refusals.pop(session_id, None)
