"""One connection to the broker, made again whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias

import anyio
from aiormq.abc import AbstractChannel

from ._connection import Connection
from ._errors import CONNECTION_ERRORS, explain
from ._logs import quiet_aiormq

__all__ = ["Link", "SetUp", "running"]

logger = logging.getLogger(__name__)

#: Seconds to set up a connection.
SET_UP_TIMEOUT: Final = 10.0
#: Seconds to close a connection in good order, before it is dropped.
BROKER_CLOSE_TIMEOUT: Final = 1.0
#: Seconds within which links get the same problem by one cause.
SAME_TIME: Final = 10.0
#: Turns of the event loop in which aiormq ends its tasks once a connection is closed; it offers no future to wait for.
CLOSING_TURNS: Final = 20
#: Seconds between attempts, from the first to the last, each with jitter.
FIRST_RECONNECT: Final = 0.1
LAST_RECONNECT: Final = 1.0

#: Makes a connection ready for its purpose; yields the channels whose end is the connection's end.
SetUp: TypeAlias = Callable[[Connection], contextlib.AbstractAsyncContextManager[Sequence[AbstractChannel]]]


class Link:
    """Keeps one connection, and calls ``on_change`` whenever it comes up or is lost.

    ``connect`` limits its own time. A problem that several links get at the same time is logged by the first of them.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[Connection]],
        set_up: SetUp,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self._connect = connect
        self._set_up = set_up
        self._on_change = on_change
        self.up = False
        #: Whether messages get through soon: the link is up, or was lost a moment ago and no attempt has failed since.
        self.usable = False
        self.problem: str | None = "not connected yet"
        self.connects = 0
        #: All links of a mesh.
        self.siblings: Sequence[Link] = ()
        #: The latest problem that was logged since the link was up, and when.
        self.logged: str | None = None
        self.logged_at = 0.0
        self._connection: Connection | None = None
        self._lost: asyncio.Event | None = None
        #: Whether the loss of the latest connection has been told.
        self._told = False

    def abort(self, problem: str) -> None:
        """Drop the connection and make the next one."""
        self._on_lost(problem)
        if self._connection is not None:
            self._connection.abort()

    async def run(self) -> None:
        """Keep the connection, until cancelled."""
        quiet_aiormq()
        delay = FIRST_RECONNECT
        while True:
            started = time.monotonic()
            try:
                await self._live()
            except CONNECTION_ERRORS as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                self._failed(error)
            except BaseExceptionGroup as group:
                # From the tasks of a set-up: a broker's error there ends the connection like any other.
                errors, rest = group.split(CONNECTION_ERRORS)
                if rest is not None or errors is None:
                    raise
                self._failed(errors)
            if time.monotonic() - started > LAST_RECONNECT:
                delay = FIRST_RECONNECT
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay = min(delay * 2, LAST_RECONNECT)

    async def _live(self) -> None:
        """Connect, set up, and return when the connection is lost. Raises the error of an attempt that fails."""
        lost = self._lost = asyncio.Event()
        self._told = False
        connection = self._connection = await self._connect()
        try:
            async with (
                asyncio.timeout(SET_UP_TIMEOUT) as setting_up,
                self._set_up(connection) as channels,
            ):
                setting_up.reschedule(None)
                for closing in (connection.closing, *(channel.closing for channel in channels)):
                    closing.add_done_callback(functools.partial(self._on_closed, lost))
                self.connects += 1
                self._set(up=True, usable=True, problem=None)
                await lost.wait()
                self._set(up=False, usable=True, problem=self.problem or "the connection was lost")
                self._told = True
        finally:
            self.up = False
            self._connection = None
            await self._close(connection)

    async def _close(self, connection: Connection) -> None:
        """Close the connection in good order if the broker answers in time, and let aiormq end its tasks."""
        # A cancelled scope of anyio would cancel this again in every turn of the event loop.
        with anyio.CancelScope(shield=True):
            try:
                async with asyncio.timeout(BROKER_CLOSE_TIMEOUT):
                    await connection.close()
            except CONNECTION_ERRORS as error:
                logger.debug("mesh: %s connection could not be closed: %s", self.name, explain(error))
                connection.abort()
            for _ in range(CLOSING_TURNS):
                await asyncio.sleep(0)

    def _failed(self, error: BaseException) -> None:
        """Tell of an attempt that failed. The errors of a lost connection's channels are no news, nor its cause."""
        if not self._told:
            self._set(up=False, usable=False, problem=explain(error))

    def _on_closed(self, lost: asyncio.Event, closing: asyncio.Future[Any]) -> None:
        if lost is not self._lost:
            return  # aiormq may end a channel when the next connection is up already
        error = None if closing.cancelled() else closing.exception()
        self._on_lost("the connection was closed" if error is None else explain(error))

    def _on_lost(self, problem: str) -> None:
        if self._lost is not None and not self._lost.is_set():
            self.problem = problem
            self._lost.set()

    def _set(self, *, up: bool, usable: bool, problem: str | None) -> None:
        if self.up or up:
            self.logged = None
        self.up, self.usable, self.problem = up, usable, problem
        now = time.monotonic()
        others = (link.logged for link in self.siblings if now - link.logged_at < SAME_TIME)
        if problem not in (None, self.logged, *others):
            self.logged, self.logged_at = problem, now
            logger.warning("mesh: %s connection: %s", self.name, problem)
        self._on_change()


@contextlib.asynccontextmanager
async def running(*functions: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run ``functions`` for as long as the context lasts."""
    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(function)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
