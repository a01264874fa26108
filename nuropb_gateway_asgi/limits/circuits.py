"""Circuit breakers of services, and error budgets of users. Pure.

Times are of one monotonic clock, in seconds, and are given by the calling code.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import Final, Literal, TypeAlias

__all__ = ["EVERYBODY", "Caller", "Circuits", "ErrorBudgets"]

#: Timeouts of a service in a row that open its circuit.
OPEN_AFTER: Final = 5
#: Timeouts of one caller that count towards opening the circuit for all callers.
COUNTED_OF_ONE: Final = 2
#: Seconds between the starts of two probes of a silent service, and before the first one.
PAUSE: Final = 1.0
#: Seconds. A shorter timeout proves nothing about the service.
SHORTEST_COUNTED_TIMEOUT: Final = 0.1
#: Seconds without an answer to any caller before a circuit opens for all callers.
SILENCE: Final = 1.0
#: Seconds for which the slowest answer of a service is remembered at least; at most twice as long.
MEMORY: Final = 30.0
#: Failed calls of one user within ERROR_WINDOW, and calls refused after them until the connection is closed. NuroPb
#: 0.1.8 dead-letters every failed call, and those queues are never emptied.
ERRORS_ALLOWED: Final = 50
ERROR_REFUSALS_ALLOWED: Final = 50
ERROR_WINDOW: Final = 60.0
#: Entries kept; beyond it the oldest are forgotten.
MAX_ENTRIES: Final = 10_000


class _Everybody(enum.Enum):
    EVERYBODY = enum.auto()


#: The circuit is open for all callers.
EVERYBODY: Final = _Everybody.EVERYBODY
#: A user id, or None for the host application.
Caller: TypeAlias = str | None


class _Pace:
    """The time that a service takes to answer: the slowest of its latest answers, in two generations."""

    __slots__ = ("answered_at", "before", "slowest", "turns_at")

    def __init__(self, now: float) -> None:
        self.answered_at = now
        self.slowest = self.before = 0.0
        self.turns_at = now + MEMORY

    def says_nothing(self, timeout: float, now: float) -> bool:
        """Tell whether a service at this pace may be well although a call had no answer in ``timeout`` seconds."""
        needs = max(self.slowest, self.before)
        if now >= self.turns_at:
            needs = self.slowest if now < self.turns_at + MEMORY else 0.0
        return timeout < needs or now - self.answered_at < max(timeout, SILENCE)


class _Circuit:
    __slots__ = ("_counted", "_refused", "_strength", "_tried", "is_open", "probes", "retry_at", "timeouts")

    def __init__(self) -> None:
        #: Timeouts in a row, by caller.
        self.timeouts: Counter[Caller] = Counter()
        #: Those of them that say something about the service, up to COUNTED_OF_ONE of each caller; and their sum.
        self._counted: Counter[Caller] = Counter()
        self._strength = 0
        #: Whether it is open for any caller.
        self.is_open = False
        #: The call with which a caller probes the service.
        self.probes: dict[Caller, str] = {}
        #: The time of the next probe.
        self.retry_at: dict[Caller | _Everybody, float] = {}
        #: In turn, while it is open for everybody: the callers that had a probe, and those refused that had none yet.
        self._tried: set[Caller] = set()
        self._refused: set[Caller] = set()

    def wait(self, caller: Caller, whom: Caller | _Everybody, now: float) -> float:
        """Return the seconds until this caller may probe the service: at most 0 if it may now."""
        if caller in self.probes:
            return PAUSE
        wait = self.retry_at[whom] - now
        if whom is EVERYBODY:
            if wait <= 0 and caller in self._tried and self._refused:
                wait += PAUSE  # the others' turn, who were told to try again by now
            if wait > 0 and caller not in self._tried:
                self._refused.add(caller)
        return wait

    def begin_probe(self, caller: Caller, whom: Caller | _Everybody, correlation_id: str, now: float) -> None:
        """Note the probe of a caller."""
        self.probes[caller] = correlation_id
        self.retry_at[whom] = now + PAUSE
        if caller in self._tried:
            self._tried.clear()
            self._refused.clear()
        self._tried.add(caller)
        self._refused.discard(caller)

    def count(self, caller: Caller) -> None:
        """Count a timeout that says something about the service."""
        if self._counted[caller] < COUNTED_OF_ONE:
            self._counted[caller] += 1
            self._strength += 1

    def open_for(self, caller: Caller) -> Caller | _Everybody | Literal[False]:
        """Return EVERYBODY or this caller if the circuit is open for them, else False."""
        if self._strength >= OPEN_AFTER:
            return EVERYBODY
        return caller if self.timeouts[caller] >= OPEN_AFTER else False


class Circuits:
    """A circuit breaker for each service: opened by five timeouts in a row, closed by the first answer.

    An open circuit refuses calls, but for one in each pause, which probes the service. A caller has one probe at a
    time, and other callers do not wait for its end: it may be a call that takes long at a healthy service. Callers take
    turns.

    The timeouts of one caller open it for that caller alone, since a caller with impossible timeouts must not cut
    others off. The timeouts of several callers open it for all, if these say something about the service: it answered
    no caller meanwhile, nor within the last second, and each of the calls had as much time as the service has lately
    needed.
    """

    __slots__ = ("_paces", "troubled")

    def __init__(self) -> None:
        #: By the names of services with timeouts since their last answer.
        self.troubled: dict[str, _Circuit] = {}
        #: By the names of services that have answered.
        self._paces: dict[str, _Pace] = {}

    def __len__(self) -> int:
        return max(len(self.troubled), len(self._paces))

    def refuses(self, service: str, caller: Caller, correlation_id: str, now: float) -> float | None:
        """Return the seconds until a call may be tried again, or None if this call may be made.

        A call that an open circuit lets through is its probe.
        """
        circuit = self.troubled.get(service)
        whom = False if circuit is None else circuit.open_for(caller)
        if circuit is None or whom is False:
            return None
        wait = circuit.wait(caller, whom, now)
        if wait > 0:
            return wait
        circuit.begin_probe(caller, whom, correlation_id, now)
        return None

    def on_timeout(
        self, service: str, caller: Caller, correlation_id: str, timeout: float, now: float
    ) -> Caller | _Everybody | Literal[False]:
        """Count a call without an answer in ``timeout`` seconds; return for whom that opened the circuit, or False."""
        self.on_ended(service, caller, correlation_id)
        if timeout < SHORTEST_COUNTED_TIMEOUT:
            return False
        circuit = self.troubled.get(service)
        if circuit is None:
            if len(self.troubled) >= MAX_ENTRIES:
                del self.troubled[next(iter(self.troubled))]
            circuit = self.troubled[service] = _Circuit()
        before = circuit.open_for(caller)
        circuit.timeouts[caller] += 1
        pace = self._paces.get(service)
        if pace is None or not pace.says_nothing(timeout, now):
            circuit.count(caller)
        after = circuit.open_for(caller)
        if after is False or after == before:
            return False  # later timeouts do not put the next probe off
        circuit.is_open = True
        circuit.retry_at[after] = now + PAUSE
        return after

    def on_ended(self, service: str, caller: Caller, correlation_id: str) -> None:
        """Note that a call ended without an answer, or was not sent.

        One that its client gave up has not ended: its service may work on it, and its caller could have each probe.
        """
        circuit = self.troubled.get(service)
        if circuit is not None and circuit.probes.get(caller) == correlation_id:
            del circuit.probes[caller]

    def on_answer(self, service: str, seconds: float, now: float) -> bool:
        """Note an answer of the service, late or not; return whether that closed an open circuit.

        ``seconds`` is the time that the answer took.
        """
        pace = self._paces.get(service)
        if pace is None:
            if len(self._paces) >= MAX_ENTRIES:
                del self._paces[next(iter(self._paces))]
            pace = self._paces[service] = _Pace(now)
        pace.answered_at = now
        if now >= pace.turns_at:
            pace.before = pace.slowest if now < pace.turns_at + MEMORY else 0.0
            pace.slowest = seconds
            pace.turns_at = now + MEMORY
        elif seconds > pace.slowest:
            pace.slowest = seconds
        if not self.troubled:
            return False
        circuit = self.troubled.pop(service, None)
        return circuit is not None and circuit.is_open

    def open(self) -> list[str]:
        """Return the services whose circuits are open, for all callers or for some."""
        return [service for service, circuit in self.troubled.items() if circuit.is_open]

    def states(self) -> list[tuple[str, bool, int]]:
        """Return the services with timeouts since their last answer: whether the circuit is open, and the timeouts."""
        return [(service, each.is_open, each.timeouts.total()) for service, each in self.troubled.items()]

    def reset(self, service: str | None = None) -> int:
        """Close all circuits, or that of a service; return how many there were with timeouts."""
        if service is not None:
            return 0 if self.troubled.pop(service, None) is None else 1
        count = len(self.troubled)
        self.troubled.clear()
        return count


class _Budget:
    __slots__ = ("errors", "refusals", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.errors = 0
        self.refusals = 0


class ErrorBudgets:
    """The failed calls of each user within a minute, over all connections of the user."""

    __slots__ = ("_budgets",)

    def __init__(self) -> None:
        self._budgets: dict[str, _Budget] = {}

    def __len__(self) -> int:
        return len(self._budgets)

    def on_error(self, user_id: str, now: float) -> None:
        """Count a failed call of this user."""
        budget = self._current(user_id, now)
        if budget is None:
            if len(self._budgets) >= MAX_ENTRIES:
                del self._budgets[next(iter(self._budgets))]
            budget = self._budgets[user_id] = _Budget(now)
        budget.errors += 1

    def refuses(self, user_id: str, now: float) -> float | None:
        """Return the seconds until this user may call again, or None. A refusal is counted, too."""
        if user_id not in self._budgets:
            return None
        budget = self._current(user_id, now)
        if budget is None or budget.errors < ERRORS_ALLOWED:
            return None
        budget.refusals += 1
        return budget.started + ERROR_WINDOW - now

    def exhausted(self, user_id: str) -> bool:
        """Return whether this user ignored so many refusals that the connection is to be closed."""
        budget = self._budgets.get(user_id)
        return budget is not None and budget.refusals > ERROR_REFUSALS_ALLOWED

    def states(self, now: float) -> list[tuple[str, int, int, float]]:
        """Return the users with failed calls: errors, refusals, and seconds until both are forgotten."""
        current = ((user_id, self._current(user_id, now)) for user_id in tuple(self._budgets))
        return [
            (user_id, each.errors, each.refusals, each.started + ERROR_WINDOW - now)
            for user_id, each in current
            if each is not None
        ]

    def reset(self, user_id: str | None = None) -> int:
        """Forget all errors, or those of a user; return of how many users there were any."""
        if user_id is not None:
            return 0 if self._budgets.pop(user_id, None) is None else 1
        count = len(self._budgets)
        self._budgets.clear()
        return count

    def _current(self, user_id: str, now: float) -> _Budget | None:
        budget = self._budgets.get(user_id)
        if budget is not None and now - budget.started >= ERROR_WINDOW:
            del self._budgets[user_id]
            return None
        return budget
