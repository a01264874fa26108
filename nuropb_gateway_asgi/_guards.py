"""What keeps one service or one client from harming the others: circuits and error budgets. Pure.

Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Circuits", "ErrorBudgets"]

#: So many timeouts of a service one after the other open its circuit.
OPEN_AFTER: Final = 5
#: Seconds. A caller that gives up sooner says nothing about the service.
SHORTEST_COUNTED_TIMEOUT: Final = 0.1
#: Failed calls of one user within the window, and calls refused for it until the connection ends. NuroPb 0.1.8
#: dead-letters every failed call, and nobody empties those queues.
ERRORS_ALLOWED: Final = 50
REFUSALS_ALLOWED: Final = 50
WINDOW: Final = 60.0
#: Entries kept; beyond, the oldest are forgotten.
MAX_ENTRIES: Final = 10_000


class _Circuit:
    __slots__ = ("probe", "timeouts")

    def __init__(self) -> None:
        self.timeouts = 0
        self.probe: str | None = None


class Circuits:
    """One circuit for each service: open after five timeouts in a row, closed by the first answer.

    While it is open one call at a time is let through, to find out.
    """

    __slots__ = ("_circuits",)

    def __init__(self) -> None:
        self._circuits: dict[str, _Circuit] = {}

    def admits(self, service: str, correlation_id: str) -> bool:
        """Whether a call may be made; while the circuit is open, this call is the probe then."""
        circuit = self._circuits.get(service)
        if circuit is None or circuit.timeouts < OPEN_AFTER:
            return True
        if circuit.probe is not None:
            return False
        circuit.probe = correlation_id
        return True

    def on_timeout(self, service: str, correlation_id: str, timeout: float) -> bool:
        """A call got no answer within ``timeout`` seconds; whether that opened the circuit."""
        self.on_ended(service, correlation_id)
        if timeout < SHORTEST_COUNTED_TIMEOUT:
            return False
        circuit = self._circuits.get(service)
        if circuit is None:
            if len(self._circuits) >= MAX_ENTRIES:
                del self._circuits[next(iter(self._circuits))]
            circuit = self._circuits[service] = _Circuit()
        circuit.timeouts += 1
        return circuit.timeouts == OPEN_AFTER

    def on_ended(self, service: str, correlation_id: str) -> None:
        """A call ended without an answer of the service: cancelled, abandoned, not sent."""
        circuit = self._circuits.get(service)
        if circuit is not None and circuit.probe == correlation_id:
            circuit.probe = None

    def on_answer(self, service: str) -> bool:
        """The service answered, late or not; whether that closed an open circuit."""
        circuit = self._circuits.pop(service, None)
        return circuit is not None and circuit.timeouts >= OPEN_AFTER

    def open(self) -> list[str]:
        """The services whose circuits are open."""
        return [service for service, circuit in self._circuits.items() if circuit.timeouts >= OPEN_AFTER]

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
