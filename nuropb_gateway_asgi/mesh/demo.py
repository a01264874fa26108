"""The service behind ``embedded://demo``, with a method for each situation that a client can meet."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ..topics import check_topic
from ..wire.errors import (
    NuropbAuthenticationError,
    NuropbAuthorizationError,
    NuropbDeprecatedError,
    NuropbHandlingError,
    NuropbValidationError,
)
from ..wire.services import PublishEvent, with_context

__all__ = ["DemoService"]


_FAILURES: dict[str, type[Exception]] = {
    "validation": NuropbValidationError,
    "authorization": NuropbAuthorizationError,
    "authentication": NuropbAuthenticationError,
    "deprecated": NuropbDeprecatedError,
    "handling": NuropbHandlingError,
    "bug": ZeroDivisionError,
}


# The mesh refuses arguments that do not fit the annotations, but does not look into a list.


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


class DemoService:
    """Try the gateway without a broker and without a service of your own."""

    _service_name = "demo"
    _version = "1.0.0"

    def __init__(self) -> None:
        self._publish: PublishEvent | None = None

    def echo(self, **kwargs: Any) -> dict[str, Any]:
        """Answer with the parameters."""
        return kwargs

    def add(self, a: float, b: float) -> int | float:
        """Answer with the sum of two numbers."""
        return a + b

    async def slow(self, seconds: float = 1.0) -> dict[str, float]:
        """Answer after some seconds (an hour at the most)."""
        started = time.monotonic()
        await asyncio.sleep(min(max(0.0, seconds), 3600.0))
        return {"slept": round(time.monotonic() - started, 3)}

    def fail(self, how: str = "bug") -> None:
        """Fail: validation, authorization, authentication, deprecated, handling, or as by a bug."""
        failure = _FAILURES.get(how)
        if failure is None:
            raise NuropbValidationError(f"how must be one of {', '.join(_FAILURES)}")
        raise failure(f"This is how a {how} failure looks")

    @with_context
    def whoami(self, ctx: dict[str, Any]) -> dict[str, Any]:
        """Answer with the context that the gateway made for this call."""
        return ctx

    def publish(self, topic: str, event: Any = None, target: list[str] | None = None) -> dict[str, str]:
        """Publish an event: to the subscribers of its topic, or to the users in target."""
        reason = check_topic(topic)
        if self._publish is None or reason is not None:
            raise NuropbValidationError(f"topic: {reason}")
        if target is not None and not _is_list_of_texts(target):
            raise NuropbValidationError("target must be a list of user ids")
        self._publish(topic, event, target)
        return {"topic": topic}

    async def _run_(self, publish: PublishEvent) -> None:
        self._publish = publish
        started = time.monotonic()
        count = 0
        while True:
            # Counted from the start, so that the time for publishing does not add up.
            await asyncio.sleep(max(started + count + 1 - time.monotonic(), 0.0))
            count += 1
            publish("demo.tick", {"count": count, "time": time.time()})
