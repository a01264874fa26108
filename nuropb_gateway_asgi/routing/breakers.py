"""Circuit breakers of services, as calls see them: refusals, and log lines when a circuit opens or closes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ..limits.circuits import EVERYBODY, Circuits
from ..protocol import ErrorCode, Failure
from .calls import Call

__all__ = ["Breakers"]

logger = logging.getLogger(__name__)


class Breakers:
    """A circuit breaker for each service. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._circuits = Circuits()
        #: Empty while every service answers, as nearly always: then there is nothing to check.
        self.troubled: Mapping[str, object] = self._circuits.troubled

    def check(self, call: Call, now: float) -> Failure | None:
        """Return the refusal of a request whose service does not answer, or None."""
        message = call.message
        if message.kind == "command":
            return None  # it waits for no answer
        wait = self._circuits.refuses(message.service, call.caller, message.correlation_id, now)
        if wait is None:
            return None
        description = f"Service {message.service} does not answer"
        return Failure(ErrorCode.SERVICE_UNAVAILABLE, description, retry_after_ms=int(wait * 1000) + 1)

    def on_timeout(self, call: Call, now: float) -> None:
        """Count a request that its service did not answer in time."""
        message = call.message
        if message.kind == "command" or message.service == "":
            return
        opened = self._circuits.on_timeout(
            message.service, call.caller, message.correlation_id, message.deadline - call.began, now
        )
        if opened is not False:
            whose = "calls to it" if opened is EVERYBODY else "calls of one user to it"
            logger.warning("service %s does not answer; %s fail at once until it does", message.service, whose)

    def on_answer(self, service: str, began: float, now: float) -> None:
        """Close the circuit of a service that answered a call, which began at ``began``."""
        if self._circuits.on_answer(service, now - began, now):
            logger.warning("service %s answers again", service)

    def on_late_answer(self, service: str, now: float) -> None:
        """Close the circuit of a service that answered a call after its deadline."""
        self.on_answer(service, now, now)

    def on_ended(self, call: Call) -> None:
        """Note that a call has ended: if it was the probe of an open circuit, the next call may be."""
        self._circuits.on_ended(call.message.service, call.caller, call.message.correlation_id)

    def open(self) -> list[str]:
        """Return the services whose circuits are open, for all callers or for some."""
        return self._circuits.open()

    def states(self) -> list[tuple[str, bool, int]]:
        """Return the services with timeouts since their last answer: whether the circuit is open, and the timeouts."""
        return self._circuits.states()

    def reset(self, service: str | None = None) -> int:
        """Close all circuits, or that of a service; return how many there were with timeouts."""
        return self._circuits.reset(service)
