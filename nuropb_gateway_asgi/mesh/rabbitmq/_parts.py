"""A part of a connection that clients can do without: the service's queue, the stream of records, or a history.

On a cluster either may be out of reach while everything else works: a classic queue is gone with its node, a stream
without a majority of its nodes. A queue that others have declared with other arguments cannot be had at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPChannelError

from ._connection import Connection, close
from ._errors import explain, is_error_of_broker

__all__ = ["Part"]

logger = logging.getLogger(__name__)

#: Seconds for an attempt, and between two attempts.
ATTEMPT_TIMEOUT: Final = 4.0
RETRY_INTERVAL: Final = 3.0
#: Seconds after which the end of a channel is no longer the beginning of the connection's end.
SETTLE_TIME: Final = 0.1
#: Errors of a part: the broker refuses it, or does not answer. All others are the connection's.
_ERRORS: Final = (AMQPChannelError, TimeoutError)


class Part:
    """Sets up a part of a connection; when that fails, again and again, beside everything else.

    ``declare`` changes nothing when it is called again. ``consume`` returns the channels by which messages come.
    ``without`` names the consequence of its absence, in words for an operator.
    """

    def __init__(
        self,
        name: str,
        without: str,
        declare: Callable[[Connection], Awaitable[None]],
        consume: Callable[[Connection], Awaitable[Sequence[AbstractChannel]]],
    ) -> None:
        self._name = name
        self._without = without
        self._declare = declare
        self._consume = consume
        #: The warning for an operator while it is missing.
        self.warning: str | None = None
        self._channels: tuple[AbstractChannel, ...] = ()
        self._lost = asyncio.Event()
        #: The time before which it is not tried, as an attempt has cost a connection.
        self._due = 0.0

    @property
    def is_there(self) -> bool:
        """Whether it is set up, and messages come."""
        return self.warning is None and bool(self._channels)

    def lose(self) -> None:
        """Set it up again, for the broker has ended its consumer."""
        self._lost.set()

    async def attempt(self, connection: Connection) -> None:
        """Set it up once. If that fails, there is a warning. Raises the error of a connection that is lost.

        After an attempt for which the broker closed the connection, or may do so, whatever else is on it gets some
        seconds without one.
        """
        self._channels, self._lost = (), asyncio.Event()
        if time.monotonic() < self._due:
            self._lost.set()
            return
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                await self._declare(connection)
                self._channels = tuple(await self._consume(connection))
        except _ERRORS as error:
            self._on_error(error)
            self._spare(connection, error)
            return
        except BaseException as error:
            if self._spare(connection, error):
                self._on_error(error)
            raise
        for channel in self._channels:
            channel.closing.add_done_callback(functools.partial(_on_closed, self._lost))
        if self.warning is not None:
            self.warning = None
            logger.info("mesh: %s is there again", self._name)

    async def keep(self, connection: Connection, *, attempt: bool = False) -> None:
        """Set it up again whenever it is lost, until cancelled; with ``attempt``, set it up first."""
        if attempt:
            await self.attempt(connection)
        while True:
            await self._lost.wait()
            await asyncio.sleep(SETTLE_TIME if self.warning is None else RETRY_INTERVAL)
            for channel in self._channels:
                with contextlib.suppress(Exception):  # it is closed, or about to be
                    await close(channel)
            await self.attempt(connection)

    async def reassert(self, connection: Connection) -> None:
        """Declare it again, as an operator may have deleted a binding."""
        if self.warning is not None:
            return
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                await self._declare(connection)
        except _ERRORS as error:
            self._on_error(error)

    def _spare(self, connection: Connection, error: BaseException) -> bool:
        """Wait with the next attempt if the broker has closed the connection for this one; return whether it has.

        It may still do so if it has not answered, which it gives up after 5 s.
        """
        has_ended = is_error_of_broker(error) or is_error_of_broker(connection.end)
        if has_ended or isinstance(error, TimeoutError):
            self._due = time.monotonic() + RETRY_INTERVAL
        return has_ended

    def _on_error(self, error: BaseException) -> None:
        if self.warning is None:
            logger.warning("mesh: %s is missing (%s): %s", self._name, explain(error), self._without)
        self.warning = f"{self._name} is missing ({explain(error)}): {self._without}"
        self._lost.set()


def _on_closed(lost: asyncio.Event, closing: asyncio.Future[Any]) -> None:
    """Note that a channel has ended. It may be one of an earlier attempt, so ``lost`` is that attempt's own."""
    if not closing.cancelled():
        closing.exception()  # else asyncio would report it
    lost.set()
