"""Turns of the event loop: how much of a client's frames is handled at a time, and what others get in between."""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["FRAMES_PER_TURN", "TURNS_OF_OTHERS", "LargeFrames"]

#: Frames of one connection that are handled in a row before other connections get their turn. A large frame counts as
#: several, as for the rate limits.
FRAMES_PER_TURN: Final = 16
#: Iterations of the event loop that a connection leaves to others after so many frames. From frame to answer, a call
#: takes two; it waits for one turn of a busy client then, and not for a turn in each of them. More iterations would
#: cost a busy client more: each takes about 10 µs.
TURNS_OF_OTHERS: Final = 2


class LargeFrames:
    """Frames of more than one unit, for which all connections of a process have one turn together.

    Many connections that each send one large frame at the same moment would have a turn each, in the same iteration of
    the event loop, and a call of another client would wait for all of them.
    """

    __slots__ = ("_left", "_loop")

    def __init__(self) -> None:
        self._left = FRAMES_PER_TURN
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self, units: int) -> bool:
        """Return whether a frame of so many units may be handled now.

        If not, the connection asks again in the next iteration of the event loop, which keeps the order of those who
        ask.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the turn of another loop, which has ended, will never end
            self._loop, self._left = loop, FRAMES_PER_TURN
        if self._left <= 0:
            return False
        if self._left == FRAMES_PER_TURN:
            loop.call_soon(self._rest, TURNS_OF_OTHERS)
        self._left -= units
        return True

    async def wait(self, units: int) -> None:
        """Wait until a frame of so many units may be handled; a small one never waits. May be cancelled at any time."""
        while units > 1 and not self.take(units):  # noqa: ASYNC110 - iterations of the loop are what it waits for
            await asyncio.sleep(0)

    def _rest(self, iterations: int) -> None:
        if iterations:
            asyncio.get_running_loop().call_soon(self._rest, iterations - 1)
        else:
            self._left = FRAMES_PER_TURN
