"""What one connection still has to be told: a queue bounded in bytes, with one reader."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Final

from ..authorization.rules import Delivery
from ..protocol import encode_dropped

__all__ = ["Outbox"]

#: So many events that were dropped stay in the queue, as empty places, before it is looked through for them.
MAX_EMPTY: Final = 64
#: Topics for each of which the reader is told how many events were dropped; those of more are counted together.
MAX_DROPPED_TOPICS: Final = 64


class _Event:
    """An event that may be lost; without a text it was."""

    __slots__ = ("size", "text", "topic")

    def __init__(self, text: str, size: int, topic: str) -> None:
        self.text: str | None = text
        self.size = size
        self.topic = topic


class Outbox:
    """Messages on their way to one client.

    Putting never waits: a message that does not fit is not taken, and the caller hangs up. Events that may be lost make
    room for others, and the reader is told how many did. Only one task may wait in :meth:`get`.
    """

    __slots__ = ("_closed", "_dropped", "_empty", "_items", "_latest", "_limit", "_lossy", "_size", "_told", "_waiter")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        # Most have nothing in it most of the time, and an empty deque takes 0.7 KiB.
        self._items: deque[tuple[str, int] | _Event] | tuple[()] = ()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        # Made when they are needed, as most connections have no events that may be lost.
        self._lossy: deque[_Event] | None = None
        self._latest: dict[str, _Event] | None = None
        self._dropped: Counter[str | None] | None = None
        self._empty = 0
        #: What was handed out last is what was dropped.
        self._told = False

    @property
    def size(self) -> int:
        """Bytes of UTF-8 that wait."""
        return self._size

    def put(self, text: str) -> bool:
        """Take ``text``, or answer False if it does not fit. After :meth:`close` it is dropped, and that is True.

        An empty outbox takes a message of any size: what is sent is limited by whoever makes it.
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
        """Take an event that may be lost; return how many were, this one included.

        With ``drop_oldest`` the oldest ones that wait go first; with ``latest`` it takes the place of one of the same
        topic that waits, of which the reader is not told.
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
                self._count(topic)  # all that is left has to be kept
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
        """The next message, or None if there is none.

        Before what is left, the reader is told what was dropped; of several topics, between the messages. A client that
        is so slow that each time something was dropped meanwhile would get nothing but that otherwise.
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
        """The next message, or None once the outbox was closed and is empty. Cancelling it loses nothing."""
        while (text := self.get_nowait()) is None and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return text

    def close(self, *, discard: bool = False) -> None:
        """Take nothing more; what waits is still handed out, unless it is to be discarded."""
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

    # --- events that may be lost ------------------------------------------------------------------------------

    def _take(self, event: _Event) -> str:
        """The text of an event that is the reader's now."""
        text = event.text or ""
        event.text = None
        self._size -= event.size
        if self._latest is not None and self._latest.get(event.topic) is event:
            del self._latest[event.topic]
        # Those in front of it have been taken or dropped before, for both queues have the same order.
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
        """Drop the oldest events that may be lost, until there is room or none is left; how many."""
        count = 0
        while self._lossy and self._size + size > self._limit:
            event = self._lossy.popleft()  # it still waits, as the first of them always does
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
