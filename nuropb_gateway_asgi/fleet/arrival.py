"""The arrival of a process in its fleet: the process listens for a moment before it greets all others.

If every process greeted all others at once, a start of all would cost the square of their number. So a process that is
new waits for a short random time. If it hears the leader meanwhile, it tells the leader alone, which tells all others
of many newcomers by one message. If it hears the greetings of some other newcomers, it answers these, one of which is
about to lead, and waits for longer. The first user ends the wait: nobody can miss the users of a process without any.

Most of the random times are near the longest one, so that a few of any number of newcomers are the first.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Final

__all__ = ["FEW", "LISTEN", "POSTPONED", "Arrival", "Bulletin", "listening_time"]

#: Seconds for which a process listens at most. A message of the first newcomer arrives in a twentieth of that.
LISTEN: Final = 0.4
#: Seconds that another newcomer has, beyond that, to become the leader: those for answers, and some for the messages.
POSTPONED: Final = 1.5
#: Greetings after which a process waits for longer. Up to there, few processes start at once.
FEW: Final = 8
#: The number of newcomers for which the random times are made.
CROWD: Final = 1000
#: Seconds between two messages of the leader about newcomers, and those more for each process that gets them.
GAP: Final = 0.25
GAP_PER_MEMBER: Final = 0.001
#: Seconds from one newcomer to the next in which these count as a crowd.
CROWDED: Final = 5.0


def listening_time(chance: float) -> float:
    """Return the seconds to listen for ``chance`` (0 to 1): the density grows CROWD-fold from 0 to LISTEN."""
    return LISTEN * math.log1p(chance * (CROWD - 1)) / math.log(CROWD)


class Arrival:
    """The wait of a new process. ``greet`` tells all processes of this one, ``claim`` that it leads them."""

    __slots__ = ("_claim", "_greet", "_heard", "_timer", "is_known", "is_wanted", "listens")

    def __init__(self, greet: Callable[[], None], claim: Callable[[], None]) -> None:
        self._greet = greet
        self._claim = claim
        #: Until the greeting, or after it until the claim.
        self._timer: asyncio.TimerHandle | None = None
        #: Whether this process waits before it greets.
        self.listens = False
        #: Greetings heard while it waits.
        self._heard = 0
        #: Whether all processes were told of this one.
        self.is_known = False
        #: Whether this process has had users, whom the others have to find.
        self.is_wanted = False

    def begin(self) -> None:
        """Listen for a moment, and greet then; at once, if this process has users."""
        if self.is_wanted:
            self._greet()
        else:
            self._heard = 0
            self._listen(0.0)

    def hear_greeting(self) -> bool:
        """Note the greeting of another process; listen for longer and return True, if one of many is about to lead."""
        self._heard += 1
        if self._heard < FEW:
            return False
        self._listen(POSTPONED)
        return True

    def wait_for_answers(self, seconds: float) -> None:
        """Become the leader, if nobody stops this process within ``seconds`` after its greeting."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._claim)

    def stop(self) -> None:
        """Greet nobody, and claim nothing: another process leads, or there is no mesh."""
        self.listens = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _listen(self, seconds: float) -> None:
        self.stop()
        self.listens = True
        seconds += listening_time(random.random())  # noqa: S311 - no secret
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        self.stop()
        self._greet()


class Bulletin:
    """The leader's messages about newcomers: at once for one, and for many some in a second. ``tell`` sends one."""

    __slots__ = ("_arrived_at", "_tell", "_timer", "_told_at")

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._told_at = self._arrived_at = float("-inf")

    def note(self, members: int, *, at_once: bool) -> None:
        """Note a newcomer to a fleet of ``members``. Without ``at_once``, all know it but those who just listen."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        is_crowd = now - self._arrived_at < CROWDED
        self._arrived_at = now
        if self._timer is None and (at_once or is_crowd):
            due = self._told_at + GAP + members * GAP_PER_MEMBER
            self._timer = loop.call_later(max(0.0, due - now), self._end)

    def stop(self) -> None:
        """Tell nothing: this process has told all, or ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self._told_at = asyncio.get_running_loop().time()
        self._tell()
