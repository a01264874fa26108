"""A subscription: its events go to a callback, or wait until the application iterates over them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self, overload

from ..topics import matches
from ._emitter import Emitter, guarded
from ._events import Dropped, Gap, GatewayEvent, Position, Recovered
from .errors import GatewayError, Unsubscribed

__all__ = ["Subscription"]

#: The names that :meth:`Subscription.on` takes.
SUBSCRIPTION_EVENTS: Final = frozenset({"gap", "dropped", "ended", "recovered"})


class Subscription:
    """A subscription to topics. Its events go to a callback, or are iterated over.

    As an async context manager it waits until it is in force, and ends with the block. Otherwise it lasts until
    :meth:`unsubscribe`, or as long as the client. Reconnections do not end it.
    """

    def __init__(
        self,
        topics: Sequence[str],
        callback: Callable[[GatewayEvent], object] | None,
        size: int,
        leave: Callable[[Subscription], None],
        since: Mapping[str, object] | None = None,
    ) -> None:
        self.topics = topics
        #: The start in the past that the application wants, for topics without a position.
        self.since = since
        #: The position of the latest event, by topic pattern.
        self.positions: dict[str, Position] = {}
        #: The answer to a subscription that begins in the past: events before it come again behind it.
        self.awaited: asyncio.Future[Any] | None = None
        self._callback = callback
        self._leave = leave
        self._emitter = Emitter(SUBSCRIPTION_EVENTS)
        self._events: deque[GatewayEvent] = deque()
        self._size = size
        self._dropped = 0
        #: Set by an event, and by the end.
        self._news = asyncio.Event()
        #: Set when the subscription is in force, or refused.
        self._settled = asyncio.Event()
        self._in_force = False
        #: Whether a task waits for the next event.
        self._is_awaited = False
        #: Whether the application waits or iterates, and so learns of an error.
        self._watched = False
        self._ended = False
        self._error: GatewayError | None = None

    async def ready(self) -> None:
        """Wait until the subscription is in force. Raises the typed error if it is refused.

        Cancelling the wait does not cancel the subscription.
        """
        self._watched = True
        await self._settled.wait()
        if not self._in_force:
            raise self._error or Unsubscribed(self.topics, "by the application")

    @overload
    def on(self, name: Literal["gap"], listener: Callable[[Gap], object]) -> Callable[[], None]: ...
    @overload
    def on(self, name: Literal["dropped"], listener: Callable[[Dropped], object]) -> Callable[[], None]: ...
    @overload
    def on(self, name: Literal["recovered"], listener: Callable[[Recovered], object]) -> Callable[[], None]: ...
    @overload
    def on(self, name: Literal["ended"], listener: Callable[[GatewayError | None], object]) -> Callable[[], None]: ...
    def on(self, name: str, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``listener`` for every ``name`` from now on. Returns a function that removes it."""
        return self._emitter.on(name, listener)

    def unsubscribe(self) -> None:
        """End the subscription. Events that have arrived can still be iterated over."""
        self._leave(self)

    async def __aenter__(self) -> Self:
        try:
            await self.ready()
        except BaseException:
            self.unsubscribe()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unsubscribe()

    def __aiter__(self) -> Self:
        self._watched = True
        return self

    async def __anext__(self) -> GatewayEvent:
        """Return the next event. Stops if the application ended the subscription; raises the error of any other end.

        Raises RuntimeError while another task waits for the next event: each event would reach one of them only.
        """
        self._watched = True
        if self._is_awaited:
            raise RuntimeError("another task waits for the next event; give each task a subscription of its own")
        if self._dropped:
            count, self._dropped = self._dropped, 0
            self.tell("dropped", Dropped(count))
        while not self._events:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            self._is_awaited = True
            try:
                await self._news.wait()
            finally:
                self._is_awaited = False
        return self._events.popleft()

    async def aclose(self) -> None:
        """End the subscription, for ``contextlib.aclosing``; a pending wait for an event ends at once."""
        self.unsubscribe()

    # --- called by Subscriptions ------------------------------------------------------------------------------

    def wants(self, topic: str) -> bool:
        """Return whether ``topic`` matches one of its patterns."""
        return any(matches(pattern, topic) for pattern in self.topics)

    def start_of(self, topic: str) -> Mapping[str, object] | None:
        """Return the place in the past at which ``topic`` has to begin, or None for the present."""
        position = self.positions.get(topic)
        return self.since if position is None else {"epoch": position.epoch, "offset": position.offset}

    def note_answer(self, topic: str, position: Position) -> None:
        """Take the position of ``topic`` from an answer, unless events are ahead of it."""
        known = self.positions.get(topic)
        if known is None or known.epoch != position.epoch or known.offset < position.offset:
            self.positions[topic] = position

    def _is_new(self, event: GatewayEvent) -> bool:
        """Note the position of an event; return False if the event came before, or comes again behind an answer."""
        if event.position is None:
            return True
        if self.awaited is not None and not self.awaited.done():
            return False
        is_new = False
        for topic in self.topics:
            if matches(topic, event.topic):
                known = self.positions.get(topic)
                if known is None or known.epoch != event.position.epoch or known.offset < event.position.offset:
                    self.positions[topic] = event.position
                    is_new = True
        return is_new

    def deliver(self, event: GatewayEvent) -> None:
        """Pass an event to the callback, or keep it for the iteration."""
        if not self._is_new(event):
            return
        if self._callback is not None:
            guarded(self._callback, event)
            return
        if len(self._events) >= self._size:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._news.set()

    def tell(self, name: str, value: object) -> None:
        """Call the listeners of ``name``."""
        self._emitter.emit(name, value)

    @property
    def in_force(self) -> bool:
        """Whether it was in force on the last connection."""
        return self._in_force

    def enter_force(self) -> bool:
        """Mark it as in force. Returns whether it was before: then events may have been missed since."""
        before, self._in_force = self._in_force, True
        self._settled.set()
        return before

    def end(self, error: GatewayError | None) -> bool:
        """End it; ``error`` is None if the application asked for that.

        Returns whether the application learns of the end: by a listener, an iteration or a wait.
        """
        if self._ended:
            return True
        self._ended = True
        self._error = error
        self._settled.set()
        self._news.set()
        told = error is None or (self._callback is None if self._in_force else self._watched)
        return self._emitter.emit("ended", error) or told
