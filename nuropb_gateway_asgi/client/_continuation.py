"""The way of a session from one connection to the next: after a loss, and before a gateway stops.

After a loss the client comes back with the session's key. When the gateway says goodbye, the client opens the next
connection beside the one in use, and takes the session there; the old connection is read until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol

from ._backoff import Backoff
from ._calls import Calls
from ._link import BROKEN, Ending, Link
from ._session import RESUME_ID, Session
from ._state import Hello
from ._subscriptions import Subscriptions
from .errors import ConnectionLost, is_final

__all__ = ["Continuation"]

#: Seconds for a gateway to close a connection after its goodbye, or after its session has moved.
LEAVE_TIMEOUT: Final = 30.0


class Host(Protocol):
    """The parts of a connection that its session uses."""

    backoff: Backoff
    calls: Calls
    subscriptions: Subscriptions

    def new_link(self) -> Link:
        """Make a link that is not connected yet."""

    async def run_link(self, link: Link) -> Ending | None:
        """Fetch a token and run ``link`` to its end; None if the application has no token any more."""

    def note_hello(self, hello: Hello) -> None:
        """Take the hello of the connection in use."""

    def note_open(self, *, resumed: bool | None, reason: str | None = None, session_id: str = "") -> None:
        """Tell the application that calls and events pass."""

    def note_adopted(self) -> None:
        """Tell the application that the next connection is under way."""

    def note_lost(self) -> None:
        """Fail the calls of the last connection, whose outcome is unknown."""

    def handle(self, frame: Mapping[str, Any]) -> None:
        """Handle a frame that belongs to calls or subscriptions."""


class Continuation:
    """Resumes the session of a client. ``link`` is the connection in use, also before it is open.

    ``enabled`` is whether the application wants that.
    """

    def __init__(self, host: Host, session: Session, *, enabled: bool) -> None:
        self.session = session
        self.link: Link | None = None
        self._host = host
        self._enabled = enabled
        self._loop = asyncio.get_running_loop()
        #: The connection that is opened beside the one in use, and its hello.
        self._next: Link | None = None
        self._next_hello: Hello | None = None
        #: Opens that connection, and runs it to its end.
        self._mover: asyncio.Task[tuple[Link, Ending] | None] | None = None
        #: The mover whose connection is in use already, while the former one has not ended.
        self._follower: asyncio.Task[tuple[Link, Ending] | None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._tasks: set[asyncio.Task[tuple[Link, Ending] | None]] = set()
        #: The patterns that were in force when the session was asked for.
        self._topics: list[str] = []

    # --- hello and the answer to resume -----------------------------------------------------------------------

    def on_hello(self, link: Link, hello: Hello) -> None:
        """Take the first hello of a link: ask for the session, or start a new one."""
        resumable = self._enabled and hello.resume
        if link is not self.link:
            self._next_hello = hello
            if resumable and self.session.key:
                self._host.calls.hold()
                self._topics = self._host.subscriptions.topics
                self._host.subscriptions.disconnected()
                self.session.ask(link)
            else:
                link.drop("the session cannot be resumed here")
            return
        self._host.note_hello(hello)
        if not resumable:
            known = bool(self.session.key)
            self.session.end()
            self._start_anew(link, resumed=False if known else None)
        elif self.session.key:
            self.session.ask(link)
        else:
            self.session.ask(link)
            self._start_anew(link, resumed=None)

    def takes(self, link: Link, frame: dict[str, Any]) -> bool:
        """Take the answer to ``resume``, and hold back other frames until then. Returns False for all other frames."""
        asked = self.session.asked
        if asked is None:
            return False
        payload = frame.get("payload")
        if not isinstance(payload, dict):
            payload = {}
        if link is asked and frame.get("type") == "response" and payload.get("id") == RESUME_ID:
            self._on_answer(link, payload)
            return True
        if not self.session.key or link not in (asked, self.link) or (link is asked and frame.get("type") == "error"):
            return False
        self.session.hold_back(link, frame)
        return True

    def _on_answer(self, link: Link, payload: Mapping[str, Any]) -> None:
        had_key = bool(self.session.key)
        answer = self.session.on_answer(payload)
        if link is not self.link:
            self._take_over(link)
        self.session.begin(link, answer)
        if answer.resumed:
            self._host.note_open(resumed=True, session_id=answer.session_id)
            self.settle()
        elif had_key:
            self._start_anew(link, resumed=False, reason=answer.reason or None)
            if not answer.reason:
                self.session.ask(link)  # it was refused as a mistake: begin a new session

    def _start_anew(self, link: Link, *, resumed: bool | None, reason: str | None = None) -> None:
        host = self._host
        for frame in self.session.take_late():
            host.handle(frame)
        host.note_lost()
        host.calls.connected(link.send)
        host.note_open(resumed=resumed, reason=reason)
        host.subscriptions.connected()
        for frame in self.session.take_early():
            host.handle(frame)
        host.calls.release()

    def settle(self) -> None:
        """Continue with calls and subscriptions once all repeated frames were handled."""
        answer = self.session.take_replayed()
        if answer is not None:
            self._host.calls.resume(answer.in_flight)
            self._host.subscriptions.resumed(answer.topics)
            self._host.calls.release()

    # --- moving -----------------------------------------------------------------------------------------------

    def on_goodbye(self, link: Link, delay: float) -> bool:
        """Move the session to another connection after ``delay`` seconds. Returns False if it has to stay."""
        if not self.session.key:
            # The gateway closes the connection once no call is in flight, and a call that is sent now could be lost.
            self._host.calls.hold()
            self._drop_later(link, "the gateway is stopping")
            return False
        if self._mover is None:
            self._mover = asyncio.create_task(self._move(delay), name="gateway client, next connection")
            self._tasks.add(self._mover)
        return True

    async def _move(self, delay: float) -> tuple[Link, Ending] | None:
        """Open the next connection, until one was taken into use. Returns its end."""
        attempt = 0
        while True:
            await asyncio.sleep(delay + self._host.backoff.delay(attempt))
            link = self._next = self._host.new_link()
            ending = await self._host.run_link(link)
            if self._next is not link:
                return None if ending is None else (link, ending)
            self._next = None
            if self.session.asked is link:
                self._stay()
            if ending is None:
                return None
            # A single process that drains refuses connections. Then the session stays until it ends.
            delay = ending.retry_after
            attempt += 1

    def _take_over(self, link: Link) -> None:
        old, self.link, self._next = self.link, link, None
        self._follower, self._mover = self._mover, None
        self._host.calls.suspend(ConnectionLost(BROKEN, "the session has moved to another connection"))
        self._host.calls.connected(link.send)
        if self._next_hello is not None:
            self._host.note_hello(self._next_hello)
        if old is not None:
            self._drop_later(old, "the session has moved to another connection")

    def _drop_later(self, link: Link, reason: str) -> None:
        self._timers.append(self._loop.call_later(LEAVE_TIMEOUT, link.drop, reason))

    def _stay(self) -> None:
        """Go on with the connection in use, as the session has not moved."""
        link = self.link
        if link is not None:
            for frame in self.session.stay(link):
                self._host.handle(frame)
                self.session.count(link, frame)
            self._host.subscriptions.resumed(self._topics)
            self._host.calls.release()

    def after(self, link: Link, ending: Ending) -> asyncio.Task[tuple[Link, Ending] | None] | None:
        """Return the task that runs the successor of ``link``, which has ended; None if there is none."""
        if link is not self.link:
            follower, self._follower = self._follower, None
            return follower
        mover, self._mover = self._mover, None
        if mover is None or self._next is None or ending.final or is_final(ending.code):
            return None
        # The next connection is under way already. The session comes back there.
        self.link, self._next = self._next, None
        lost = ConnectionLost(ending.code, ending.reason, status=ending.status)
        self._host.calls.suspend(lost)
        self._host.subscriptions.disconnected()
        self._host.calls.connected(self.link.send)
        if self.session.asked is self.link and self._next_hello is not None:
            self._host.note_hello(self._next_hello)  # the session is about to be resumed
        else:
            self._host.note_adopted()
        return mover

    async def end(self) -> None:
        """End all connections, and wait for their ends."""
        tasks, self._tasks = self._tasks, set()
        self.link = self._next = self._mover = self._follower = None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
