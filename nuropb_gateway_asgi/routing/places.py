"""Places of calls among those of their user at their service: taken, waited for, and given back."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable

from msgspec import Raw

from ..limits.places import SLOW, Resume, SentCommands
from ..limits.shared import SharedLimits
from ..protocol import Failure
from .calls import Call
from .descriptions import Fetch

__all__ = ["ServicePlaces"]


class ServicePlaces:
    """The places of one transport's calls at services. The counts are shared with the other transports.

    Requests and commands have places of their own: how long commands take, nothing tells, so no service is quick there.
    A command keeps its place after the broker's confirm, as it may wait in the service's queue for long. Services do
    not answer commands, so the place is free when the service answers a later request, or when the broker has dropped
    the command. ``ask`` asks a service for its description, the request that every service answers; ``request_timeout``
    is in seconds, and ``clock`` a monotonic clock, in seconds.
    """

    __slots__ = (
        "_ask",
        "_asked",
        "_clock",
        "_command_places",
        "_commands",
        "_is_resuming",
        "_ready",
        "_request_places",
        "_request_timeout",
        "waiting",
    )

    def __init__(self, limits: SharedLimits, request_timeout: float, ask: Fetch, clock: Callable[[], float]) -> None:
        self._request_places = limits.request_places
        self._command_places = limits.command_places
        self._request_timeout = request_timeout
        self._ask = ask
        self._clock = clock
        self._commands = SentCommands()
        #: Services that are being asked whether they have taken the commands so far.
        self._asked: set[str] = set()
        #: Calls that have got a place, while one of them is being started.
        self._ready: deque[Resume] = deque()
        self._is_resuming = False
        #: The number of calls that wait for a place.
        self.waiting = 0

    def take(self, call: Call, caller: str, begin: Callable[[Call], None]) -> bool:
        """Take a place for a call of the user ``caller``, or have it wait; return whether it has a place.

        ``begin`` is called with a call that has waited, once it has a place.
        """
        message = call.message
        places = self._request_places if message.kind == "request" else self._command_places
        if places.take(caller, message.service, call.began):
            call.state = "started"
            return True
        call.state = "waiting"
        self.waiting += 1
        resume = functools.partial(self._resume, call, begin)
        places.wait(caller, message.service, message.correlation_id, resume)
        self._ask_about_commands(message.service)
        return False

    def _resume(self, call: Call, begin: Callable[[Call], None]) -> None:
        self.waiting -= 1
        call.state = "started"
        call.began = self._clock()
        begin(call)

    def give_back(self, call: Call) -> None:
        """Give back a call's place, or end its wait for one. Does nothing for a call that has none."""
        caller = call.caller
        if call.state == "free" or caller is None:
            return
        message = call.message
        places = self._request_places if message.kind == "request" else self._command_places
        if call.state == "waiting":
            self.waiting -= 1
            call.began = self._clock()  # its service could not work on it until now, and will not
            places.withdraw(caller, message.service, message.correlation_id)
        elif (resume := places.give_back(caller, message.service, self._clock())) is not None:
            self._start(resume)
        call.state = "free"

    def _free_commands(self, user_id: str, service: str) -> None:
        if (resume := self._command_places.give_back(user_id, service, self._clock())) is not None:
            self._start(resume)

    def _start(self, resume: Resume) -> None:
        """Start the call that has waited for a place longest, which may be of another transport."""
        self._ready.append(resume)
        if self._is_resuming:
            return  # a call that could not be started ends, and makes way for the next one: a loop, no recursion
        self._is_resuming = True
        try:
            while self._ready:
                self._ready.popleft()()
        finally:
            self._is_resuming = False

    # --- commands ---------------------------------------------------------------------------------------------

    def on_confirmed(self, call: Call) -> None:
        """Keep the place of a command that the broker has confirmed; the call itself has none any longer."""
        caller = call.caller
        if call.state == "free" or caller is None:
            return
        call.state = "free"
        self._commands.add(call.message.service, caller, self._clock())
        if self.waiting:
            self._ask_about_commands(call.message.service)

    def on_answer(self, call: Call, now: float) -> None:
        """Note the answer of a service to a request, and free the places of the commands that it must have taken."""
        service, began = call.message.service, call.began
        if call.caller is not None:
            self._request_places.on_answer(service, now - began, now)
        if service in self._commands.sent:
            for user_id in self._commands.on_answer(service, began):
                self._free_commands(user_id, service)

    def on_silence(self, call: Call, now: float) -> None:
        """Note that a service did not answer in time."""
        if call.caller is not None and now - call.began >= SLOW:
            self._request_places.on_answer(call.message.service, now - call.began, now)

    def sweep(self, now: float) -> None:
        """Free the places of commands that the broker has dropped by now, if no service has taken them."""
        if len(self._commands):
            for user_id, service in self._commands.expired(now - self._request_timeout):
                self._free_commands(user_id, service)

    def close(self) -> None:
        """Free the places of all commands."""
        self.sweep(math.inf)

    def _ask_about_commands(self, service: str) -> None:
        """Ask a service, if calls wait for commands of their user that it may have taken by now."""
        if service in self._commands.sent and service not in self._asked:
            self._asked.add(service)
            self._ask(service, functools.partial(self._on_told, service))

    def _on_told(self, service: str, found: bytes | Raw | Failure) -> None:
        self._asked.discard(service)
        if self.waiting and not isinstance(found, Failure):
            self._ask_about_commands(service)  # about those confirmed meanwhile
