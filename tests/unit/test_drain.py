"""The drain on a signal: the signal reaches the handler found in place exactly once, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from types import FrameType, SimpleNamespace
from typing import Any, Final

import anyio
import pytest

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi import drain as drain_module
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.connection_kind import WEBSOCKET, ConnectionKind
from nuropb_gateway_asgi.drain import SERVER_CLOSE_TIMEOUT, Drain
from nuropb_gateway_asgi.limits.shared import SharedLimits

from .fakes import PATIENCE, FakeAuthenticator, FakeMesh, until

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Recorder:
    """A signal handler that keeps the numbers of the signals."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)


@contextlib.contextmanager
def handlers(*installed: Any) -> Iterator[None]:
    """Install signal handlers for SIGTERM and SIGINT, and restore those found in place."""
    previous = {number: signal.signal(number, handler) for number, handler in zip(SIGNALS, installed, strict=True)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """The handler of both signals, in the place of a server's."""
    recorder = Recorder()
    with handlers(recorder, recorder):
        yield recorder


@contextlib.asynccontextmanager
async def busy_kind() -> AsyncIterator[ConnectionKind]:
    """Run a connection kind with a call of the host application in flight, so that a drain waits."""
    settings = Settings()
    kind = ConnectionKind(
        WEBSOCKET, settings, FakeAuthenticator(), ExposePolicy([], []), FakeMesh(), SharedLimits.of(settings)
    )
    async with kind.running():
        manager = kind.service_mesh_manager
        call = asyncio.create_task(manager.describe("orders"))
        await until(lambda: manager.in_flight)
        yield kind
        call.cancel()


async def test_a_signal_is_passed_on_once_the_drain_is_over(recorder: Recorder) -> None:
    drain = Drain([], timeout=PATIENCE)
    async with anyio.create_task_group() as tasks:
        with drain.on_signals(tasks):
            await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            assert (drain.draining, recorder.numbers) == (True, [])
            await until(lambda: recorder.numbers)
        assert recorder.numbers == [signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_that_comes_before_the_drain_waits_for_it_is_not_lost(recorder: Recorder, number: int) -> None:
    drain = Drain([], timeout=PATIENCE)
    async with anyio.create_task_group() as tasks:
        with drain.on_signals(tasks):
            # The event loop has not run since the context was entered.
            signal.raise_signal(number)
            assert (drain.draining, recorder.numbers) == (True, [])
            await until(lambda: recorder.numbers)
        assert recorder.numbers == [number]
    assert recorder.numbers == [number]


async def test_a_signal_just_before_the_end_of_the_lifespan_is_passed_on(recorder: Recorder) -> None:
    async with anyio.create_task_group() as tasks:
        with Drain([], timeout=PATIENCE).on_signals(tasks):
            signal.raise_signal(signal.SIGTERM)
        assert recorder.numbers == [signal.SIGTERM]
    assert recorder.numbers == [signal.SIGTERM]


async def test_the_first_signal_waits_for_the_calls_in_flight_and_a_second_one_does_not(recorder: Recorder) -> None:
    async with busy_kind() as kind, anyio.create_task_group() as tasks:
        drain = Drain([kind], timeout=0.3)
        with drain.on_signals(tasks):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            assert recorder.numbers == []
            signal.raise_signal(signal.SIGINT)
            assert recorder.numbers == [signal.SIGINT]
            await until(lambda: len(recorder.numbers) > 1)
        assert recorder.numbers == [signal.SIGINT, signal.SIGTERM]
    assert recorder.numbers == [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_end_of_the_lifespan_during_a_drain_passes_the_signal_on(recorder: Recorder, cancelled: bool) -> None:
    async with busy_kind() as kind, anyio.create_task_group() as tasks:
        drain = Drain([kind], timeout=PATIENCE if cancelled else 0.2)
        with drain.on_signals(tasks):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
            assert recorder.numbers == []
        assert recorder.numbers == [signal.SIGTERM]
        if cancelled:
            tasks.cancel_scope.cancel()
    # The drain has ended, too, and has nothing left to pass on.
    assert recorder.numbers == [signal.SIGTERM]


async def test_a_drain_that_fails_passes_the_signal_on(recorder: Recorder) -> None:
    class Failing(Drain):
        async def run(self) -> None:
            raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with anyio.create_task_group() as tasks:
            with Failing([], timeout=PATIENCE).on_signals(tasks):
                signal.raise_signal(signal.SIGTERM)
                await asyncio.sleep(PATIENCE)
    assert recorder.numbers == [signal.SIGTERM]


async def test_after_a_drain_without_a_signal_a_signal_goes_straight_to_the_server(recorder: Recorder) -> None:
    drain = Drain([], timeout=PATIENCE)
    async with anyio.create_task_group() as tasks:
        with drain.on_signals(tasks):
            await drain.run()
            signal.raise_signal(signal.SIGTERM)
            assert recorder.numbers == [signal.SIGTERM]
        tasks.cancel_scope.cancel()
    assert recorder.numbers == [signal.SIGTERM]


async def test_the_handlers_found_in_place_come_back(recorder: Recorder) -> None:
    async with anyio.create_task_group() as tasks:
        with Drain([], timeout=PATIENCE).on_signals(tasks):
            assert all(signal.getsignal(number) is not recorder for number in SIGNALS)
            signal.signal(signal.SIGINT, later := Recorder())
        assert signal.getsignal(signal.SIGTERM) is recorder
        # A handler that was installed meanwhile stays.
        assert signal.getsignal(signal.SIGINT) is later
        tasks.cancel_scope.cancel()


async def test_pythons_own_handlers_stay_in_place() -> None:
    with handlers(signal.SIG_DFL, signal.default_int_handler):
        async with anyio.create_task_group() as tasks:
            with Drain([], timeout=PATIENCE).on_signals(tasks):
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            tasks.cancel_scope.cancel()


def test_in_another_thread_signals_are_left_alone(recorder: Recorder) -> None:
    seen: list[object] = []

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            with Drain([], timeout=PATIENCE).on_signals(tasks):
                seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join(PATIENCE)
    assert seen == [recorder] * 2


class Connection:
    """A connection of a server, with a transport that is closing or open."""

    def __init__(self, *, closing: bool) -> None:
        self.closing = closing
        self.aborted = False
        self.transport = self

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


class Server:
    """A server with those attributes of uvicorn's that bound a shutdown."""

    def __init__(self, timeout: int | None) -> None:
        self.config = SimpleNamespace(timeout_graceful_shutdown=timeout)
        self.closing, self.open = Connection(closing=True), Connection(closing=False)
        self.server_state = SimpleNamespace(connections={self.closing, self.open})
        #: The timeout at each signal, and whether the closing and the open connection were aborted by then.
        self.signals: list[tuple[int | None, bool, bool]] = []

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.signals.append((self.config.timeout_graceful_shutdown, self.closing.aborted, self.open.aborted))


@pytest.mark.parametrize(("timeout", "bounded"), [(None, SERVER_CLOSE_TIMEOUT), (7, 7)])
async def test_the_shutdown_of_the_server_is_bounded_before_it_gets_the_signal(
    timeout: int | None, bounded: int
) -> None:
    server = Server(timeout)
    with handlers(server.handle_exit, server.handle_exit):
        async with anyio.create_task_group() as tasks:
            with Drain([], timeout=PATIENCE).on_signals(tasks):
                signal.raise_signal(signal.SIGTERM)
                await until(lambda: server.signals)
    assert server.signals == [(bounded, True, False)]


# --- servers that leave their signals to the event loop ---------------------------------------------------------


@pytest.fixture
async def told() -> AsyncIterator[list[int]]:
    """The signals of which the event loop has told a server."""
    loop = asyncio.get_running_loop()
    numbers: list[int] = []
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.getsignal(number) for number in watched}
    for number in watched:
        loop.add_signal_handler(number, numbers.append, number)
    yield numbers
    for number in watched:
        loop.remove_signal_handler(number)
        signal.signal(number, previous[number])


@pytest.mark.parametrize("number", SIGNALS)
async def test_the_event_loop_is_told_of_a_second_signal_at_once_and_of_the_first_after_the_drain(
    told: list[int], number: int
) -> None:
    async with busy_kind() as kind, anyio.create_task_group() as tasks:
        drain = Drain([kind], timeout=PATIENCE)
        with drain.on_signals(tasks):
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGUSR1)
            await until(lambda: told == [signal.SIGUSR1])  # not the gateway's matter
            assert drain.draining
            signal.raise_signal(number)
            await until(lambda: told == [signal.SIGUSR1, number])
    await until(lambda: told == [signal.SIGUSR1, number, number])  # the first one, at the end of the drain


async def test_a_signal_that_the_loop_has_not_been_told_of_is_passed_on_at_the_end(told: list[int]) -> None:
    async with busy_kind() as kind, anyio.create_task_group() as tasks:
        with Drain([kind], timeout=PATIENCE).on_signals(tasks):
            signal.raise_signal(signal.SIGTERM)
        tasks.cancel_scope.cancel()
    await until(lambda: told == [signal.SIGTERM])


async def test_after_the_lifespan_the_event_loop_hears_of_signals_by_itself(told: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with anyio.create_task_group() as tasks:
        with Drain([], timeout=PATIENCE).on_signals(tasks):
            pass
        tasks.cancel_scope.cancel()
    assert signal.getsignal(signal.SIGTERM) is before
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: told == [signal.SIGTERM])


async def test_the_signals_are_taken_again_from_a_loop_that_took_them_back(
    told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_module, "TAKE_INTERVAL", 0.01)
    async with anyio.create_task_group() as tasks:
        drain = Drain([], timeout=PATIENCE)
        with drain.on_signals(tasks):
            # As uvloop does when it is run again.
            mine = signal.set_wakeup_fd(-1)
            await until(lambda: wakeup_fd() == mine)
            signal.raise_signal(signal.SIGUSR1)
        tasks.cancel_scope.cancel()


async def test_a_handler_that_a_server_installs_later_gets_its_signal_at_once(told: list[int]) -> None:
    loop, later = asyncio.get_running_loop(), list[int]()
    async with busy_kind() as kind, anyio.create_task_group() as tasks:
        drain = Drain([kind], timeout=PATIENCE)
        with drain.on_signals(tasks):
            loop.add_signal_handler(signal.SIGTERM, later.append, signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            await until(lambda: later == [signal.SIGTERM])
            assert not drain.draining
        tasks.cancel_scope.cancel()
    assert told == []


def wakeup_fd() -> int:
    """Return the file descriptor to which Python writes the numbers of signals."""
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found, warn_on_full_buffer=False)
    return found
