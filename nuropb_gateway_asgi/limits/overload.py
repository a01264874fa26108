"""Overload of a process: calls that arrive faster than its event loop can handle them.

An event loop handles in one turn all that has arrived. In an overload each turn is longer than the one before, until
all clients wait for seconds and pings are late. A call that is refused unread costs a tenth of one that is forwarded
or less, so a turn that refuses what it cannot handle in time ends in time.
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
#: meanwhile. So the turns of an overload are short, and the overload lasts until there are fewer calls. Shorter turns
#: would bring fewer frames with each read, and so make refusals dearer.
BEGIN, END, SHARE = 0.5, 0.1, 0.3
#: The part of the time between two late timers for which a thread has worked in a sudden overload.
BUSY: Final = 0.7
#: Seconds between two warnings.
WARN_INTERVAL: Final = 60.0


class Overload:
    """Tells which calls come too late in a turn of the event loop, while its turns are too long.

    ``delay`` is how long turns may take, in seconds; 0 is no limit. A timer is due at any moment of a turn, so turns
    are too long once timers have been later than half of ``delay`` for a while; or two in a row later than ``delay`` in
    a thread that worked all the time, for each turn of a sudden overload takes twice as long as the one before. From
    then on a turn may work for three tenths of ``delay`` before further calls are refused, until timers are hardly late
    any longer. ``cpu`` tells the CPU time of the loop's thread, in seconds: a process that the machine gives no time
    refuses no more calls for it.
    """

    __slots__ = (
        "_asked",
        "_began",
        "_cpu",
        "_delay",
        "_due",
        "_last",
        "_loop",
        "_mean",
        "_timer",
        "_told",
        "_warn_at",
        "_worked",
        "active",
        "late",
        "refused",
    )

    def __init__(self, delay: float, cpu: Callable[[], float] = time.thread_time) -> None:
        #: Whether turns are too long, and calls are to be asked for.
        self.active = False
        #: Whether all further calls of this turn are refused, and need not be asked for. Where calls come in numbers,
        #: this attribute is looked at, and no function called.
        self.late = False
        #: The calls that were refused so far; those that were not asked for are added where they are refused.
        self.refused = 0
        self._delay = delay
        self._cpu = cpu
        #: The CPU time at the beginning of this turn, or at its first call if the turn before had none.
        self._began: float | None = None
        #: Whether this turn has had a call.
        self._asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._mean = self._last = 0.0
        #: The CPU time at the last look.
        self._worked = 0.0
        #: The refused calls at the last look. Timers that the machine alone makes late are no reason to warn.
        self._told = 0
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
        self._mean = self._last = 0.0
        self.active = self.late = False

    def refuses(self) -> bool:
        """Return whether a call is refused. To be asked for each call while the overload is active, and only then."""
        if self.late:
            self.refused += 1
            return True
        if not self._asked:
            self._asked = True
            if self._began is None:
                assert self._loop is not None  # noqa: S101 - nothing is active without it
                self._began = self._cpu()
                self._loop.call_soon(self._end_turn)  # the loop runs it before anything that arrives later
            return False
        self.late = self._began is not None and self._cpu() - self._began > self._delay * SHARE
        self.refused += self.late
        return self.late

    def _end_turn(self) -> None:
        """Begin another turn, with the work that the calls of this one have left to it, such as their answers."""
        asked, self._asked, self.late = self._asked, False, False
        if asked and self._loop is not None:
            self._began = self._cpu()
            self._loop.call_soon(self._end_turn)
        else:
            self._began = None

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + INTERVAL
        self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        loop = self._loop
        if loop is None:
            return
        now = loop.time()
        late, former, cpu = now - self._due, self._last, self._cpu()
        worked, self._last, self._worked = cpu - self._worked, late, cpu
        self._mean += WEIGHT * (late - self._mean)
        is_sudden = min(late, former) > self._delay and worked > BUSY * (INTERVAL + late)
        begins = not self.active and (is_sudden or self._mean > self._delay * BEGIN)
        self.active = begins or (self.active and self._mean > self._delay * END)
        if self.refused > self._told and now >= self._warn_at:
            self._warn_at = now + WARN_INTERVAL
            logger.warning(
                "The process has more to do than it can, and has refused a part of the calls (%d so far). Start more "
                "processes, or look for a function that blocks the event loop",
                self.refused,
            )
        self._told = self.refused
        self._schedule(loop)
