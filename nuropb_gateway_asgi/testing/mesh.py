"""The services of a gateway under test: added, mocked and asserted about, from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from ..mesh.embedded import EmbeddedMesh
from ..mocks import Call, CallLog, MockService
from ..mocks.faults import Fault, Faults
from ..topics import check_topic
from ..wire.services import to_json

__all__ = ["TestMesh"]

T = TypeVar("T")

#: Seconds between two looks for a call that a test waits for.
LOOK_INTERVAL: Final = 0.002


class TestMesh:
    """The services behind a gateway under test, and the calls that reached them."""

    __test__ = False  # pytest takes classes with this name for tests

    def __init__(self, mesh: EmbeddedMesh, portal: BlockingPortal, log: CallLog, faults: Faults) -> None:
        self._mesh = mesh
        self._portal = portal
        self._log = log
        self._faults = faults
        self._loop_thread = portal.call(threading.get_ident)

    # --- services ---------------------------------------------------------------------------------------------

    def add(self, service: object, name: str | None = None) -> None:
        """Add a service object, called by nuropb's rules; ``name`` is by default its ``_service_name``."""
        name = name or getattr(service, "_service_name", None)
        if not isinstance(name, str):
            raise TypeError("the service has no name; pass name, or set _service_name on the object")
        self._run(lambda: self._mesh.host.add(name, service))

    def mock(self, name: str, /, **answers: Any) -> MockService:
        """Add a service with these methods and answers, in the place of one with the same name.

        An answer is a JSON value; an exception, which is raised; a function of the parameters, which may be a
        coroutine function; or ``in_order(...)`` of these.
        """
        service = MockService(name, answers)
        self.add(service)
        return service

    def remove(self, name: str) -> None:
        """Remove a service: calls of it are ``service_unavailable``."""
        self._run(lambda: self._mesh.host.remove(name))

    def publish(self, topic: str, event: Any = None, users: Sequence[str] | None = None) -> None:
        """Publish an event to the subscribers of ``topic``, or to all connections of the ``users``."""
        if (reason := check_topic(topic)) is not None:
            raise ValueError(f"topic: {reason}")
        to_json(event)
        target = None if users is None else list(users)
        self._run(lambda: self._mesh.emit(topic, event, target))

    def switch(self, *, on: bool) -> None:
        """Make the mesh unreachable, as by an outage of the broker, or reachable again."""
        self._run(lambda: self._mesh.host.switch(on=on))

    def disturb(self, fault: str, *, on: bool = True, **values: Any) -> Fault:
        """Switch a fault on or off, or let it happen: see "Faults" in docs/development-without-a-mesh.md for the names.

        Returns the fault, whose ``met`` counts what it met.
        """
        return self._run(lambda: self._faults.set(fault, on=on, **values))

    # --- calls ------------------------------------------------------------------------------------------------

    def calls(self, name: str | None = None) -> list[Call]:
        """Return the calls so far, in order: all, those of a service, or those of a method as in ``orders.create``."""
        return [call for call in tuple(self._log.calls) if name is None or name in (call.name, call.service)]

    def assert_called(self, name: str, params: dict[str, Any] | None = None, /, **context: Any) -> Call:
        """Assert that ``name`` was called with these parameters and these members of the context; return the last.

        ``params`` are compared as a whole; None is any. Members of the context are ``user_id``, ``session_id``,
        ``trace_id``, ``idempotency_key`` and ``Authorization``.
        """
        if found := [call for call in self.calls(name) if call.delivered and call.has(params, context)]:
            return found[-1]
        wanted = [] if params is None else [f"params {params!r}"]
        wanted += [f"{key} {value!r}" for key, value in context.items()]
        raise AssertionError(
            f"{name} was not called{' with ' if wanted else ''}{', '.join(wanted)}; {self._told(name)}"
        )

    def assert_not_called(self, name: str) -> None:
        """Assert that no call of a method or of a service was delivered."""
        if any(call.delivered for call in self.calls(name)):
            raise AssertionError(f"{name} was called; {self._told(name)}")

    def wait_for_call(
        self, name: str, params: dict[str, Any] | None = None, /, *, within: float = 5.0, **context: Any
    ) -> Call:
        """Wait until such a call (see :meth:`assert_called`) has been answered, for example a command; return the last.

        Raises AssertionError after ``within`` seconds.
        """
        end = time.monotonic() + within
        while not (found := self._answered(name, params, context)) and time.monotonic() < end:
            time.sleep(LOOK_INTERVAL)
        return found[-1] if found else self.assert_called(name, params, **context)

    async def until_called(
        self, name: str, params: dict[str, Any] | None = None, /, *, within: float = 5.0, **context: Any
    ) -> Call:
        """Wait as :meth:`wait_for_call` does, in a coroutine."""
        with anyio.move_on_after(within):
            while not self._answered(name, params, context):  # noqa: ASYNC110 - the call ends in another thread
                await anyio.sleep(LOOK_INTERVAL)
        return self.wait_for_call(name, params, within=0, **context)

    def forget_calls(self) -> None:
        """Drop the calls so far."""
        self._log.calls.clear()

    def _answered(self, name: str, params: dict[str, Any] | None, context: dict[str, Any]) -> list[Call]:
        return [call for call in self.calls(name) if call.done and call.has(params, context)]

    def _told(self, name: str) -> str:
        calls = self.calls(name)
        if not calls:
            others = sorted({call.name for call in self.calls()})
            return f"calls of other methods: {', '.join(others) or 'none'}"
        shown = (
            f"{call.name} with params {call.params!r} by user_id {call.user_id!r}"
            + ("" if call.delivered else " (not delivered: there was no such service)")
            for call in calls
        )
        return f"its calls: {'; '.join(shown)}"

    def _run(self, function: Callable[[], T]) -> T:
        """Run ``function`` on the event loop of the mesh, and return its result."""
        if threading.get_ident() == self._loop_thread:
            return function()  # a mocked answer that publishes
        return self._portal.call(function)
