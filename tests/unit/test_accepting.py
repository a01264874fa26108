"""Connections that arrive faster than an event loop can take them."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import ExitStack

from nuropb_gateway_asgi.server.process import ACCEPTS_PER_TURN, limit_event_loop

from .fakes import until

ARRIVING = 5 * ACCEPTS_PER_TURN


class Turns:
    """Counts the turns of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.number = 0
        self._next()

    def _next(self) -> None:
        self.number += 1
        self._handle = self._loop.call_soon(self._next)

    def stop(self) -> None:
        self._handle.cancel()


async def accept_all(loop: asyncio.AbstractEventLoop) -> Counter[int]:
    """Accept connections that wait in the kernel; return their number in each turn."""
    turns, accepted = Turns(loop), Counter[int]()

    class Visitor(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted[turns.number] += 1
            transport.close()

    server = await loop.create_server(Visitor, "127.0.0.1", 0, backlog=2 * ARRIVING)
    try:
        with ExitStack() as stack:
            for _ in range(ARRIVING):  # this loop does not run meanwhile: all of them wait in the kernel
                stack.enter_context(socket.create_connection(server.sockets[0].getsockname(), 10.0))
            await until(lambda: accepted.total() == ARRIVING)
    finally:
        turns.stop()
        server.close()
    return accepted


def test_clients_that_come_at_once_are_accepted_in_several_turns() -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        loop = runner.get_loop()
        limit_event_loop(loop)
        accepted = runner.run(accept_all(loop))
    assert max(accepted.values()) <= ACCEPTS_PER_TURN + 1  # newer releases of Python accept one more


def test_few_clients_at_a_time_are_asyncios_own_matter() -> None:
    async def listen(loop: asyncio.AbstractEventLoop) -> None:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, backlog=1)
        assert server.is_serving()
        server.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        limit_event_loop(runner.get_loop())
        runner.run(listen(runner.get_loop()))
