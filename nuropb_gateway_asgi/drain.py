"""What happens between SIGTERM and the end? The drain of a gateway.

The gateway admits no more clients, tells its clients when to reconnect, and answers their calls in flight; then the
server gets its signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any, Final, TypeAlias

from anyio.abc import TaskGroup

from .connection_kind import ConnectionKind
from .service_mesh_manager import ServiceMeshManager

__all__ = ["Drain"]

logger = logging.getLogger(__name__)

#: Seconds without a mesh after which a drain waits for no more answers.
RECONNECT_TIMEOUT: Final = 2.0
#: Seconds that a drain takes at least while there are connections, so that calls sent before the client read its
#: goodbye are still answered.
GOODBYE_GRACE: Final = 0.5
#: Seconds between two checks of the calls in flight, or of the last frames.
DRAIN_INTERVAL: Final = 0.02
#: Seconds for clients to read their last frames.
FLUSH_TIMEOUT: Final = 1.0
#: Checks in a row without progress, after which a drain no longer waits for the last frames.
FLUSH_LOOKS: Final = 5
#: Seconds between two looks at who learns of signals.
TAKE_INTERVAL: Final = 0.5
#: Turns of the event loop with a look each, from the start on; granian's first run ends after about three.
FIRST_TURNS: Final = 20
#: Seconds for uvicorn to close its connections after the drain.
SERVER_CLOSE_TIMEOUT: Final = 1

#: A signal handler that is a function.
SignalHandler: TypeAlias = Callable[[int, FrameType | None], Any]


class Drain:
    """Drains the connections of a gateway, on a signal or when asked to.

    ``timeout`` is in seconds. From a signal to the drain, ``delay`` seconds pass, in which clients are still admitted:
    a load balancer that has seen that the process is not ready needs a while to send its clients elsewhere.
    """

    def __init__(self, kinds: Collection[ConnectionKind], timeout: float, delay: float = 0.0) -> None:
        self._kinds = kinds
        self._timeout = timeout
        self._delay = delay
        #: Whether a drain has begun, or its delay.
        self.draining = False

    async def run(self) -> None:
        """Admit no clients, say goodbye, wait until no calls are in flight or the timeout is over, and close.

        Each client gets its own time to reconnect, and the close code 1012. The drain does not wait for a mesh that
        stays away, since no answer can come, nor for clients that do not read.
        """
        self.draining = True
        for kind in self._kinds:
            kind.say_goodbye()
        began = connected_at = time.monotonic()
        while (waited := time.monotonic() - began) < self._timeout:
            busy = self._busy()
            more_may_come = waited < GOODBYE_GRACE and any(len(kind.handler_manager) for kind in self._kinds)
            # Clients that follow their goodbye take their sessions to another process, which asks this one for them.
            more_may_come |= any(kind.may_hand_over for kind in self._kinds)
            if not (busy or more_may_come):
                break
            if not busy or any(manager.connected for manager in busy):
                connected_at = time.monotonic()
            elif time.monotonic() - connected_at > RECONNECT_TIMEOUT:
                break
            await asyncio.sleep(DRAIN_INTERVAL)
        for kind in self._kinds:
            kind.close_connections()
        await self._flush()

    async def _flush(self) -> None:
        """Wait until the last frames are sent, for the server may cut the connections at once."""
        await asyncio.sleep(DRAIN_INTERVAL)
        waiting, looks, end = self._unfinished(), 0, time.monotonic() + FLUSH_TIMEOUT
        while waiting and looks < FLUSH_LOOKS and time.monotonic() < end:
            await asyncio.sleep(DRAIN_INTERVAL)
            left = self._unfinished()
            looks = 0 if left < waiting else looks + 1
            waiting = left

    def _unfinished(self) -> int:
        """Bytes that wait for clients, and connections that have not ended."""
        return sum(kind.outbox_size + len(kind.handler_manager) for kind in self._kinds)

    def _busy(self) -> list[ServiceMeshManager]:
        managers = (kind.service_mesh_manager for kind in self._kinds)
        return [manager for manager in managers if manager.in_flight]

    @contextlib.contextmanager
    def on_signals(self, tasks: TaskGroup) -> Iterator[None]:
        """Drain on SIGTERM or SIGINT, before the server's own signal handlers act; for as long as the context lasts.

        uvicorn closes every connection before it ends the lifespan, so a drain in the lifespan would come too late. But
        servers install their signal handlers before the lifespan begins, so that they can be wrapped here. A second
        signal ends the delay, if there is one; a further signal goes straight to the server. ``tasks`` owns the drain.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        saved: dict[int, SignalHandler] = {}
        first: list[int] = []
        signalled, again = asyncio.Event(), asyncio.Event()
        is_delayed = False

        def on_signal(number: int, frame: FrameType | None) -> None:
            nonlocal is_delayed
            if is_delayed:
                is_delayed = False
                loop.call_soon_threadsafe(again.set)
            elif self.draining:
                loop.call_soon_threadsafe(_bound_shutdown, saved[number])
                saved[number](number, frame)
            else:
                self.draining = True
                is_delayed = self._delay > 0
                first.append(number)
                loop.call_soon_threadsafe(signalled.set)

        def pass_on() -> None:
            if first:
                number = first.pop()
                _bound_shutdown(saved[number])
                saved[number](number, None)

        async def drain_when_signalled() -> None:
            nonlocal is_delayed
            await signalled.wait()
            if is_delayed:
                logger.info("draining in %g s: not ready, but clients are still admitted", self._delay)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._delay):
                        await again.wait()
                is_delayed = False
            logger.info("draining: %d requests in flight", sum(manager.in_flight for manager in self._busy()))
            try:
                await self.run()
            finally:
                pass_on()

        found: dict[int, SignalHandler] = {}
        for number in map(int, (signal.SIGTERM, signal.SIGINT)):
            handler = signal.getsignal(number)
            # With Python's own handler, which raises KeyboardInterrupt, the process is not run by a server.
            if callable(handler) and handler is not signal.default_int_handler:
                found[number] = saved[number] = handler
        with contextlib.ExitStack() as stack:
            if of_loop := {number for number, handler in found.items() if _is_of_loop(handler, loop)}:

                def is_kept(number: int) -> bool:
                    return number in of_loop and signal.getsignal(number) is on_signal

                tell_loop = stack.enter_context(_kept_from_loop(loop, is_kept))
                saved |= dict.fromkeys(of_loop, lambda number, frame: tell_loop(number))
            for number in found:
                signal.signal(number, on_signal)
            # The task waits from here on: a signal arrives in a bare callback of the event loop, where anyio starts
            # none.
            tasks.start_soon(drain_when_signalled, name="drain")
            try:
                yield
            finally:
                for number, handler in found.items():
                    if signal.getsignal(number) is on_signal:
                        signal.signal(number, handler)
                pass_on()  # if the lifespan ends before the drain does


