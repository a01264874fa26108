"""History of topics in memory, for the embedded mesh."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ..identifiers import new_id
from ..topics import matches
from ..wire.history import After, Follower, KeptTopic, Last, Read, Start
from ..wire.interface import EventMessage

__all__ = ["EmbeddedHistory", "KeptEvents"]


class _Kept(NamedTuple):
    offset: int
    time: float
    event: EventMessage
    size: int


class KeptEvents:
    """The kept events of one pattern, shared by the transports of a process."""

    def __init__(self, topic: KeptTopic) -> None:
        self._topic = topic
        self.epoch = new_id()
        self._events: deque[_Kept] = deque()
        self._size = 0
        #: The offset of the latest event; 0 before the first one, a position like any other.
        self.offset = 0
        #: The latest event that is not kept any longer: its offset (0 for none), and the time when it came.
        self._lost, self._lost_at = 0, float("-inf")
        self.followers: list[Follower] = []

    def take(self, event: EventMessage) -> None:
        """Keep an event if it matches the pattern, and bring it to the followers."""
        if event.target is not None or not matches(self._topic.pattern, event.topic):
            return
        self.offset += 1
        size = len(memoryview(event.event)) + len(event.topic)
        now = time.monotonic()
        self._events.append(_Kept(self.offset, now, event, size))
        self._size += size
        self._trim(now)
        for follower in self.followers:
            asyncio.get_running_loop().call_soon(follower.on_kept, self.offset, event)

    def _trim(self, now: float) -> None:
        """Drop the oldest events, as far as there are too many bytes or they are too old; the latest one stays."""
        seconds = self._topic.seconds
        while len(self._events) > 1:
            first = self._events[0]
            if self._size <= self._topic.size and (seconds is None or now - first.time <= seconds):
                return
            self._events.popleft()
            self._size -= first.size
            self._lost, self._lost_at = first.offset, first.time

    def read(self, start: Start, end: int, wanted: Callable[[EventMessage], bool], limit: int, size: int) -> Read:
        """Read the wanted events from ``start`` to the offset ``end``; see ``HistoryLog.read``."""
        now = time.monotonic()
        self._trim(now)
        kept = [each for each in self._events if each.offset <= end]
        if isinstance(start, After):
            complete = start.offset >= self._lost
            kept = [each for each in kept if each.offset > start.offset]
        elif isinstance(start, Last):
            complete = True
        else:
            complete = self._lost_at < now - start.seconds
            kept = [each for each in kept if each.time >= now - start.seconds]
        last = kept[-1].offset if kept else None
        kept = [each for each in kept if wanted(each.event)]
        if isinstance(start, Last):
            complete = len(kept) >= start.number or not self._lost
            kept = kept[-start.number :]
        complete = complete and len(kept) <= limit and sum(each.size for each in kept) <= size
        return Read([(each.offset, each.event) for each in kept] if complete else [], complete, last)


class EmbeddedHistory:
    """The history of one pattern for one transport. See :class:`~nuropb_gateway_asgi.wire.history.HistoryLog`."""

    available = True

    def __init__(self, kept: KeptEvents) -> None:
        self._kept = kept
        self._follower: Follower | None = None

    @property
    def epoch(self) -> str | None:
        """The id of this history, drawn when the process started."""
        return self._kept.epoch

    def follow(self, follower: Follower) -> None:
        """Bring live events to ``follower`` from now on."""
        self.leave()
        self._follower = follower
        self._kept.followers.append(follower)
        asyncio.get_running_loop().call_soon(follower.on_started, self._kept.offset)

    def leave(self) -> None:
        """Bring no more events."""
        follower, self._follower = self._follower, None
        if follower is not None:
            self._kept.followers.remove(follower)

    def mark(self, done: Callable[[int], None]) -> None:
        """Call ``done`` after the events that are on their way."""
        asyncio.get_running_loop().call_soon(done, self._kept.offset)

    async def read(self, start: Start, end: int, wanted: Callable[[EventMessage], bool], limit: int, size: int) -> Read:
        """Read the wanted events from ``start`` to the offset ``end``."""
        return self._kept.read(start, end, wanted, limit, size)
