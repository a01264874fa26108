"""The outbox of a resumable session: frames that wait for the client, and frames sent but not acknowledged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ..protocol import is_counted
from .outbox import Outbox

__all__ = ["SessionOutbox"]

#: Bytes that a kept frame takes beside its text: the tuple, the string's head and two places in queues.
FRAME_OVERHEAD: Final = 160
#: Seconds after which frames are forgotten at the earliest, and half of the time after which they are at the latest.
FORGET_AFTER: Final = 15.0


class SessionOutbox(Outbox):
    """An outbox that keeps the counted frames that it has handed out, until they are acknowledged.

    It outlives its connections: :meth:`begin` begins the reading by one of them, :meth:`close` ends it. ``keep`` bounds
    the bytes of kept frames and, while no connection reads, of waiting frames, too. Beyond it the session has
    overflowed and cannot be resumed; with ``forgets``, the oldest frames are forgotten instead.
    """

    __slots__ = (
        "_again",
        "_aged_at",
        "_forgets",
        "_held",
        "_keep",
        "_kept",
        "_kept_size",
        "_old",
        "_reading",
        "acknowledged",
        "overflowed",
        "sent",
    )

    def __init__(self, limit: int, keep: int, *, forgets: bool = False) -> None:
        super().__init__(limit)
        self._keep = keep
        self._forgets = forgets
        self._kept: deque[tuple[str, int]] = deque()
        self._kept_size = 0
        #: Frames to hand out first and without being counted: replayed ones, and those of one connection only.
        self._again: deque[str] = deque()
        #: Whether frames wait although a connection reads: it is closing, and its client may read nothing more.
        self._held = False
        #: The numbers of the last frame that the client has acknowledged, and of the last one handed out.
        self.acknowledged = self.sent = 0
        self.overflowed = False
        #: The number of the connection that reads.
        self._reading = 0
        #: The number of the last frame that was sent before the last look at their age, and the time of that.
        self._old, self._aged_at = 0, 0.0

    @property
    def size(self) -> int:
        """Bytes of UTF-8 that wait for the client."""
        return self._size + sum(map(len, self._again))

    @property
    def memory(self) -> int:
        """Bytes that the session's frames take."""
        frames = len(self._kept) + len(self._items)
        return self._kept_size + self._size + frames * FRAME_OVERHEAD

    # --- reading ----------------------------------------------------------------------------------------------

    async def get(self) -> str | None:
        """Wait for the next frame. Returns None at the end of the reading, also when another connection reads."""
        reading = self._reading
        while reading == self._reading:
            text = self.get_nowait()
            if text is not None or self._closed:
                return text
            self._wake()  # the reader of a former connection
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                if self._waiter is waiter:
                    self._waiter = None
        return None

    def get_nowait(self) -> str | None:
        """Return the next frame, or None if none waits or none may be read; keep it if it is counted."""
        if self._held:
            return None
        if self._again:
            return self._again.popleft()
        text = super().get_nowait()
        if text is not None and is_counted(text):
            self._record(text)
        return text

    def pass_on(self, text: str) -> bool:
        """Return whether a frame may go to the client at once, as nothing waits; keep it then if it is counted."""
        if self._held or self._again or self._items or self._dropped or self._closed:
            return False
        self._told = False
        if is_counted(text):
            self._record(text)
        return True

    def _record(self, text: str) -> None:
        self.sent += 1
        if self.overflowed:
            return
        size = len(text) if text.isascii() else len(text.encode())
        self._kept.append((text, size))
        self._kept_size += size
        while self._kept_size > self._keep and self._kept:
            if not self._forgets:
                self.overflow()
                return
            self._forget_first()

    def _forget_first(self) -> None:
        _, size = self._kept.popleft()
        self._kept_size -= size
        self.acknowledged += 1

    def overflow(self) -> None:
        """Give up what was kept: the session cannot be resumed any more."""
        self.overflowed = True
        self._kept.clear()
        self._kept_size = 0

    def close(self, *, discard: bool = False) -> None:
        """End the reading. Waiting frames are still handed out, unless ``discard`` is set: then they stay for later."""
        self._closed = True
        self._held = self._held or discard
        self._wake()

    # --- between two connections ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin the reading by another connection, which gets no frames before :meth:`go_on`.

        Frames that wait and concerned the last connection only are dropped.
        """
        self._closed, self._held = False, True
        self._reading += 1
        self._again.clear()
        for item in tuple(self._items):
            if isinstance(item, tuple) and not is_counted(item[0]):
                self._items.remove(item)  # type: ignore[union-attr]
                self._size -= item[1]

    def go_on(self, answer: str | None) -> None:
        """Hand out ``answer``, if there is one, all kept frames once more, and then those that come."""
        self._held = False
        if answer is not None:
            self._again.append(answer)
        self._again.extend(text for text, _ in self._kept)
        self._wake()

    def put(self, text: str) -> bool:
        """Take ``text``, or return False if it does not fit. A closed session outbox takes frames as an open one."""
        closed, self._closed = self._closed, False
        try:
            return super().put(text)
        finally:
            self._closed = closed

    def put_first(self, text: str) -> None:
        """Take a frame that is handed out before all waiting ones, and is not counted."""
        self._again.append(text)
        self._wake()

    def has_room_for(self, text: str) -> bool:
        """Tell whether a frame fits while no connection reads."""
        size = len(text) if text.isascii() else len(text.encode())
        return self._kept_size + self._size + size <= self._keep

    def store(self, text: str) -> bool:
        """Take a counted frame while no connection reads, or return False if it does not fit."""
        if self._forgets:
            self.settle()
        elif not self.has_room_for(text):
            return False
        return self.put(text)

    def age(self, now: float) -> None:
        """Forget frames that were sent some time ago, of a client that cannot acknowledge any.

        The network and proxies hold frames for seconds; 10,000 full buffers would take gigabytes.
        """
        if self._forgets and now - self._aged_at >= FORGET_AFTER:
            while self.acknowledged < self._old:
                self._forget_first()
            self._old, self._aged_at = self.sent, now

    def holds(self, text: str) -> bool:
        """Tell whether this very frame waits or is kept."""
        return any(kept is text for kept, _ in self._kept) or any(
            (item[0] if isinstance(item, tuple) else item.text) is text for item in self._items
        )

    def acknowledge(self, received: int) -> bool:
        """Drop the kept frames up to number ``received``. Returns False for a number that cannot be."""
        if not self.acknowledged <= received <= self.sent:
            return False
        if self.overflowed:
            self.acknowledged = received
        while self.acknowledged < received:
            self._forget_first()
        return True

    # --- on the way to another process ------------------------------------------------------------------------

    @property
    def kept(self) -> list[str]:
        """The kept frames."""
        return [text for text, _ in self._kept]

    def settle(self) -> None:
        """Keep the frames that wait as if they had been sent: they are the client's to ask for once more.

        A client takes a call for lost that is neither in flight nor answered by a replayed frame.
        """
        while (text := super().get_nowait()) is not None:
            if is_counted(text):
                self._record(text)
            else:
                self._again.append(text)

    def drop(self, unwanted: Callable[[str], bool]) -> None:
        """Drop kept and waiting frames, as if they had never been sent: the client counts on from the acknowledged."""
        kept = [item for item in self._kept if not unwanted(item[0])]
        self.sent -= len(self._kept) - len(kept)
        self._old = min(self._old, self.sent)
        self._kept, self._kept_size = deque(kept), sum(size for _, size in kept)
        for item in tuple(self._items):
            if isinstance(item, tuple) and unwanted(item[0]):
                self._items.remove(item)  # type: ignore[union-attr]
                self._size -= item[1]

    def take_waiting(self) -> list[str]:
        """Remove the waiting frames that are counted, and return them."""
        waiting = []
        while (text := super().get_nowait()) is not None:
            if is_counted(text):
                waiting.append(text)
            else:
                self._again.append(text)
        return waiting

    def take_over(self, acknowledged: int, kept: list[str]) -> None:
        """Continue where the outbox of another process ended: ``kept`` follow number ``acknowledged``."""
        self.acknowledged = self.sent = acknowledged
        self.overflowed = False
        self._kept.clear()
        self._kept_size = 0
        for text in kept:
            self._record(text)
