"""Overload of a process: calls that arrive faster than its event loop can handle them.

An event loop handles in one turn all that has arrived. In an overload each turn is longer than the one before, until
all clients wait for seconds and pings are late. A call that is refused in its first microseconds costs about a tenth of
one that is forwarded, so a turn that refuses what it cannot handle in time ends in time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from typing import Final

__all__ = ["Overload"]

logger = logging.getLogger(__name__)

#: Seconds from the first frame of a turn until the loop's timers tell that the turn is over, at least.
TURN: Final = 0.005
#: Seconds for which turns have to be too long before calls are refused: one slow function is no overload.
SUSTAINED: Final = 0.5
#: Seconds between two warnings.
WARN_INTERVAL: Final = 60.0
#: Milliseconds over which refused clients spread their next try.
RETRY_AFTER: Final = (500, 1500)


class Overload:
    """Tells which frames come too late in turns of the event loop that have been too long for a while.

    ``delay`` is how long a turn may take, in seconds; 0 is no limit. Times are of :func:`time.monotonic`.
    """

    __slots__ = ("_delay", "_long", "_loop", "_refused", "_since", "_warn_at", "late_at")

    def __init__(self, delay: float) -> None:
        #: When frames begin to be late: in this turn of the loop, or -inf while no turn has begun. Callers compare it
        #: with their clock, so that a frame costs no function call.
        self.late_at = math.inf
        self._delay = delay
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Whether a frame of this turn was late, and the time since when every turn had one.
        self._long = False
        self._since: float | None = None
        self._refused = 0
        self._warn_at = -math.inf

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look at the turns of ``loop``."""
        if self._delay:
            self._loop = loop
            self.late_at = -math.inf

    def stop(self) -> None:
        """Count no frame as late any longer."""
        self._loop = None
        self.late_at = math.inf

    def refuses(self, now: float) -> bool:
        """Return whether a call is to be refused. To be asked when ``now`` is beyond :attr:`late_at` only."""
        if self._loop is None:
            return False
        if self.late_at == -math.inf:
            self.late_at = now + self._delay
            self._loop.call_later(TURN, self._end_turn)
            return False
        self._long = True
        if self._since is None:
            self._since = now
        if now - self._since < SUSTAINED:
            return False
        self._refused += 1
        if now >= self._warn_at:
            self._warn_at = now + WARN_INTERVAL
            logger.warning(
                "The process has more to do than it can: it refuses a part of the calls, %d so far. Start more "
                "processes, or look for a function that blocks the event loop",
                self._refused,
            )
        return True

    def retry_after(self) -> int:
        """Draw the milliseconds after which a refused client tries again."""
        return random.randint(*RETRY_AFTER)  # noqa: S311 - jitter

    def _end_turn(self) -> None:
        if not self._long:
            self._since = None
        self._long = False
        if self._loop is not None:
            self.late_at = -math.inf
