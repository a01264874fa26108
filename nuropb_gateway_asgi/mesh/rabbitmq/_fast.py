"""The lane in front of aiormq: it sees a connection's bytes first, and writes its own to the same transport.

aiormq owns the connection: its handshake, heartbeats, channels and end. Frames that the lane takes off a channel never
reach aiormq, and the lane writes whole frames, on channels that no other code publishes on. So neither disturbs the
other.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

import pamqp.frame
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from pamqp import commands

from ._aiormq import frame_max
from ._frames import HEARTBEAT_FRAME, Content, Splitter
from ._lane import EVENT, SMALL, Lane, LaneName, OnConfirm, OnMessage, OnReturn, Publisher, body_size, guarded
from ._statistics import RabbitMQStatistics

__all__ = ["FastLane"]

#: Seconds. aiormq gives up a connection on which it has seen no frame for long, and a broker that sends messages sends
#: no heartbeats. So the lane gives aiormq a heartbeat at this interval while it takes all other frames.
SIGN_OF_LIFE: Final = 1.0
#: Seconds between two messages that have nothing to do with each other: those of one turn of the event loop follow each
#: other faster.
LONE: Final = 0.0005


class FastLane(Lane):
    """Messages on the bytes of a connection, beside aiormq."""

    name: ClassVar[LaneName] = "fast"

    def __init__(self) -> None:
        self._splitter = Splitter(self._on_blocked)
        self._transport: asyncio.Transport | None = None
        self._heartbeat_at = 0.0
        self._publisher: _DirectPublisher | None = None
        self._paused = False
        #: Whether the broker has said that it blocks publishers.
        self.blocked = False

    def on_connect(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    # --- receiving ------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        rest = self._splitter.feed(data)
        if self._splitter.took and not rest:
            now = time.monotonic()
            if now - self._heartbeat_at > SIGN_OF_LIFE:
                self._heartbeat_at = now
                return HEARTBEAT_FRAME
        return rest

    def _take_deliveries(self, channel: AbstractChannel, on_message: OnMessage) -> Callable[[DeliveredMessage], Any]:
        self._splitter.add(channel.number, Content(on_message=functools.partial(guarded, on_message)))
        return super()._take_deliveries(channel, on_message)

    # --- sending --------------------------------------------------------------------------------------------------

    def publisher(
        self,
        connection: AbstractConnection,
        plain: AbstractChannel,
        confirmed: AbstractChannel,
        statistics: RabbitMQStatistics,
        *,
        confirm_events: bool,
        on_return: OnReturn,
        on_confirm: OnConfirm,
    ) -> Publisher:
        publisher = _DirectPublisher(
            self, plain.number, confirmed.number, frame_max(connection), statistics, confirm_events=confirm_events
        )

        def on_confirms(tag: int, multiple: bool, accepted: bool) -> None:
            for correlation_id in publisher.confirm(tag, multiple=multiple, accepted=accepted):
                guarded(on_confirm, correlation_id, accepted)

        def on_returned(correlation_id: str) -> None:
            guarded(on_return, correlation_id)

        self._splitter.add(plain.number, Content(on_return=on_returned))
        self._splitter.add(confirmed.number, Content(on_return=on_returned, on_confirm=on_confirms))
        self._publisher = publisher
        return publisher

    def acknowledge(self, channel: AbstractChannel, tag: int) -> bool:
        if self._transport is None or self._transport.is_closing():
            return True  # the broker delivers the messages again, on the next connection
        if self._paused:
            return False
        self._transport.write(pamqp.frame.marshal(commands.Basic.Ack(tag, multiple=True), channel.number))
        return True

    def write(self, frames: bytes) -> None:
        """Write frames; the lane has to be :attr:`ready`."""
        assert self._transport is not None  # noqa: S101 - it is ready
        self._transport.write(frames)

    def close(self) -> None:
        """Do nothing: this lane has no tasks."""

    @property
    def ready(self) -> bool:
        """Whether the broker reads published messages, and the transport takes bytes."""
        return not (self._paused or self.blocked or self._transport is None or self._transport.is_closing())

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def _on_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        if not blocked:
            self._flush()

    def _flush(self) -> None:
        if self._publisher is not None:
            self._publisher.flush()


class _DirectPublisher(Publisher):
    """Writes the messages of one turn of the event loop together, but a lone one at once.

    To wait for others would cost a lone message, and the process, an iteration of the event loop. A message is a lone
    one if none came shortly before it, and none shortly after the one before it.

    While the lane is not ready, messages wait here, where they can expire unsent.
    """

    def __init__(
        self,
        lane: FastLane,
        plain_channel: int,
        confirmed_channel: int,
        frame_max: int,
        statistics: RabbitMQStatistics,
        *,
        confirm_events: bool,
    ) -> None:
        super().__init__(plain_channel, confirmed_channel, frame_max, statistics, confirm_events=confirm_events)
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._woken_at = 0.0
        #: Events that expired in the present turn, whose places others take once it is written.
        self._expired_events = 0
        #: Whether no other message has come shortly after the latest one that came after a while.
        self._alone = False
        self._soon: Callable[[Callable[[], None]], object] = self._loop.call_soon

    def _wake(self) -> None:
        if self._scheduled:
            self._alone = False
            return
        now = time.monotonic()
        is_first = now - self._woken_at > LONE
        self._woken_at = now
        if is_first and self._alone:
            self.flush()
            return
        self._alone = is_first
        self._scheduled = True
        self._soon(self.flush)

    async def run(self) -> None:
        # flush() is scheduled without a task, and the link hears of the connection's end.
        await self._loop.create_future()

    @property
    def blocked(self) -> bool:
        return self._lane.blocked

    def flush(self) -> None:
        """Write the queued messages, if the lane is ready."""
        self._scheduled = False
        if self._items and self._lane.ready:
            frames = self._take(time.monotonic())
            if frames:
                self._lane.write(b"".join(frames))
            if self._expired_events:
                expired, self._expired_events = self._expired_events, 0
                self._settle_events(expired, accepted=True)

    def _take(self, now: float) -> list[bytes]:
        """Empty the queue; return the frames of the messages that have not expired."""
        frames = []
        remember = self._written.append
        while self._items:
            deadline, correlation_id, data, confirmed = self._items.popleft()
            if deadline <= now:
                self._statistics.expired_unsent += 1
                self._expired_events += confirmed and correlation_id == EVENT
                continue
            if confirmed:
                self._tag += 1
                self._unconfirmed[self._tag] = correlation_id
            remember((correlation_id, 0 if len(data) < SMALL else body_size(data), confirmed))
            frames.append(data)
        self._size = 0
        self._statistics.published += len(frames)
        return frames

    def confirm(self, tag: int, *, multiple: bool, accepted: bool) -> list[str]:
        """Take a confirm; return the calls that it is about, and forget them."""
        if not multiple:
            correlation_id = self._unconfirmed.pop(tag, None)
            if correlation_id != EVENT:
                return [] if correlation_id is None else [correlation_id]
            self._settle_events(1, accepted=accepted)
            return []
        tags = list(itertools.takewhile(tag.__ge__, self._unconfirmed))
        settled = [self._unconfirmed.pop(each) for each in tags]
        calls = [each for each in settled if each != EVENT]
        if len(calls) < len(settled):
            self._settle_events(len(settled) - len(calls), accepted=accepted)
        return calls
