"""The cost of a frame, counted instead of timed: the same on every machine, however busy it is.

The gateway runs in the event loop of the test, in a thread that ``sys.setprofile`` watches. The clients are blocking
sockets in another thread, where nothing is counted.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, Self

import nuropb_gateway_asgi

from .clients import TEXT, RawClient
from .gateways import DEADLINE, RunningGateway

__all__ = ["REPEATS", "WARM_UP", "BlockingClient", "BlockingStream", "Cost", "Measured", "Repeat", "measure"]

#: Allowance for counts that are differences: an exact zero may come out slightly above.
TOLERANCE: Final = 0.1
#: Repetitions that are counted, and repetitions before them, until caches are filled.
REPEATS: Final = 20
WARM_UP: Final = 5

_PACKAGE: Final = str(Path(nuropb_gateway_asgi.__file__).parent)
_RUN_CALLBACK: Final = asyncio.Handle._run.__code__
_MAKE_CALLBACK: Final = asyncio.Handle.__init__.__code__
_WRITES: Final = frozenset({"send", "sendmsg", "sendto"})


@dataclass(frozen=True)
class Cost:
    """Counts on the thread of the event loop."""

    #: Calls of the package's Python functions. Each resumption of a coroutine counts as a call.
    own_calls: float
    #: Calls of all Python and C functions.
    all_calls: float
    #: Callbacks that the event loop ran.
    callbacks: float
    #: Tasks that were created.
    tasks: float
    #: System calls that write to a socket.
    writes: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(mine - its for mine, its in zip(self.counts, other.counts, strict=True)))

    def __truediv__(self, number: int) -> Cost:
        return Cost(*(count / number for count in self.counts))

    @property
    def counts(self) -> tuple[float, ...]:
        return self.own_calls, self.all_calls, self.callbacks, self.tasks, self.writes

    def rounded(self) -> dict[str, float]:
        """Return the counts by name, rounded to two places."""
        return dict(zip(_NAMES, (round(count, 2) for count in self.counts), strict=True))

    def above(self, allowed: Cost, margin: float) -> str:
        """Return a line for each count above ``margin`` times the allowed count."""
        rows = zip(_NAMES, self.counts, allowed.counts, strict=True)
        return "\n".join(
            f"    {name}: {count:.2f}, at most {most * margin:.2f} ({most:g} and {margin - 1:.0%})"
            for name, count, most in rows
            if count > most * margin + TOLERANCE
        )


_NAMES: Final = tuple(field.name for field in fields(Cost))


class Meter:
    """Counts on the thread that enters :meth:`running`, until it leaves.

    Only what clients cause is counted: the callbacks of sockets, and all callbacks, timers included, that these make.
    Left out are the timers that ran before, and what they make: they tick while a client waits, more often on a busy
    machine. Left out are the steps of the event loop between two callbacks, too, for the same reason.
    """

    def __init__(self) -> None:
        self._python: dict[CodeType, int] = {}
        self._own = self._all = self._callbacks = self._tasks = self._writes = 0
        #: Whether the callback that runs now is counted; None between callbacks.
        self._counts: bool | None = None
        #: Callbacks by their ids: timers that clients have caused, and callbacks that other timers have.
        self._timers: dict[int, asyncio.Handle] = {}
        self._others: dict[int, asyncio.Handle] = {}

    @contextmanager
    def running(self) -> Iterator[Self]:
        loop = asyncio.get_running_loop()
        assert loop.get_task_factory() is None
        loop.set_task_factory(self._make_task)
        sys.setprofile(self._on_event)
        try:
            yield self
        finally:
            sys.setprofile(None)
            loop.set_task_factory(None)

    def read(self) -> tuple[Cost, dict[CodeType, int]]:
        """Return the counts so far, and the calls of each function. May be called by any thread."""
        cost = Cost(self._own, self._all, self._callbacks, self._tasks, self._writes)
        return cost, self._python.copy()

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call":
            if code is _RUN_CALLBACK:
                self._counts = self._is_of_clients(frame.f_locals["self"])
                self._callbacks += self._counts
            elif code is _MAKE_CALLBACK and self._counts is not None:
                self._note(frame.f_locals["self"])
            if self._counts:
                self._all += 1
                self._python[code] = self._python.get(code, 0) + 1
                self._own += code.co_filename.startswith(_PACKAGE)
        elif event == "return":
            if code is _RUN_CALLBACK:
                self._counts = None
        elif event == "c_call" and self._counts:
            self._all += 1
            if argument.__name__ in _WRITES and isinstance(argument.__self__, socket.socket):
                self._writes += 1

    def _is_of_clients(self, callback: asyncio.Handle) -> bool:
        if isinstance(callback, asyncio.TimerHandle):
            return self._timers.pop(id(callback), None) is not None
        return self._others.pop(id(callback), None) is None

    def _note(self, callback: asyncio.Handle) -> None:
        """Remember the cause of a callback that is made by the one that runs now."""
        if not self._counts:
            self._others[id(callback)] = callback
        elif isinstance(callback, asyncio.TimerHandle):
            self._timers[id(callback)] = callback

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
        self._tasks += bool(self._counts)
        return asyncio.Task(coroutine, loop=loop, **more)


@dataclass(frozen=True)
class Measured:
    """The average cost of one repetition, and the calls of each function."""

    cost: Cost
    calls: Mapping[CodeType, float]

    def __truediv__(self, number: int) -> Measured:
        return Measured(self.cost / number, {code: calls / number for code, calls in self.calls.items()})

    def most_called(self, count: int = 25) -> str:
        """Return a line for each of the most called Python functions."""
        found = sorted(self.calls.items(), key=lambda each: -each[1])[:count]
        return "\n".join(f"{calls:8.1f}  {_place(code)}" for code, calls in found)


def _place(code: CodeType) -> str:
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_firstlineno} {code.co_qualname}"


class BlockingClient:
    """A connection with blocking calls, for a thread of its own."""

    def __init__(self, url: str, token: str) -> None:
        host, _, port = url.removeprefix("ws://").partition("/")[0].partition(":")
        self._socket = socket.create_connection((host, int(port)), DEADLINE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")
        path = "/" + url.removeprefix("ws://").partition("/")[2]
        # Compression is offered, as by browsers: it must not be taken, for compressed messages cost more.
        deflate = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")
        self._socket.sendall(RawClient.upgrade(path, ("Authorization", f"Bearer {token}"), deflate))
        status = self._stream.readline()
        assert status.startswith(b"HTTP/1.1 101 "), status
        while self._stream.readline() != b"\r\n":
            pass
        assert self.read()["payload"]["topic"] == "hello"

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def send(self, *frames: object) -> None:
        """Send all frames in one write."""
        self._socket.sendall(b"".join(RawClient.frame(json.dumps(each).encode()) for each in frames))

    def read(self) -> Any:
        """Return the next frame."""
        first, size = self._stream.read(2)
        assert first == 0x80 | TEXT
        if size == 126:
            size = int.from_bytes(self._stream.read(2), "big")
        return json.loads(self._stream.read(size))

    def answer(self) -> str:
        """Read a response, and return its id."""
        frame = self.read()
        assert frame["type"] == "response", frame
        assert frame["payload"]["error"] is None, frame["payload"]["error"]
        id_: str = frame["payload"]["id"]
        return id_


class BlockingStream:
    """A stream of Server-Sent Events with blocking calls, of a user of its own."""

    def __init__(self, url: str, topic: str, token: str) -> None:
        address = url.removeprefix("ws://").partition("/")[0]
        host, _, port = address.partition(":")
        self._socket = socket.create_connection((host, int(port)), DEADLINE)
        self._stream = self._socket.makefile("rb")
        head = f"GET /events?topic={topic} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n"
        self._socket.sendall(head.encode())
        status = self._stream.readline()
        assert status.startswith(b"HTTP/1.1 200 "), status
        assert self.read()["topic"] == "hello"

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def read(self) -> Any:
        """Return the data of the next event."""
        while not (line := self._stream.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        return json.loads(line.removeprefix(b"data: "))


@contextmanager
def clients(url: str, count: int) -> Iterator[list[BlockingClient]]:
    """Open ``count`` blocking connections, each of another user."""
    with ExitStack() as stack:
        opened = []
        for number in range(count):
            client = BlockingClient(url, f"user-{number}")
            stack.callback(client.close)
            opened.append(client)
        yield opened


#: A step that is repeated: it gets the number of the repetition, and returns after the answer.
Repeat = Callable[[int], None]


async def measure(
    running: RunningGateway, connections: int, prepare: Callable[[Sequence[BlockingClient]], Repeat]
) -> Measured:
    """Measure the cost of the step that ``prepare`` returns. A thread repeats it many times.

    A repetition counts from its beginning to the beginning of the next: the work that an answer leaves behind is a part
    of its cost. A broker that is slow answers in more pieces; so the result is the least of all.
    """
    meter = Meter()
    snapshots: list[tuple[Cost, dict[CodeType, int]]] = []

    def talk() -> None:
        with clients(running.url, connections) as opened:
            repeat = prepare(opened)
            for number in range(WARM_UP + REPEATS + 1):
                if number >= WARM_UP:
                    snapshots.append(meter.read())
                repeat(number)

    with meter.running():
        await asyncio.to_thread(talk)
    await running.is_empty()
    differences = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(snapshots)]
    columns = zip(*(each.counts for each in differences), strict=True)
    cost = Cost(*map(min, columns))
    (_, first), (_, last) = snapshots[0], snapshots[-1]
    return Measured(cost, {code: (count - first.get(code, 0)) / REPEATS for code, count in last.items()})
