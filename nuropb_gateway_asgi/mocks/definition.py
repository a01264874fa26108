"""Definitions of mocked services: checked data, from whichever file they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .schema import Schema

__all__ = ["ERRORS", "Condition", "EventDefinition", "MethodDefinition", "Response", "ServiceDefinition"]

#: NuroPb's exception for each error code that a service can cause.
ERRORS: Final = {
    "bad_request": "NuropbMessageError",
    "deprecated": "NuropbDeprecatedError",
    "invalid_params": "NuropbValidationError",
    "mesh_unavailable": "NuropbTransportError",
    "permission_denied": "NuropbAuthorizationError",
    "service_error": "NuropbHandlingError",
    "service_unavailable": "NuropbNotDeliveredError",
    "timeout": "NuropbTimeoutError",
    "unauthenticated": "NuropbAuthenticationError",
}


@dataclass(frozen=True)
class EventDefinition:
    """An event after a call (``after`` seconds), or of a timer (``every`` so many seconds)."""

    topic: str
    event: Any
    users: Any = None
    after: float = 0.0
    every: float = 0.0


@dataclass(frozen=True)
class Response:
    """An answer or an error, its delay in seconds (from, to), and the events after it."""

    answer: Any = None
    error: tuple[str, str] | None = None
    delay: tuple[float, float] | None = None
    events: tuple[EventDefinition, ...] | None = None


@dataclass(frozen=True)
class Condition:
    """A response for calls whose parameters pass all tests: path, kind of test, expected value."""

    tests: tuple[tuple[str, str, Any], ...]
    response: Response


@dataclass(frozen=True)
class MethodDefinition:
    """A method: its description, the conditions in order, and the responses in the order of the other calls."""

    name: str
    description: str = ""
    parameters: Mapping[str, Schema] | None = None
    required: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    responses: tuple[Response, ...] = (Response(),)
    delay: tuple[float, float] = (0.0, 0.0)
    events: tuple[EventDefinition, ...] = ()

    @property
    def how(self) -> str:
        """How calls are answered, for a table."""
        errors = sum(each.error is not None for each in self.responses)
        parts = [f"{len(self.responses)} answers in order" if len(self.responses) > 1 else "an answer"]
        if errors == len(self.responses):
            parts = [f"the error {self.responses[0].error[0]}" if self.responses[0].error else ""]
        if self.conditions:
            parts.append(f"{len(self.conditions)} by condition")
        if self.delay[1]:
            parts.append(f"after {self.delay[0]:g} to {self.delay[1]:g} s")
        if self.events:
            parts.append("with events: " + ", ".join(each.topic for each in self.events))
        return ", ".join(parts)


@dataclass(frozen=True)
class ServiceDefinition:
    """A service: its methods, and the events that timers publish."""

    name: str
    source: str
    methods: tuple[MethodDefinition, ...]
    description: str = ""
    version: str = "mock"
    events: tuple[EventDefinition, ...] = field(default=())
