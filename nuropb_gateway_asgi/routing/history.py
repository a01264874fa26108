"""Topics with history: live events with their positions, and subscriptions that begin in the past.

A topic pattern that the operator has named is a history of its own on the mesh. Subscribers of its topics get their
live events from there and not from the event queue of the process, so that each event has a position.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, TypeAlias

from ..authorization.rules import Delivery
from ..exceptions import MeshUnavailable, SettingsError
from ..generation_cache import GenerationCache
from ..handler_manager import Handler
from ..protocol import Since, encode_kept_event
from ..settings import Settings
from ..tasks import TaskOwner
from ..topics import GATEWAY_TOPICS, TopicTree, covers
from ..wire.history import HistoryLog, HistoryMesh, KeptTopic
from ..wire.interface import EventMessage, Mesh
from .catch_up import CatchUp
from .statistics import MeshStatistics
from .subscribers import Subscribers

__all__ = ["History", "HistoryStream", "KeptSubscription", "Positions", "Readings"]

#: Seconds that a history is followed after its last subscriber left: a reloaded page subscribes again a moment later.
LEAVE_AFTER: Final = 5.0
#: Seconds that a subscription waits for a history to begin.
START_TIMEOUT: Final = 5.0
#: Events that are remembered by their ids, as a client may get an event from the event queue, too.
REMEMBERED: Final = 1000
#: Readings of the past at a time, so that live events and calls go on beside them.
READINGS_AT_ONCE: Final = 4

#: The epoch and offset of the last event that a session got, by the pattern of the history.
Positions: TypeAlias = Mapping[str, tuple[str, int]]


class KeptSubscription:
    """A session's subscription to a topic with history: it gets the events behind ``offset``; None until it begins."""

    __slots__ = ("behind", "delivery", "is_over", "offset", "stream", "topic")

    def __init__(self, stream: HistoryStream, topic: str, delivery: Delivery) -> None:
        self.stream = stream
        self.topic = topic
        self.delivery = delivery
        self.offset: int | None = None
        #: The offset behind which the session gets no event from the event queue; None if it gets all of them.
        self.behind: int | None = None
        self.is_over = False
        stream.hold()

    def arrive(self, handler: Handler) -> None:
        """Have no events come from the event queue: the session has them, or gets them, by the history alone.

        It comes from another process, and goes on behind the events that it got there.
        """
        self.behind = -1
        self.stream.arriving[self] = handler

    def begin(self, handler: Handler, offset: int) -> None:
        """Have events behind ``offset`` come."""
        if not self.is_over:
            if self.offset is None:
                self.stream.subscribers.add(self.topic, handler, self.delivery)
            if self.behind is None:
                self.behind = offset
            self.stream.arriving.pop(self, None)
            self.offset = offset

    def replace(self, handler: Handler, successor: Handler) -> None:
        """Give it to another handler of its session."""
        if self.offset is not None:
            self.stream.subscribers.replace(self.topic, handler, successor, self.delivery)
        elif self in self.stream.arriving:
            self.stream.arriving[self] = successor

    def end(self, handler: Handler, now: float) -> None:
        """End it; ``now`` is a time of the clock. Its events that wait are not sent."""
        self.is_over = True
        self.stream.arriving.pop(self, None)
        self.stream.subscribers.remove(self.topic, handler, self.delivery)
        self.stream.release(now)
        catch_up = self.stream.catch_ups.get(handler)
        if catch_up is not None:
            catch_up.drop(self.topic)


