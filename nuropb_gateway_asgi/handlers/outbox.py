"""A queue of frames for one client, bounded in bytes, with one reader."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Final

from ..authorization.rules import Delivery
from ..protocol import encode_dropped

__all__ = ["Outbox"]

#: The most dropped events that stay in the queue as empty places before the queue is compacted.
MAX_EMPTY: Final = 64
#: The most topics whose dropped events are counted separately. Further topics are counted together.
MAX_DROPPED_TOPICS: Final = 64


class _Event:
    """An event that may be dropped. ``text`` is None once it was sent or dropped."""

    __slots__ = ("size", "text", "topic")

    def __init__(self, text: str, size: int, topic: str) -> None:
        self.text: str | None = text
        self.size = size
        self.topic = topic


class Outbox:
    """Frames that wait for one client.

    :meth:`put` never waits: it refuses a frame that does not fit, and the caller closes the connection. Events that may
    be dropped make room for other frames, and the reader gets their number in a ``dropped`` event. Only one task may
    wait in :meth:`get`.
    """

    __slots__ = ("_closed", "_dropped", "_empty", "_items", "_latest", "_limit", "_lossy", "_size", "_told", "_waiter")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        # Most outboxes are empty most of the time, and an empty deque takes 0.7 KiB.
        self._items: deque[tuple[str, int] | _Event] | tuple[()] = ()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        # Created when needed: most connections have no events that may be dropped.
        self._lossy: deque[_Event] | None = None
        self._latest: dict[str, _Event] | None = None
        self._dropped: Counter[str | None] | None = None
        self._empty = 0
        #: Whether the frame handed out last was a ``dropped`` event.
        self._told = False

    @property
    def size(self) -> int:
        """Bytes of UTF-8 in the outbox."""
        return self._size

    def put(self, text: str) -> bool:
        """Take ``text``, or return False if it does not fit. After :meth:`close`, drop it and return True.

        An empty outbox takes a frame of any size: the sender of the frame limits its size.
        """
        if self._closed:
            return True
        size = len(text) if text.isascii() else len(text.encode())
        if self._size + size > self._limit and not self._make_room(size):
            return False
        self._append((text, size))
        self._size += size
        self._wake()
        return True

    def put_event(self, text: str, topic: str, delivery: Delivery) -> int:
        """Take an event that may be dropped. Returns the number of events lost, which may include this one.

        ``drop_oldest`` drops the oldest waiting events first. With ``latest``, the event replaces a waiting event of
        the same topic, and the reader is not told of that.
        """
        if self._closed:
            return 0
        size = len(text) if text.isascii() else len(text.encode())
        if delivery == "latest" and self._replace(text, size, topic):
            return 1
        lost = 0
        if self._size + size > self._limit:
            lost = self._drop(size)
            if not self._has_room(size):
                self._count(topic)  # the remaining frames may not be dropped
                return lost + 1
        event = _Event(text, size, topic)
        if delivery == "latest":
            if self._latest is None:
                self._latest = {}
            self._latest[topic] = event
        if self._lossy is None:
            self._lossy = deque()
        self._lossy.append(event)
        self._append(event)
        self._size += size
        self._wake()
        return lost

    def get_nowait(self) -> str | None:
        """Return the next frame, or None if the outbox is empty.

        A ``dropped`` event comes before the remaining frames. If events of several topics were dropped, frames come in
        between; otherwise a client that is always too slow would get nothing but ``dropped`` events.
        """
        if self._dropped and not self._closed and not (self._told and len(self._items) > self._empty):
            self._told = True
            topic = next(iter(self._dropped))
            return encode_dropped(topic, self._dropped.pop(topic))
        self._told = False
        while self._items:
            item = self._items.popleft()
            if isinstance(item, tuple):
                text, size = item
                self._size -= size
                return text
            if item.text is None:
                self._empty -= 1
                continue
            return self._take(item)
        self._items = ()
        return None

    async def get(self) -> str | None:
        """Wait for the next frame. Returns None once the outbox is closed and empty. Cancelling loses no frame."""
        while (text := self.get_nowait()) is None and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return text

    def close(self, *, discard: bool = False) -> None:
        """Take no more frames. The waiting frames are still handed out, unless ``discard`` is set."""
        self._closed = True
        if discard:
            self._items = ()
            self._lossy = self._latest = self._dropped = None
            self._size = self._empty = 0
        self._wake()

    def _append(self, item: tuple[str, int] | _Event) -> None:
        if isinstance(self._items, tuple):
            self._items = deque()
        self._items.append(item)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- events that may be dropped ---------------------------------------------------------------------------

    def _take(self, event: _Event) -> str:
        """Remove an event that is sent or dropped, and return its text."""
        text = event.text or ""
        event.text = None
        self._size -= event.size
        if self._latest is not None and self._latest.get(event.topic) is event:
            del self._latest[event.topic]
        # Both queues have the same order, so all events before this one are gone already.
        while self._lossy and self._lossy[0].text is None:
            self._lossy.popleft()
        return text

    def _replace(self, text: str, size: int, topic: str) -> bool:
        event = None if self._latest is None else self._latest.get(topic)
        if event is None or self._size - event.size + size > self._limit:
            return False
        self._size += size - event.size
        event.text, event.size = text, size
        return True

    def _has_room(self, size: int) -> bool:
        return self._size + size <= self._limit or len(self._items) == self._empty

    def _make_room(self, size: int) -> bool:
        self._drop(size)
        return self._has_room(size)

    def _drop(self, size: int) -> int:
        """Drop the oldest events until ``size`` bytes fit or none is left to drop. Returns their number."""
        count = 0
        while self._lossy and self._size + size > self._limit:
            event = self._lossy.popleft()  # still waiting: _take() removes events that are gone
            self._count(event.topic)
            self._take(event)
            self._empty += 1
            count += 1
        if self._empty > MAX_EMPTY and 2 * self._empty > len(self._items):
            self._items = deque(item for item in self._items if isinstance(item, tuple) or item.text is not None)
            self._empty = 0
        return count

    def _count(self, topic: str) -> None:
        if self._dropped is None:
            self._dropped = Counter()
        known = topic in self._dropped or len(self._dropped) < MAX_DROPPED_TOPICS
        self._dropped[topic if known else None] += 1