def _is_of_loop(handler: object, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a signal handler is the one that ``loop.add_signal_handler`` installs, by asyncio or by uvloop."""
    return getattr(handler, "__module__", "") == "asyncio.unix_events" or getattr(handler, "__self__", None) is loop


@contextlib.contextmanager
def _kept_from_loop(loop: asyncio.AbstractEventLoop, is_kept: Callable[[int], bool]) -> Iterator[Callable[[int], None]]:
    """Keep signals from the event loop for as long as the context lasts. Yields a function that tells the loop of one.

    hypercorn, granian and gunicorn's asgi worker leave their signals to the event loop, which learns of a signal not by
    its handler, but by the file descriptor to which Python writes the number of every signal.
    """
    of_loop, turns = -1, 0
    timer: asyncio.TimerHandle | None = None

    def take() -> None:
        # More than once: granian runs the loop again after the start of the lifespan, and uvloop makes a new file
        # descriptor whenever it begins to run.
        nonlocal of_loop
        found = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if found != writer.fileno():
            of_loop = found

    def take_again() -> None:
        nonlocal timer, turns
        take()
        turns += 1  # the first turns of the loop come before any client
        timer = loop.call_later(0.0 if turns < FIRST_TURNS else TAKE_INTERVAL, take_again)

    def tell_loop(number: int) -> None:
        take()
        with contextlib.suppress(OSError):  # full, or closed with the loop
            os.write(of_loop, bytes((number,)))

    def on_signals() -> None:
        for number in reader.recv(4096):
            if not is_kept(number):
                tell_loop(number)

    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        take_again()
        loop.add_reader(reader, on_signals)
        try:
            yield tell_loop
        finally:
            if timer is not None:
                timer.cancel()
            loop.remove_reader(reader)
            take()
            try:
                signal.set_wakeup_fd(of_loop)
            except (OSError, ValueError):  # closed
                signal.set_wakeup_fd(-1)


def _bound_shutdown(signal_handler: object) -> None:
    """Bound the time that uvicorn waits for its connections at a shutdown, which is infinite by default.

    A client that does not read never leaves: its transport cannot be closed before its buffer is empty. The signal
    handler found in place is a method of the server, if it is uvicorn's.
    """
    server = getattr(signal_handler, "__self__", None)
    config = getattr(server, "config", None)
    if getattr(config, "timeout_graceful_shutdown", 0) is None:
        config.timeout_graceful_shutdown = SERVER_CLOSE_TIMEOUT  # type: ignore[union-attr]
    # If such a client has sent a close frame itself, the shutdown of uvicorn 0.54 fails with InvalidState, and the
    # lifespan never ends.
    for connection in tuple(getattr(getattr(server, "server_state", None), "connections", ())):
        transport = getattr(connection, "transport", None)
        if transport is not None and transport.is_closing():
            transport.abort()
