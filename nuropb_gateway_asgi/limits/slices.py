"""Slices of long work: the event loop serves other clients between two of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

__all__ = ["METHODS_PER_SLICE", "TOPICS_PER_SLICE", "Slices"]

#: Topics that are checked in one slice: less than a millisecond, however many patterns the policy has.
TOPICS_PER_SLICE: Final = 8
#: Methods that are described in one slice.
METHODS_PER_SLICE: Final = 16

Message: TypeAlias = str | bytes


class _Work(NamedTuple):
    steps: Iterator[None]
    #: The session whose messages wait for the work; None if none wait.
    session_id: str | None
    #: Takes a message that has waited.
    resume: Callable[[Message], object] | None


class Slices:
    """Work of all connections of a process that is done in slices: one slice in each turn of the event loop.

    Work is an iterator; each step is a slice. Work of a session keeps the order of its messages: those that come
    meanwhile are held, and handled after it. Work must not raise.
    """

    __slots__ = ("_loop", "_pending", "count", "held")

    def __init__(self) -> None:
        self._pending: deque[_Work] = deque()
        #: By session with work that is going on, the messages behind it. Only Slices changes it.
        self.held: dict[str, deque[Message]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Slices so far, without those of work that needed a single one.
        self.count = 0

    def __len__(self) -> int:
        return len(self._pending)

    def run(
        self,
        steps: Iterator[None],
        session_id: str | None = None,
        resume: Callable[[Message], object] | None = None,
    ) -> None:
        """Do the first slice now, and the others in later turns of the event loop.

        Messages of ``session_id`` that are held meanwhile go to ``resume``, in their order.
        """
        if _is_done(steps):
            return
        self.count += 1
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the work of another loop, which has ended, will never go on
            self._pending.clear()
            self._loop = loop
        if session_id is not None:
            self.held[session_id] = deque()
        self._pending.append(_Work(steps, session_id, resume))
        if len(self._pending) == 1:
            self._schedule()

    def hold(self, session_id: str, message: Message) -> None:
        """Keep a message until the work of its session is done."""
        self.held[session_id].append(message)

    def rename(self, old: str, new: str) -> None:
        """Go on with the work of a session that has another id from now on, and hold its messages."""
        held = self.held.pop(old, None)
        if held is not None:
            self.held[new] = held
            self._pending = deque(
                each._replace(session_id=new) if each.session_id == old else each for each in self._pending
            )

    def forget(self, session_id: str) -> None:
        """Give up the work of a session that has ended, and its messages."""
        self.held.pop(session_id, None)

    def _schedule(self) -> None:
        asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        work = self._pending.popleft()
        if self._pending:
            self._schedule()
        if work.session_id is not None and work.session_id not in self.held:
            return  # the session has ended
        self.count += 1
        if not _is_done(work.steps):
            self._pending.append(work)
            if len(self._pending) == 1:
                self._schedule()
        elif work.session_id is not None:
            self._resume(work, work.session_id)

    def _resume(self, work: _Work, session_id: str) -> None:
        held = self.held.pop(session_id)
        while held and work.resume is not None:
            if session_id in self.held:  # one of the messages has started more work
                self.held[session_id].extend(held)
                return
            work.resume(held.popleft())


def _is_done(steps: Iterator[None]) -> bool:
    """Do a slice; return whether it was the last one."""
    for _ in steps:
        return False
    return True