class HistoryStream:
    """One history in this process: its subscribers, and the live events that it brings (see ``Follower``)."""

    def __init__(
        self,
        pattern: str,
        log: HistoryLog,
        statistics: MeshStatistics,
        max_size: int,
        on_missed: Callable[[HistoryStream, str], None],
        on_unavailable: Callable[[HistoryStream], None],
    ) -> None:
        self.pattern = pattern
        self.log = log
        self.subscribers = Subscribers()
        #: The offset of the latest event; -1 before the first one.
        self.offset = -1
        #: The number of subscriptions, those included that have not begun.
        self.count = 0
        #: The time when the last subscription ended; None while there are some, or if nothing is followed.
        self.idle_since: float | None = None
        #: Subscriptions in the past that have not ended, by their handlers, whose events wait in them.
        self.catch_ups: dict[Handler, CatchUp] = {}
        #: Subscriptions of sessions that come from another process, until they begin here.
        self.arriving: dict[KeptSubscription, Handler] = {}
        self.started = asyncio.Event()
        #: Callbacks of the subscriptions that wait for the start, and whether some have not waited.
        self._waiting: list[Callable[[], None]] = []
        self._waiting_since = 0.0
        self._is_late = False
        self._following = False
        self._statistics = statistics
        self._max_size = max_size
        self._on_missed = on_missed
        self._on_unavailable = on_unavailable
        #: Offsets of events that came from here, and sessions that got an event from the event queue, by event ids.
        self._seen: GenerationCache[str, int] = GenerationCache(REMEMBERED)
        self._queued: GenerationCache[str, frozenset[str]] = GenerationCache(REMEMBERED)

    def hold(self) -> None:
        """Count one more subscription."""
        self.count += 1
        self.idle_since = None
        if not self._following:
            self._following = True
            self.log.follow(self)

    def release(self, now: float) -> None:
        """Count one subscription less; ``now`` is a time of the clock."""
        self.count -= 1
        if not self.count:
            self.idle_since = now

    def leave(self) -> None:
        """Get no more events."""
        self.idle_since, self._following = None, False
        self.started = asyncio.Event()
        self.log.leave()

    def when_started(self, done: Callable[[], None], now: float, *, connected: bool) -> None:
        """Call ``done`` once live events come, or at once if that has to wait for a connection."""
        if self.started.is_set():
            done()
        elif connected:
            if not self._waiting:
                self._waiting_since = now
            self._waiting.append(done)
        else:
            self._is_late = True
            done()

    def sweep(self, now: float) -> None:
        """Follow it no longer if it has no subscribers; answer those that have waited for too long."""
        if self.idle_since is not None and now - self.idle_since >= LEAVE_AFTER:
            self.leave()
        if self._waiting and now - self._waiting_since >= START_TIMEOUT:
            self.let_go(late=True)

    def let_go(self, *, late: bool) -> None:
        """Call all callbacks that wait for the start; ``late`` if it has not come."""
        self._is_late = self._is_late or (late and bool(self._waiting))
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done()

    # --- Follower ---------------------------------------------------------------------------------------------

    def on_started(self, offset: int) -> None:
        """Answer the subscribers that wait."""
        self.offset = offset
        self.started.set()
        if self._is_late:
            self._is_late = False
            self._on_missed(self, "disconnected")
        self.let_go(late=False)

    def on_missed(self) -> None:
        """Tell the subscribers."""
        self.offset = -1
        self._on_missed(self, "expired")

    def on_unavailable(self) -> None:
        """Make the topics ordinary ones."""
        self._on_unavailable(self)

    def on_kept(self, offset: int, event: EventMessage) -> None:
        """Send an event to its subscribers."""
        self.offset = offset
        if not self.is_for_subscribers(event):
            return
        handlers, lossy = self.subscribers.of(event.topic)
        if event.id:
            self._seen.add(event.id, offset)
            if len(self._queued) and (got := self._queued.get(event.id)):
                handlers = {each for each in handlers if each.session_id not in got}
                lossy = {each: delivery for each, delivery in lossy.items() if each.session_id not in got}
        if not handlers and not lossy:
            return
        self._statistics.kept_events += 1
        text = encode_kept_event(event.topic, event.event, event.trace_id, self.log.epoch or "", offset)
        catch_ups = self.catch_ups
        for handler in handlers:
            if catch_ups and (catch_up := catch_ups.get(handler)) is not None:
                catch_up.on_live(offset, text, event.topic, "close")
            else:
                handler.send_frame(text)
        for handler, delivery in lossy.items():
            if catch_ups and (catch_up := catch_ups.get(handler)) is not None:
                catch_up.on_live(offset, text, event.topic, delivery)
            else:
                handler.send_event(text, event.topic, delivery)

    def is_for_subscribers(self, event: EventMessage) -> bool:
        """Tell whether subscribers get an event: those with a target come by the event queue, to their users only."""
        return (
            event.target is None
            and event.topic not in GATEWAY_TOPICS
            and len(memoryview(event.event)) <= self._max_size  # as every event
        )

    # --- the same event by the event queue --------------------------------------------------------------------

    def without_own(
        self,
        event: EventMessage,
        handlers: set[Handler],
        lossy: dict[Handler, Delivery],
        begin: Callable[[Handler, str], int | None],
    ) -> tuple[set[Handler], dict[Handler, Delivery]]:
        """Return the receivers of an event of the event queue that do not get it from here.

        ``begin`` returns the offset behind which a handler gets the events of a topic from here.
        """
        own, own_lossy = self.subscribers.of(event.topic)
        offset = self._seen.get(event.id) if event.id else None
        for handler in (*own, *own_lossy, *self.arriving.values()):
            begins = begin(handler, event.topic)
            # An event that has not come from here yet lies behind the beginning.
            if begins is not None and (offset is None or offset > begins):
                handlers.discard(handler)
                lossy.pop(handler, None)
        if event.id and (handlers or lossy):
            self._queued.add(event.id, frozenset(handler.session_id for handler in (*handlers, *lossy)))
        return handlers, lossy


