"""Subscriptions, which outlive the connection: what they get, and what the gateway has to be asked for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, overload

from ..topics import matches
from ._backoff import Backoff
from ._calls import Call, Kind
from ._emitter import Emitter, guarded
from .errors import CallFailed, ConnectionClosed, ConnectionLost, GatewayError, Unsubscribed

__all__ = ["Dropped", "Gap", "GatewayEvent", "Subscription", "Subscriptions", "UnsubscribedNotice"]

_NAMES: Final = frozenset({"gap", "dropped", "ended"})


@dataclass(frozen=True)
class GatewayEvent:
    """An event of the mesh."""

    topic: str
    event: Any
    trace_id: str | None = None


@dataclass(frozen=True)
class Gap:
    """Events may have been missed: look again at what they are about.

    ``reason`` is ``reconnected`` if the connection was lost in between; the gateway has reasons of its own. ``topics``
    are the patterns concerned.
    """

    reason: str
    topics: Sequence[str]


@dataclass(frozen=True)
class Dropped:
    """So many events were dropped, because they were not taken in time; of ``topic``, if it was only one."""

    count: int
    topic: str | None = None


@dataclass(frozen=True)
class UnsubscribedNotice:
    """The gateway has ended subscriptions."""

    topics: Sequence[str]
    reason: str


class Subscription:
    """Events of some topics: for a callback, or to be iterated over.

    As an async context manager it waits until it is in force, and ends with the block. Without one it lasts until
    :meth:`unsubscribe`, or as long as the client.
    """

    def __init__(
        self,
        topics: Sequence[str],
        callback: Callable[[GatewayEvent], object] | None,
        size: int,
        leave: Callable[[Subscription], None],
    ) -> None:
        self.topics = topics
        self._callback = callback
        self._leave = leave
        self._emitter = Emitter(_NAMES)
        self._events: deque[GatewayEvent] = deque()
        self._size = size
        self._dropped = 0
        #: Set whenever there is something new to look at.
        self._news = asyncio.Event()
        self._settled = asyncio.Event()
        self._in_force = False
        self._watched = False
        self._ended = False
        self._error: GatewayError | None = None

    async def ready(self) -> None:
        """Wait until the subscription is in force. Raises the typed error if it is refused.

        Cancelling this changes nothing about the subscription.
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
    def on(self, name: Literal["ended"], listener: Callable[[GatewayError | None], object]) -> Callable[[], None]: ...
    def on(self, name: str, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``listener`` from now on; the result ends that."""
        return self._emitter.on(name, listener)

    def unsubscribe(self) -> None:
        """End it. What has come and was not iterated over yet is still there."""
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
        """The next event. Ends with the subscription, and raises if it was not the application that ended it."""
        self._watched = True
        if self._dropped:
            count, self._dropped = self._dropped, 0
            self.tell("dropped", Dropped(count))
        while not self._events:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()

    # --- for the client ---------------------------------------------------------------------------------------

    def wants(self, topic: str) -> bool:
        """Whether events of this topic are for it."""
        return any(matches(pattern, topic) for pattern in self.topics)

    def deliver(self, event: GatewayEvent) -> None:
        """Take an event."""
        if self._callback is not None:
            guarded(self._callback, event)
            return
        if len(self._events) >= self._size:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._news.set()

    def tell(self, name: str, value: object) -> None:
        """Tell the listeners."""
        self._emitter.emit(name, value)

    def enter_force(self) -> bool:
        """It is in force; whether it was before, so that events may have been missed since."""
        before, self._in_force = self._in_force, True
        self._settled.set()
        return before

    def end(self, error: GatewayError | None) -> bool:
        """Nothing will come any more; ``error`` is None if that is the application's wish.

        Returns whether anybody learns of it.
        """
        if self._ended:
            return True
        self._ended = True
        self._error = error
        self._settled.set()
        self._news.set()
        told = error is None or (self._callback is None if self._in_force else self._watched)
        return self._emitter.emit("ended", error) or told


class Host(Protocol):
    """What the subscriptions of a client need of it."""

    backoff: Backoff

    def ask(self, kind: Kind, topics: Sequence[str]) -> Call: ...

    def tell(self, name: str, value: object) -> None: ...


class Subscriptions:
    """All subscriptions of a client. The gateway sends an event once, however many of them want it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._all: dict[Subscription, None] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        #: Another one for each connection; None while there is none.
        self._link: object | None = None

    def add(self, subscription: Subscription) -> None:
        """Have it on this connection and all that follow."""
        self._all[subscription] = None
        if self._link is not None:
            self._enforce([subscription])

    def end(self, subscription: Subscription, error: GatewayError | None = None) -> None:
        """End it, and have the gateway send no more of it; ``error`` if that was not the application's wish."""
        if subscription not in self._all:
            return
        self._remove(subscription, error)
        others = _patterns(self._all)
        topics = [topic for topic in subscription.topics if topic not in others]
        if self._link is not None and topics:
            self._host.ask("unsubscribe", topics).future.add_done_callback(self._on_unsubscribed)

    def _remove(self, subscription: Subscription, error: GatewayError | None) -> None:
        del self._all[subscription]
        if not subscription.end(error) and error is not None:
            self._host.tell("warning", error)

    def connected(self) -> None:
        """There is a connection: have all subscriptions on it."""
        self._link = object()
        self._enforce(list(self._all))

    def disconnected(self) -> None:
        """There is none any more."""
        self._link = None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def close(self, error: ConnectionClosed | None) -> None:
        """There will be no connection any more; ``error`` is None if that is the application's wish."""
        self.disconnected()
        subscriptions, self._all = self._all, {}
        for subscription in subscriptions:
            subscription.end(error)

    def dispatch(self, event: GatewayEvent) -> None:
        """Deliver an event to whoever wants it."""
        for subscription in tuple(self._all):
            if subscription.wants(event.topic):
                subscription.deliver(event)

    def notice(self, topic: str, event: object) -> bool:
        """Take an event that the gateway sends about subscriptions; False if it is none."""
        if topic not in ("gap", "dropped", "unsubscribed"):
            return False
        payload = event if isinstance(event, dict) else {}
        given = payload.get("topics")
        topics = [str(each) for each in given] if isinstance(given, list) else None
        concerned = [each for each in self._all if topics is None or not set(topics).isdisjoint(each.topics)]
        reason = str(payload.get("reason", ""))
        if topic == "gap":
            self._gap(Gap(reason, _patterns(self._all) if topics is None else topics), concerned)
        elif topic == "dropped":
            self._dropped(payload.get("count"), payload.get("topic"), concerned)
        elif topics is not None:
            self._host.tell("unsubscribed", UnsubscribedNotice(topics, reason))
            for each in concerned:
                self.end(each, Unsubscribed(each.topics, reason))
        return True

    def _gap(self, gap: Gap, concerned: Iterable[Subscription]) -> None:
        self._host.tell("gap", gap)
        for each in concerned:
            each.tell("gap", gap)

    def _dropped(self, count: object, topic: object, concerned: Iterable[Subscription]) -> None:
        about = topic if isinstance(topic, str) else None
        dropped = Dropped(count if isinstance(count, int) else 1, about)
        self._host.tell("dropped", dropped)
        for each in concerned:
            if about is None or each.wants(about) or about in each.topics:
                each.tell("dropped", dropped)

    # --- what the gateway is asked ----------------------------------------------------------------------------

    def _enforce(self, subscriptions: Sequence[Subscription], attempt: int = 0) -> None:
        wanted = [each for each in subscriptions if each in self._all]
        if not wanted:
            return
        link = self._link

        def on_answer(future: asyncio.Future[Any]) -> None:
            error = future.exception()
            wanted[:] = [each for each in wanted if each in self._all]  # others have ended meanwhile
            if self._link is not link or isinstance(error, ConnectionLost) or not wanted:
                return  # the next connection asks for it again
            if error is None:
                self._in_force(wanted)
            elif isinstance(error, CallFailed) and error.retryable:
                self._later(max(error.retry_after or 0.0, self._host.backoff.delay(attempt)), wanted, attempt + 1)
            elif len(wanted) > 1:
                # All or nothing, and one of them is refused: the others must not suffer for it.
                for each in wanted:
                    self._enforce([each])
            else:
                assert isinstance(error, GatewayError)  # noqa: S101 - a call ends with no other
                self._remove(wanted[0], error)

        self._host.ask("subscribe", _patterns(wanted)).future.add_done_callback(on_answer)

    def _in_force(self, subscriptions: Iterable[Subscription]) -> None:
        again = [each for each in subscriptions if each.enter_force()]
        if again:
            self._gap(Gap("reconnected", _patterns(again)), again)

    def _later(self, delay: float, subscriptions: Sequence[Subscription], attempt: int) -> None:
        def enforce() -> None:
            self._timers.discard(timer)
            self._enforce(subscriptions, attempt)

        timer = self._loop.call_later(delay, enforce)
        self._timers.add(timer)

    def _on_unsubscribed(self, future: asyncio.Future[Any]) -> None:
        error = future.exception()
        if error is not None and not isinstance(error, ConnectionLost | ConnectionClosed):
            self._host.tell("warning", error)


def _patterns(subscriptions: Iterable[Subscription]) -> list[str]:
    return list(dict.fromkeys(pattern for each in subscriptions for pattern in each.topics))
