"""What keeps one service or one client from harming the others: circuits and error budgets. Pure.

Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import Final, Literal, TypeAlias

__all__ = ["EVERYBODY", "Caller", "Circuits", "ErrorBudgets"]

#: So many timeouts of a service one after the other open its circuit.
OPEN_AFTER: Final = 5
#: So many of them may be one caller's, where the circuit opens for everybody.
COUNTED_OF_ONE: Final = 2
#: Seconds between two probes of a service that does not answer, and before the first.
PAUSE: Final = 1.0
#: Seconds. A caller that gives up sooner says nothing about the service.
SHORTEST_COUNTED_TIMEOUT: Final = 0.1
#: Failed calls of one user within the window, and calls refused for it until the connection ends. NuroPb 0.1.8
#: dead-letters every failed call, and nobody empties those queues.
ERRORS_ALLOWED: Final = 50
REFUSALS_ALLOWED: Final = 50
WINDOW: Final = 60.0
#: Entries kept; beyond, the oldest are forgotten.
MAX_ENTRIES: Final = 10_000


class _Everybody(enum.Enum):
    EVERYBODY = enum.auto()


#: Whom a circuit is open for, where it is not one caller alone.
EVERYBODY: Final = _Everybody.EVERYBODY
#: A user id, or None for the host application.
Caller: TypeAlias = str | None


class _Circuit:
    __slots__ = ("probes", "retry_at", "timeouts")

    def __init__(self) -> None:
        #: In a row, by caller.
        self.timeouts: Counter[Caller] = Counter()
        #: The call that is to find out, for each that the circuit is open for.
        self.probes: dict[Caller | _Everybody, str] = {}
        #: When the next one may be made.
        self.retry_at: dict[Caller | _Everybody, float] = {}

    def open_for(self, caller: Caller) -> Caller | _Everybody | Literal[False]:
        """Whom it is open for, as far as that concerns this caller."""
        if sum(min(count, COUNTED_OF_ONE) for count in self.timeouts.values()) >= OPEN_AFTER:
            return EVERYBODY
        return caller if self.timeouts[caller] >= OPEN_AFTER else False

    @property
    def is_open(self) -> bool:
        return any(self.open_for(caller) is not False for caller in self.timeouts)


class Circuits:
    """One circuit for each service: open after five timeouts in a row, closed by the first answer.

    While it is open calls are refused; after a pause one at a time is let through, to find out. Timeouts of one caller
    open it for that caller alone: whoever asks for the impossible in a short time must not cut others off. Those of
    several callers open it for everybody.
    """

    __slots__ = ("_circuits",)

    def __init__(self) -> None:
        self._circuits: dict[str, _Circuit] = {}

    def __len__(self) -> int:
        return len(self._circuits)

    def refuses(self, service: str, caller: Caller, correlation_id: str, now: float) -> float | None:
        """Seconds until a call may be tried again, or None if this one may be made.

        While the circuit is open, the call that may be made is the probe.
        """
        circuit = self._circuits.get(service)
        whom = False if circuit is None else circuit.open_for(caller)
        if circuit is None or whom is False:
            return None
        if whom in circuit.probes:
            return PAUSE
        if now < circuit.retry_at[whom]:
            return circuit.retry_at[whom] - now
        circuit.probes[whom] = correlation_id
        return None

    def on_timeout(
        self, service: str, caller: Caller, correlation_id: str, timeout: float, now: float
    ) -> Caller | _Everybody | Literal[False]:
        """A call got no answer within ``timeout`` seconds. Whom that opened the circuit for, if it did."""
        self.on_ended(service, caller, correlation_id)
        if timeout < SHORTEST_COUNTED_TIMEOUT:
            return False
        circuit = self._circuits.get(service)
        if circuit is None:
            if len(self._circuits) >= MAX_ENTRIES:
                del self._circuits[next(iter(self._circuits))]
            circuit = self._circuits[service] = _Circuit()
        before = circuit.open_for(caller)
        circuit.timeouts[caller] += 1
        after = circuit.open_for(caller)
        if after is not False:
            circuit.retry_at[after] = now + PAUSE
        return after if after != before else False

    def on_ended(self, service: str, caller: Caller, correlation_id: str) -> None:
        """A call ended without an answer of the service: cancelled, abandoned, not sent."""
        circuit = self._circuits.get(service)
        if circuit is not None:
            for whom in (EVERYBODY, caller):
                if circuit.probes.get(whom) == correlation_id:
                    del circuit.probes[whom]

    def on_answer(self, service: str) -> bool:
        """The service answered, late or not; whether that closed an open circuit."""
        circuit = self._circuits.pop(service, None)
        return circuit is not None and circuit.is_open

    def open(self) -> list[str]:
        """The services whose circuits are open, for everybody or for somebody."""
        return [service for service, circuit in self._circuits.items() if circuit.is_open]

    def reset(self) -> None:
        """Forget everything: it was the mesh that was not there, not the services."""
        self._circuits.clear()


class _Budget:
    __slots__ = ("errors", "refusals", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.errors = 0
        self.refusals = 0


class ErrorBudgets:
    """Failed calls of each user within the current minute, counted over all of the user's connections."""

    __slots__ = ("_budgets",)

    def __init__(self) -> None:
        self._budgets: dict[str, _Budget] = {}

    def __len__(self) -> int:
        return len(self._budgets)

    def on_error(self, user_id: str, now: float) -> None:
        """A call of this user failed."""
        budget = self._current(user_id, now)
        if budget is None:
            if len(self._budgets) >= MAX_ENTRIES:
                del self._budgets[next(iter(self._budgets))]
            budget = self._budgets[user_id] = _Budget(now)
        budget.errors += 1

    def refuses(self, user_id: str, now: float) -> float | None:
        """Seconds until this user may call again, or None if that is now. A refusal is counted, too."""
        budget = self._current(user_id, now)
        if budget is None or budget.errors < ERRORS_ALLOWED:
            return None
        budget.refusals += 1
        return budget.started + WINDOW - now

    def exhausted(self, user_id: str) -> bool:
        """Whether this user went on calling for so long that the connection is to end."""
        budget = self._budgets.get(user_id)
        return budget is not None and budget.refusals > REFUSALS_ALLOWED

    def reset(self) -> None:
        """Forget everything: calls that the mesh lost are nobody's fault."""
        self._budgets.clear()

    def _current(self, user_id: str, now: float) -> _Budget | None:
        budget = self._budgets.get(user_id)
        if budget is not None and now - budget.started >= WINDOW:
            del self._budgets[user_id]
            return None
        return budget