class Readings:
    """Places for readings of the past: one for a user at a time, and ``count`` in all."""

    def __init__(self, count: int) -> None:
        self._places = asyncio.Semaphore(count)
        #: By user: the lock, and the number of readings that hold it or wait for it.
        self._users: dict[str, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def place(self, user_id: str) -> AsyncIterator[None]:
        """Wait for a place, and hold it for as long as the context lasts."""
        lock, count = self._users.get(user_id, (asyncio.Lock(), 0))
        self._users[user_id] = lock, count + 1
        try:
            async with lock, self._places:
                yield
        finally:
            lock, count = self._users[user_id]
            if count > 1:
                self._users[user_id] = lock, count - 1
            else:
                del self._users[user_id]


class History:
    """The histories of a connection kind. Within its context it owns the tasks that read the past.

    ``gap`` is called with a history and the reason why its subscribers have missed events; ``demote`` with one that is
    not available any longer. ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(
        self,
        topics: Iterable[KeptTopic],
        settings: Settings,
        mesh: Mesh,
        statistics: MeshStatistics,
        clock: Callable[[], float],
        *,
        gap: Callable[[HistoryStream, str], None],
        demote: Callable[[HistoryStream], None],
    ) -> None:
        self._mesh = mesh
        self._clock = clock
        self.tasks = TaskOwner()
        self._streams: dict[str, HistoryStream] = {}
        self._patterns: TopicTree[str] = TopicTree()
        self.readings = Readings(READINGS_AT_ONCE)
        #: The subscriptions in the past that have not ended.
        self._catch_ups: set[CatchUp] = set()
        self._settings = settings
        self._statistics = statistics
        topics = tuple(topics)
        if not topics:
            return
        if not isinstance(mesh, HistoryMesh):
            raise SettingsError("HISTORY: this mesh keeps no events; expected RabbitMQ, or the embedded mesh")
        for pattern, log in mesh.keep_history(topics).items():
            self._streams[pattern] = HistoryStream(pattern, log, statistics, settings.outbox_size, gap, demote)
            self._patterns.add(pattern, pattern)

    async def __aenter__(self) -> History:
        self.readings = Readings(READINGS_AT_ONCE)  # it belongs to the event loop that first waits for it
        await self.tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for stream in self._streams.values():
            stream.leave()
        await self.tasks.__aexit__(exc_type, exc, traceback)

    def __bool__(self) -> bool:
        """Whether there is any history."""
        return bool(self._streams)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for any session."""
        return not self._catch_ups and not any(
            stream.count or stream.catch_ups or len(stream.subscribers) for stream in self._streams.values()
        )

    def covering(self, topic: str) -> HistoryStream | None:
        """Return the history that has every event of a topic pattern, or None."""
        for pattern, stream in self._streams.items():
            if covers(pattern, topic):
                return stream
        return None

    def of_event(self, topic: str) -> HistoryStream | None:
        """Return the history of the events of a topic, or None."""
        for pattern in self._patterns.match(topic):
            return self._streams[pattern]
        return None

    def sweep(self, now: float) -> None:
        """Follow histories without subscribers no longer; ``now`` is a time of the clock."""
        for stream in self._streams.values():
            stream.sweep(now)

    def on_connection_change(self, *, connected: bool) -> None:
        """Answer the subscribers that wait for a history, as the connection is lost."""
        if not connected:
            for stream in self._streams.values():
                stream.let_go(late=True)

    async def begin(self, stream: HistoryStream) -> None:
        """Wait until a history is followed. Raises MeshUnavailable."""
        if not self._mesh.can_publish:
            raise MeshUnavailable("not connected")
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await stream.started.wait()
        except TimeoutError as error:
            raise MeshUnavailable("the history has not begun") from error

    # --- sessions ---------------------------------------------------------------------------------------------

    def catch_up(
        self,
        handler: Handler,
        stream: HistoryStream,
        since: Mapping[str, Since],
        subscriptions: Mapping[str, KeptSubscription],
    ) -> CatchUp:
        """Make a subscription in the past to topics of one history. Its owner reads and sends it."""
        made = CatchUp(
            self,
            stream,
            handler,
            since,
            subscriptions,
            max_events=self._settings.history_max,
            max_size=self._settings.outbox_size,
            statistics=self._statistics,
        )
        self._catch_ups.add(made)
        made.on_ended = functools.partial(self._catch_ups.discard, made)
        return made

    def replace(self, handler: Handler, successor: Handler) -> None:
        """Give the subscriptions in the past of a connection to another handler with the same session id."""
        for each in self._catch_ups:
            if each.handler is handler:
                each.move(successor)

    def forget(self, handler: Handler) -> None:
        """End the subscriptions in the past of a connection that has ended."""
        for each in tuple(self._catch_ups):
            if each.handler is handler:
                each.abandon()

    def when_answered(self, handler: Handler, done: Callable[[], None]) -> None:
        """Call ``done`` once all subscriptions in the past of a session are answered."""
        for each in self._catch_ups:
            if each.handler is handler and not each.is_answered:
                each.then.append(functools.partial(self.when_answered, handler, done))
                return
        done()

    def position(self, stream: HistoryStream, handler: Handler) -> tuple[str, int] | None:
        """Return the epoch and offset up to which a session has the events of a history; None if they are unknown."""
        catch_up = stream.catch_ups.get(handler)
        offset = stream.offset if catch_up is None else catch_up.position
        epoch = stream.log.epoch
        return None if epoch is None or offset is None else (epoch, offset)
