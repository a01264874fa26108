"""Overload of a process: calls that arrive faster than its event loop can handle them.

An event loop handles in one turn all that has arrived. In an overload each turn is longer than the one before, until
all clients wait for seconds and pings are late. A call that is refused unread costs a fraction of one that is
forwarded, so a turn that refuses what it cannot handle in time ends in time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Overload"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at the loop, which runs a timer when the turn is over in which it was due.
INTERVAL: Final = 0.05
#: The part of a new delay in the mean of the delays: it lasts about ten looks, half a second.
WEIGHT: Final = 0.1
#: Parts of the allowed delay: the mean at which an overload begins, the one at which it ends, and the work of a turn
#: meanwhile. So the turns of an overload are short, and the overload lasts until there are fewer calls.
BEGIN, END, SHARE = 0.5, 0.1, 0.2
#: Seconds between two warnings.
WARN_INTERVAL: Final = 60.0


class Overload:
    """Tells which calls come too late in a turn of the event loop, while its turns are too long.

    ``delay`` is how long turns may take, in seconds; 0 is no limit. A timer is due at any moment of a turn, so turns
    are too long once timers have been later than half of ``delay`` for a while. From then on a turn may work for a
    fifth of ``delay`` before further calls are refused, until timers are hardly late any longer. ``cpu`` tells the CPU
    time of the loop's thread, in seconds: a process that the machine gives no time refuses no more calls for it.
    """

    __slots__ = ("_began", "_cpu", "_delay", "_due", "_loop", "_mean", "_timer", "_warn_at", "active", "refused")

    def __init__(self, delay: float, cpu: Callable[[], float] = time.thread_time) -> None:
        #: Whether turns are too long, and calls are to be asked for.
        self.active = False
        #: The calls that were refused so far.
        self.refused = 0
        self._delay = delay
        self._cpu = cpu
        #: The CPU time at the first call of this turn.
        self._began: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._mean = 0.0
        self._warn_at = -math.inf

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look at the turns of ``loop``, unless they are looked at already."""
        if self._delay and self._loop is None:
            self._loop = loop
            self._schedule(loop)

    def stop(self) -> None:
        """Refuse no calls any longer."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None
        self._mean, self.active = 0.0, False

    def refuses(self) -> bool:
        """Return whether a call is refused. To be asked for each call while the overload is active, and only then."""
        if self._began is None:
            assert self._loop is not None  # noqa: S101 - nothing is active without it
            self._began = self._cpu()
            self._loop.call_soon(self._end_turn)  # the loop runs it before anything that arrives later
            return False
        if self._cpu() - self._began <= self._delay * SHARE:
            return False
        self.refused += 1
        return True

    def _end_turn(self) -> None:
        self._began = None

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + INTERVAL
        self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        loop = self._loop
        if loop is None:
            return
        now = loop.time()
        self._mean += WEIGHT * (now - self._due - self._mean)
        begins = not self.active and self._mean > self._delay * BEGIN
        self.active = begins or (self.active and self._mean > self._delay * END)
        if begins and now >= self._warn_at:
            self._warn_at = now + WARN_INTERVAL
            logger.warning(
                "The process has more to do than it can, and refuses a part of the calls (%d before). Start more "
                "processes, or look for a function that blocks the event loop",
                self.refused,
            )
        self._schedule(loop)
