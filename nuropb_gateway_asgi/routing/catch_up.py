"""Subscriptions that begin in the past: the events since then, and then the live ones."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from ..authorization.rules import Delivery
from ..exceptions import MeshUnavailable
from ..handler_manager import Handler
from ..protocol import ErrorCode, Failure, Since, Subscribe, encode_kept_event
from ..tasks import TaskOwner
from ..topics import matches
from ..wire.history import After, Last, Read, Seconds, Start
from ..wire.interface import EventMessage
from .statistics import MeshStatistics

if TYPE_CHECKING:
    from .history import History, HistoryStream, KeptSubscription

__all__ = ["CatchUp", "Found", "Past"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at a client that takes its events slowly.
PACE: Final = 0.02
#: Seconds for the answer of the mesh to a mark.
MARK_TIMEOUT: Final = 5.0


class Found(Struct):
    """The past of one topic, for the client: ``count`` events follow, and the live ones lie behind ``offset``."""

    epoch: str
    offset: int
    recovered: bool
    count: int


class _Waiting(NamedTuple):
    """An event that waits to be sent."""

    offset: int
    text: str
    topic: str
    delivery: Delivery


class CatchUp:
    """One session's subscriptions in the past to topics of one history.

    It reads the past up to the present, a mark in the history. Live events behind the mark wait until the past is sent.
    ``max_events`` and ``max_size`` (bytes) bound the past, and ``max_size`` the live events that wait.
    """

    def __init__(
        self,
        history: History,
        stream: HistoryStream,
        handler: Handler,
        since: Mapping[str, Since],
        subscriptions: Mapping[str, KeptSubscription],
        *,
        max_events: int,
        max_size: int,
        statistics: MeshStatistics,
    ) -> None:
        self.handler = handler
        self._history = history
        self._stream = stream
        self._since = since
        self._subscriptions = subscriptions
        self._max_events = max_events
        self._max_size = max_size
        self._statistics = statistics
        #: The mark; None before it is read. Live events wait from then on.
        self._end: int | None = None
        self._marked: asyncio.Future[int] | None = None
        self._past: deque[_Waiting] = deque()
        self._live: deque[_Waiting] = deque()
        self._live_size = 0
        #: Set once everything is sent, or given up; ``on_ended`` is called then.
        self._ended = asyncio.Event()
        self.on_ended: Callable[[], object] = _nothing
        #: Whether the client has the answer to its subscription, and callbacks for when it has.
        self.is_answered = False
        self.then: list[Callable[[], None]] = []
        #: The number of messages that were read.
        self.searched = 0
        #: The offset up to which the session has the events; None if that cannot be said.
        self.position: int | None = min(
            (each.offset for each in since.values() if each.offset is not None), default=None
        )

    def is_over(self) -> bool:
        """Tell whether it has ended, or its session has."""
        return self._ended.is_set()

    def abandon(self) -> None:
        """End it: its session has ended."""
        self._past.clear()
        self._live.clear()
        self._finish()

    def _finish(self) -> None:
        if self._stream.catch_ups.get(self.handler) is self:
            del self._stream.catch_ups[self.handler]
        self._ended.set()
        if self._marked is not None and not self._marked.done():
            self._marked.set_result(-1)
        self.on_ended()
        self.on_answer()

    def on_answer(self) -> None:
        """Take note that the client has the answer to its subscription, or gets none."""
        self.is_answered = True
        then, self.then = self.then, []
        for done in then:
            done()

    def move(self, successor: Handler) -> None:
        """Continue with another handler of the session."""
        if self._stream.catch_ups.get(self.handler) is self:
            del self._stream.catch_ups[self.handler]
            self._stream.catch_ups[successor] = self
        self.handler = successor

    def drop(self, topic: str) -> None:
        """Drop the events that came by the subscription to ``topic`` alone, which has ended."""
        others = [each.topic for each in self._subscriptions.values() if not each.is_over]
        for waiting in (self._past, self._live):
            kept = [
                each
                for each in waiting
                if not matches(topic, each.topic) or any(matches(other, each.topic) for other in others)
            ]
            waiting.clear()
            waiting.extend(kept)

    # --- live events ------------------------------------------------------------------------------------------

    def on_live(self, offset: int, text: str, topic: str, delivery: Delivery) -> None:
        """Keep a live event until the past is sent; send it now if the past has no end yet."""
        event = _Waiting(offset, text, topic, delivery)
        if self._end is None:
            self._send(event)
            return
        self._live.append(event)
        self._live_size += len(text)

    def _on_mark(self, offset: int) -> None:
        """Begin the subscriptions behind the mark."""
        if self._marked is not None and not self._marked.done():
            self._end = offset
            for subscription in self._subscriptions.values():
                subscription.begin(self.handler, offset)
            self._marked.set_result(offset)

    def begin_now(self) -> None:
        """Begin with live events alone, because the past cannot be read."""
        for subscription in self._subscriptions.values():
            if subscription.offset is None and not self.is_over():
                subscription.begin(self.handler, self._stream.offset)

    # --- the past ---------------------------------------------------------------------------------------------

    async def read(self) -> dict[str, Found]:
        """Read the past, and return the part of each topic. Raises MeshUnavailable.

        If its session ends meanwhile, the result is empty.
        """
        while (other := self._stream.catch_ups.get(self.handler)) is not None and not self.is_over():
            await other.wait()
        if self.is_over():
            return {}
        self._stream.catch_ups[self.handler] = self
        await self._history.begin(self._stream)
        self._marked = asyncio.get_running_loop().create_future()
        if self.is_over():
            return {}
        self._stream.log.mark(self._on_mark)
        try:
            async with asyncio.timeout(MARK_TIMEOUT):
                end = await asyncio.shield(self._marked)
        except TimeoutError as error:
            raise MeshUnavailable("the history does not answer") from error
        identity = self.handler.identity
        async with self._history.readings.place("" if identity is None else identity.user_id):
            return {} if self.is_over() else await self._read_to(end)

    async def try_to_read(self) -> dict[str, Found] | None:
        """Read the past; return None if that is not possible."""
        try:
            return await self.read()
        except MeshUnavailable:
            return None
        except Exception:  # a defect here must end no other session
            logger.exception("the history of a topic could not be read")
            return None

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._ended.wait()

    async def _read_to(self, end: int) -> dict[str, Found]:
        epoch = self._stream.log.epoch
        if epoch is None:  # another one could not be compared
            raise MeshUnavailable("the connection was lost")
        events: dict[int, tuple[EventMessage, str]] = {}
        found: dict[str, Found] = {}
        room = self._max_size
        for topic, since in self._since.items():
            read = await self._read_topic(topic, since, epoch, end, room)
            new = [(offset, event) for offset, event in read.events if offset not in events]
            events.update((offset, (event, topic)) for offset, event in new)
            room -= sum(len(memoryview(event.event)) for _, event in new)
            offset = read.last
            if offset is None or not read.complete:
                offset = since.offset if read.complete and since.offset is not None else end
            found[topic] = Found(epoch, offset, read.complete, len(new))
            self._statistics.catch_ups += 1
            self._statistics.failed_catch_ups += not read.complete
        for offset, (event, topic) in sorted(events.items()):
            text = encode_kept_event(event.topic, event.event, event.trace_id, epoch, offset)
            self._past.append(_Waiting(offset, text, event.topic, self._subscriptions[topic].delivery))
        for topic, subscription in self._subscriptions.items():
            if subscription.is_over:  # the client, or the policy, has ended it meanwhile
                self.drop(topic)
                found.pop(topic, None)
        return found

    async def _read_topic(self, topic: str, since: Since, epoch: str, end: int, room: int) -> Read:
        """Read the past of one topic; nothing of it unless that is complete."""
        start: Start
        if since.offset is not None:
            if since.epoch != epoch or since.offset > end:
                return Read([], complete=False)
            start = After(since.offset)
        else:
            start = Last(since.last) if since.last is not None else Seconds(since.seconds or 0.0)

        def wanted(event: EventMessage) -> bool:
            return self._stream.is_for_subscribers(event) and matches(topic, event.topic)

        read = await self._stream.log.read(start, end, wanted, self._max_events, room)
        self.searched += read.searched
        return read if read.complete else Read([], complete=False)

    # --- sending ----------------------------------------------------------------------------------------------

    async def send(self) -> None:
        """Send the past, as fast as the client takes it, and then the live events that wait."""
        if self._past:
            self.position = self._past[0].offset - 1
        while self._past or self._live:
            # A client that takes nothing gets live events as any other: its outbox overflows, and it is too slow.
            if self._past and self._live_size <= self._max_size and not self._has_room(self._past[0]):
                await asyncio.sleep(PACE)
                continue
            if self._past:
                self._statistics.replayed_events += 1
                event = self._past.popleft()
            else:
                event = self._live.popleft()
            self.position = event.offset
            self._send(event)
        self.end()

    def end(self) -> None:
        """Send the live events that wait, and let further ones pass."""
        self._past.clear()
        while self._live:
            self._send(self._live.popleft())
        if not self.is_over():
            self._finish()

    def _has_room(self, event: _Waiting) -> bool:
        waiting = self.handler.outbox_size
        return not waiting or waiting + len(event.text) <= self._max_size // 2

    def _send(self, event: _Waiting) -> None:
        if event.delivery == "close":
            self.handler.send_frame(event.text)
        else:
            self.handler.send_event(event.text, event.topic, event.delivery)


class Past:
    """The topics of one ``subscribe`` that begin in the past. ``new`` are topics without a subscription before."""

    def __init__(self, handler: Handler, frame: Subscribe, new: Sequence[str]) -> None:
        self._handler = handler
        self.frame = frame
        self.new = new
        self.found: dict[str, Found] = {}
        self.failure: Failure | None = None
        self._catch_ups: list[CatchUp] = []
        self._answered: asyncio.Event | None = None
        self._successful = False

    @property
    def handler(self) -> Handler:
        """The handler of the session that has subscribed."""
        return self._catch_ups[0].handler if self._catch_ups else self._handler

    def add(self, catch_up: CatchUp) -> None:
        """Add the topics of one history."""
        self._catch_ups.append(catch_up)

    def run(self, tasks: TaskOwner, on_read: Callable[[int], None]) -> None:
        """Read the past, call ``on_read`` with the number of messages that were read, and wait for :meth:`on_answered`.

        Then send the past.
        """
        self._answered = asyncio.Event()
        tasks.start_soon(self._run, on_read, self._answered, name="history")

    async def _run(self, on_read: Callable[[int], None], answered: asyncio.Event) -> None:
        for catch_up in self._catch_ups:
            found = await catch_up.try_to_read()
            if found is None:
                self.failure = Failure(ErrorCode.MESH_UNAVAILABLE, "The history of a topic cannot be read at present")
                break
            self.found |= found
        on_read(sum(catch_up.searched for catch_up in self._catch_ups))
        await answered.wait()
        for catch_up in self._catch_ups:
            catch_up.on_answer()
            if self._successful:
                await catch_up.send()
            else:
                catch_up.end()

    def on_answered(self, *, successful: bool) -> None:
        """Take note that the client has its answer."""
        if self._answered is not None:
            self._successful = successful
            self._answered.set()


def _nothing() -> None:
    """Do nothing."""
