"""The admin API of a process: it answers questions of all processes, and serves the address while it has it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
from collections.abc import AsyncIterator
from typing import Final

import anyio
import anyio.abc

from ..server.beside import serving_beside
from ..settings import UNIX_PREFIX
from .address import Taken, taking
from .api import Api
from .endpoint import make_endpoint
from .guard import Guard
from .local import LocalAdmin, Parts

__all__ = ["Admin"]

logger = logging.getLogger(__name__)

#: Seconds between two attempts to take the address, while another process has it or it cannot be had.
TAKE_INTERVAL: Final = 1.0


class Admin:
    """The admin API. Made for each run of the gateway."""

    def __init__(self, parts: Parts) -> None:
        settings, address = parts.settings, parts.settings.admin_address
        assert address is not None  # noqa: S101 - the setting names one
        self._address = address
        self._shown = f"{UNIX_PREFIX}{address}" if isinstance(address, str) else settings.admin_listen
        self._local = LocalAdmin(parts)
        self._guard = Guard(settings.admin_token, "" if isinstance(address, str) else address[0])
        self._endpoint = make_endpoint(Api(parts, self._local), self._guard, parts.journal)
        if parts.metrics is not None:
            parts.metrics.admin_refused = self._guard.refused
        #: Whether this process serves the address.
        self.is_serving = False

    @contextlib.asynccontextmanager
    async def running(self, tasks: anyio.abc.TaskGroup) -> AsyncIterator[None]:
        """Answer the other processes, and serve the address, as long as the context and ``tasks`` last."""
        self._local.bind()
        with self._local.recent:
            tasks.start_soon(self._serve, name="admin")
            yield

    async def _serve(self) -> None:
        """Serve the address whenever no other process has it, until cancelled."""
        said = ""
        while True:
            try:
                with taking(self._address) as listener:
                    async with serving_beside(self._endpoint, listener):
                        logger.info("the admin API is at %s", self._shown)
                        self.is_serving = True
                        try:
                            await asyncio.Event().wait()
                        finally:
                            self.is_serving = False
            except Taken:
                said = self._say("another process has it", said, is_usual=multiprocessing.parent_process() is not None)
            except OSError as error:
                said = self._say(error.strerror or type(error).__name__, said, is_usual=False)
            await asyncio.sleep(TAKE_INTERVAL)

    def _say(self, reason: str, said: str, *, is_usual: bool) -> str:
        """Log once why the address cannot be served, as news or as a warning."""
        if reason != said:
            level = logging.DEBUG if is_usual else logging.WARNING
            logger.log(level, "the admin API is not at %s yet: %s; trying again", self._shown, reason)
        return reason
