"""Places of users at services: each user's share of a service, cancelled calls, and commands on their way. Pure.

A service works on a call until it answers, whether the client still waits or not. So a place is free when the answer
or the deadline comes. All counts are by user, over all connections to a process: a client that hangs up and comes back
finds its places as it left them. Times are of one monotonic clock, in seconds, and are given by the calling code.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["Orphans", "Resume", "SentCommands", "Shares"]

#: Seconds. A service is slow for SLOW_FOR seconds after an answer that took as long. The time includes the wait in the
#: service's queue, and in the gateway itself under load.
SLOW: Final = 2.0
SLOW_FOR: Final = 600.0
#: Services kept; beyond it the oldest is forgotten.
MAX_SERVICES: Final = 10_000
#: Starts a call that had to wait for a place.
Resume: TypeAlias = Callable[[], None]


class Orphans:
    """The number of each user's calls at services whose client waits no longer: cancelled it, or left."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        #: The number of calls, by user; users without such calls are left out.
        self.counts: dict[str, int] = {}

    def __len__(self) -> int:
        """The number of users with such calls."""
        return len(self.counts)

    def add(self, user_id: str) -> None:
        """Count a call of this user."""
        self.counts[user_id] = self.counts.get(user_id, 0) + 1

    def remove(self, user_id: str) -> None:
        """Count a call of this user no longer: its answer or its deadline has come."""
        count = self.counts.get(user_id, 0)
        if count > 1:
            self.counts[user_id] = count - 1
        else:
            self.counts.pop(user_id, None)


class Shares:
    """The places of each user at each service: ``limit`` of them. Further calls wait in the order of their arrival.

    A service has one queue for all of its callers, so the calls of one user delay those of all others: by ``limit``
    calls at most. Calls to a quick service delay nobody for long, so they have as many places as they need. A service
    is quick once :meth:`on_answer` has been told of an answer, until it is told of a slow one.
    """

    __slots__ = ("_counts", "_limit", "_slow_until", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[tuple[str, str], int] = {}
        #: Calls without a place, by user and service; then by correlation id.
        self._waiting: dict[tuple[str, str], OrderedDict[str, Resume]] = {}
        #: Services that have answered: the time until which each counts as slow.
        self._slow_until: dict[str, float] = {}

    def __len__(self) -> int:
        """The number of pairs of a user and a service with calls."""
        return len(self._counts)

    def take(self, user_id: str, service: str, now: float) -> bool:
        """Take a place, and return True; or return False if there is none."""
        key = (user_id, service)
        count = self._counts.get(key, 0)
        if count >= self._limit and not self.is_quick(service, now):
            return False
        self._counts[key] = count + 1
        return True

    def is_quick(self, service: str, now: float) -> bool:
        """Tell whether a service has answered, and has not been slow lately."""
        return now >= self._slow_until.get(service, math.inf)

    def on_answer(self, service: str, seconds: float, now: float) -> None:
        """Note how long an answer of a service to a user took, or how long a user waited for one in vain.

        An answer within SLOW seconds changes nothing for a service that has answered before.
        """
        if seconds < SLOW and service in self._slow_until:
            return  # a quick method does not hide a slow one
        if service not in self._slow_until and len(self._slow_until) >= MAX_SERVICES:
            del self._slow_until[next(iter(self._slow_until))]
        self._slow_until[service] = now + SLOW_FOR if seconds >= SLOW else -math.inf

    def wait(self, user_id: str, service: str, correlation_id: str, resume: Resume) -> None:
        """Have a call wait for a place, which :meth:`give_back` will pass on to it."""
        self._waiting.setdefault((user_id, service), OrderedDict())[correlation_id] = resume

    def withdraw(self, user_id: str, service: str, correlation_id: str) -> None:
        """Let a call wait no longer."""
        key = (user_id, service)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.pop(correlation_id, None)
            if not waiting:
                del self._waiting[key]

    def give_back(self, user_id: str, service: str, now: float) -> Resume | None:
        """Give a place back; return the call that has it from now on, if one waits."""
        key = (user_id, service)
        count = self._counts[key]
        waiting = self._waiting.get(key)
        # There are more places than the limit where the service was quick until now.
        if waiting is not None and (count <= self._limit or self.is_quick(service, now)):
            _, resume = waiting.popitem(last=False)
            if not waiting:
                del self._waiting[key]
            return resume
        if count > 1:
            self._counts[key] = count - 1
        else:
            del self._counts[key]
        return None


class SentCommands:
    """Commands that the broker has confirmed, and that may still wait in their service's queue.

    Services do not answer commands. But a queue is in order: once a service answers a request that was sent after the
    broker confirmed a command, it has taken the command.
    """

    __slots__ = ("sent",)

    def __init__(self) -> None:
        #: By service, the oldest first: the time of the confirm, and the user.
        self.sent: dict[str, deque[tuple[float, str]]] = {}

    def __len__(self) -> int:
        """The number of services with such commands."""
        return len(self.sent)

    def add(self, service: str, user_id: str, now: float) -> None:
        """Add a command that the broker has just confirmed."""
        self.sent.setdefault(service, deque()).append((now, user_id))

    def on_answer(self, service: str, asked_at: float) -> list[str]:
        """Remove the commands confirmed before ``asked_at``, the time of an answered request; return their users."""
        sent = self.sent.get(service)
        users: list[str] = []
        if sent is not None:
            while sent and sent[0][0] <= asked_at:
                users.append(sent.popleft()[1])
            if not sent:
                del self.sent[service]
        return users

    def expired(self, until: float) -> list[tuple[str, str]]:
        """Remove the commands confirmed up to ``until``; return their users and services."""
        return [(user_id, service) for service in tuple(self.sent) for user_id in self.on_answer(service, until)]
