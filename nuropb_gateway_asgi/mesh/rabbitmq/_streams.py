"""Everything that may reach a stream, on a connection of its own: events, marks and records; streams and their readers.

RabbitMQ closes the whole connection of a client that publishes into a stream, or consumes it, while the coordinator of
streams is away, as it is for a while after the end of a node (506 and 541, seen from 3.10 to 4.3). An event may be
routed into a stream that nobody here knows of. So neither calls nor their replies go by this connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import anyio
from aiormq.abc import AbstractChannel

from ...exceptions import MeshUnavailable
from ...wire.publish import encode_publish, expiration
from ._connection import Connection
from ._event_window import can_confirm_events
from ._exchanges import declare_exchanges
from ._lane import Publisher
from ._link import Link, running
from ._parts import Part
from ._records import write_record
from ._self_check import SelfCheck
from ._sizes import SizeLimit
from ._statistics import RabbitMQStatistics

__all__ = ["BLOCKED", "Streams"]

logger = logging.getLogger(__name__)

#: Seconds between looks at the confirms of events, and for an alarm of the broker.
LOOK_INTERVAL: Final = 0.25
#: Seconds between declarations of streams and their bindings: the broker tells nobody of their end.
REASSERT_INTERVAL: Final = 15.0
#: Seconds that a process waits at its end for the next confirm of an event.
CONFIRMS_TIMEOUT: Final = 1.0
BLOCKED: Final = "the broker blocks publishers (a memory or disk alarm)"


class Streams:
    """Publishes events, marks and records, and keeps the parts that are streams.

    ``queue`` gets the connection's message to itself, and ``consuming`` brings it back, as it does for ``calls``.
    ``blocked`` tells whether the broker blocks publishers on another connection. ``on_change`` is called when the
    connection comes up or is lost. Records have a channel of their own, if the process ``writes_records``.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        queue: str,
        consuming: Link,
        statistics: RabbitMQStatistics,
        size_limit: SizeLimit,
        calls: SelfCheck,
        *,
        writes_records: bool,
        blocked: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self.link = Link("streaming", connect, self._set_up, on_change)
        self.self_check = SelfCheck(
            queue,
            self.link,
            consuming,
            statistics,
            drops=(self.link,),
            other=calls,
            publisher=lambda: self._publisher,
            blocked=lambda: self.blocked,
            on_change=lambda: None,
        )
        #: The streams, each set up again whenever it is lost.
        self.parts: tuple[Part, ...] = ()
        self._statistics = statistics
        self._size_limit = size_limit
        self._writes_records = writes_records
        self._is_blocked = blocked
        #: The records on their way.
        self._writing: set[anyio.CancelScope] = set()
        self._on_change = on_change
        self._publisher: Publisher | None = None
        #: The channel of records, if this process writes any, while there is a publisher.
        self._record_channel: AbstractChannel | None = None
        #: Set while there is a publisher.
        self._usable = asyncio.Event()

    @property
    def blocked(self) -> bool:
        """Whether the broker blocks publishers, because of a memory or disk alarm."""
        return self._is_blocked() or (self._publisher is not None and self._publisher.blocked)

    @property
    def can_publish(self) -> bool:
        """Whether events can be published now."""
        return self._publisher is not None and not self.blocked

    @property
    def problem(self) -> str:
        """The reason why events cannot be published."""
        return BLOCKED if self.blocked else f"{self.link.name} connection: {self.link.problem}"

    @property
    def queued(self) -> int:
        """The number of messages that wait for the connection."""
        return 0 if self._publisher is None else self._publisher.queued

    async def run(self) -> None:
        """Keep the connection, until cancelled."""
        self._usable = asyncio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.link.run, name="mesh streaming")
            tasks.start_soon(self.self_check.run, name="mesh self-check of events")

    async def wait_until_usable(self, timeout: float) -> None:  # noqa: ASYNC109 - it is no error that it passes
        """Wait until events can be published, for ``timeout`` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._usable.wait()

    # --- messages ---------------------------------------------------------------------------------------------

    def publish(
        self,
        exchange: str,
        routing_key: str,
        correlation_id: str,
        body: bytes,
        *,
        trace_id: str | None = None,
        expires: float | None = None,
    ) -> None:
        """Publish an event, or a mark, stamp or marker, whose place among other messages its reader goes by.

        Raises MeshUnavailable, and MessageTooLarge.
        """
        publisher = self._publisher
        if publisher is None or self.blocked:
            raise MeshUnavailable(self.problem)
        self._size_limit.check(body)
        frames = encode_publish(
            channel=publisher.event_channel,
            exchange=exchange,
            routing_key=routing_key,
            kind="event",
            correlation_id=correlation_id,
            trace_id=trace_id,
            body=body,
            frame_max=publisher.frame_max,
            expiration=None if expires is None else expiration(expires),
        )
        publisher.put_event(float("inf") if expires is None else time.monotonic() + expires, frames)

    async def record(self, stream: str, record: bytes) -> None:
        """Write ``record`` into ``stream``, and wait for the broker's confirm. Raises MeshUnavailable without one.

        An alarm of the broker ends the waiting as well: the record may be written when it is over.
        """
        if self._record_channel is None or self.blocked:
            raise MeshUnavailable(self.problem)
        self._statistics.published += 1
        with anyio.CancelScope() as writing:
            self._writing.add(writing)
            try:
                await write_record(self._record_channel, stream, record, self._size_limit)
            finally:
                self._writing.discard(writing)
        if writing.cancelled_caught:
            raise MeshUnavailable(BLOCKED)

    async def finish(self) -> None:
        """Wait for the confirms of the latest events for as long as some come: a stream may have no leader."""
        publisher = self._publisher
        # A cancelled scope of anyio would cancel this again in every turn of the event loop.
        with anyio.CancelScope(shield=True):
            while publisher is not None and (before := publisher.unsettled_events):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CONFIRMS_TIMEOUT):
                        await publisher.finish_events()
                if publisher.unsettled_events >= before:
                    break

    # --- the connection ---------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _set_up(self, connection: Connection) -> AsyncIterator[Sequence[AbstractChannel]]:
        await declare_exchanges(connection)
        publisher, channels = await connection.open_publisher(
            self._statistics,
            confirm_events=can_confirm_events(connection.raw.server_properties),
            on_return=lambda _: None,  # the message to itself, to a queue that is replaced: it will be missed
            on_confirm=lambda *_: None,
        )
        for_records = [await connection.open_channel(confirms=True)] if self._writes_records else []
        channels = (*channels, *for_records)
        async with running(publisher.run, lambda: self._look_after_events(publisher)):
            self._publisher, self._record_channel = publisher, next(iter(for_records), None)
            self._usable.set()
            self.self_check.forget()
            try:
                async with anyio.create_task_group() as tasks:
                    for part in self.parts:
                        tasks.start_soon(part.attempt, connection, name="mesh part")
                kept = [functools.partial(part.keep, connection) for part in self.parts]
                async with running(lambda: self._keep_asserted(connection), *kept):
                    yield channels
            finally:
                self._publisher = self._record_channel = None
                self._usable.clear()
                self._size_limit.learn(channels)
                self._count_lost_events(publisher.unsettled_events)

    async def _look_after_events(self, publisher: Publisher) -> None:
        """Take note of alarms, and of a standstill of confirms, until cancelled."""
        blocked = False
        while True:
            if publisher.look_after_events(time.monotonic(), blocked=self.blocked) and not self.self_check.awaited:
                self.self_check.when_proven(publisher.confirm_events)
            if self.blocked != blocked:
                blocked = self.blocked
                for writing in self._writing if blocked else ():
                    writing.cancel()
                self._on_change()
            await asyncio.sleep(LOOK_INTERVAL)

    async def _keep_asserted(self, connection: Connection) -> None:
        """Declare streams and their bindings now and then, until cancelled."""
        while True:
            await asyncio.sleep(REASSERT_INTERVAL)
            for part in self.parts:
                await part.reassert(connection)
            self._on_change()

    def _count_lost_events(self, count: int) -> None:
        """Take note of events that the broker may have or not. They are not published again, lest they come twice."""
        if count:
            self._statistics.unconfirmed_events += count
            logger.warning("mesh: whether the broker has %d of the latest events is unknown", count)
