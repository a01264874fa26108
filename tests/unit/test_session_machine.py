"""A random walk over a client, two processes, their mesh and a network that cuts: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.connection_kind import ConnectionKind
from nuropb_gateway_asgi.handlers.connection import Connection
from nuropb_gateway_asgi.limits.shared import SharedLimits
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.protocol import CloseCode, is_counted
from nuropb_gateway_asgi.settings import Settings
from nuropb_gateway_asgi.wire.history import parse_kept_topics

#: Turns of the event loop after which nothing is on its way between two processes any more.
TURNS: Final = 60

Frame = dict[str, Any]


class Lab:
    """A service whose calls end when they are let go."""

    def __init__(self) -> None:
        self.runs: Counter[int] = Counter()
        self.gates: dict[int, asyncio.Event] = {}

    async def work(self, number: int) -> int:
        """Wait for the gate of a number, and return the number."""
        self.runs[number] += 1
        gate = self.gates[number] = asyncio.Event()
        await gate.wait()
        return number


class Wire(Connection):
    """A connection in memory. What was sent is with the client once it reads; a cut loses the rest."""

    def __init__(self, kind: ConnectionKind) -> None:
        super().__init__(kind.handler_manager, kind.settings)
        self.sent: deque[str] = deque()
        self._end = asyncio.Event()

    async def receive_message(self) -> str | None:
        """Wait for the cut."""
        await self._end.wait()
        return None

    async def send_text(self, text: str) -> None:
        """Put a frame on the wire."""
        self.sent.append(text)

    async def send_close(self, code: int, reason: str) -> None:
        """Close the wire."""

    def cut(self) -> None:
        """Break the connection: what the client has not read is lost."""
        self.sent.clear()
        self._end.set()


class Client:
    """A client that follows docs/resume.md."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.key: str | None = None
        self.received = 0
        self.asked: dict[str, int] = {}
        self.answers: Counter[int] = Counter()
        self.events: list[int] = []
        #: Events of the topic with history, the position of the last one, and the answers to ``since``.
        self.kept: list[int] = []
        self.position: Frame | None = None
        self.recovered: list[bool] = []
        #: The sessions that the client has lost.
        self.lost = 0
        self._replay = 0
        #: Calls that the gateway has not, unless one of the replayed frames answers them.
        self._doubtful: list[str] = []
        self._numbers = itertools.count()

    def call(self) -> None:
        """Send a call."""
        number = next(self._numbers)
        self.asked[str(number)] = number
        self._send_call(number)

    def _send_call(self, number: int) -> None:
        self.send("request", id=str(number), service="lab", method="work", params={"number": number}, timeout=60)

    def send(self, type_: str, **payload: Any) -> None:
        """Send a frame, if there is a connection."""
        if self.wire is not None:
            self.wire.on_message(json.dumps({"type": type_, "payload": payload}))

    def read(self, count: int) -> None:
        """Read frames off the wire."""
        while self.wire is not None and self.wire.sent and count:
            count -= 1
            self._take(self.wire.sent.popleft())

    def _take(self, text: str) -> None:
        frame: Frame = json.loads(text)
        payload = frame.get("payload", {})
        if payload.get("id") == "resume":
            self._on_resumed(payload["result"])
            return
        if not is_counted(text):
            return
        self.received += 1
        if frame["type"] == "response" and payload["id"] in self.asked:
            assert payload["error"] is None, payload
            self.answers[self.asked.pop(payload["id"])] += 1
        elif frame["type"] == "response" and payload["id"] == "s":
            assert payload["error"] is None, payload
            found = payload["result"].get("history", {}).get("kept.#")
            if found is not None:
                self.recovered.append(found["recovered"])
                if not found["count"]:
                    self.position = {"epoch": found["epoch"], "offset": found["offset"]}
        elif frame["type"] == "event" and payload["topic"] == "kept.a":
            self.kept.append(payload["event"])
            self.position = payload["position"]
        elif frame["type"] == "event":
            assert payload["topic"] == "lab.a", payload
            self.events.append(payload["event"])
        self._replay -= 1
        if self._replay == 0:
            self._send_missing()

    def _on_resumed(self, result: Frame) -> None:
        first = self.key is None
        assert result["resumed"] is not first, result
        self.key, self.received, self._replay = result["key"], result["received"], result.get("replay", 0)
        if first:
            since = {"last": 1000} if self.position is None else self.position
            self.send("subscribe", id="s", topics=["lab.#", "kept.#"], since={"kept.#": since})
        else:
            self._doubtful = [id_ for id_ in self.asked if id_ not in result["in_flight"]]
            if not self._replay:
                self._send_missing()

    def lose(self) -> None:
        """Lose the session, as a page that is loaded again: its calls have an unknown outcome, its events are gone."""
        self.key = None
        self.received = 0
        self.asked.clear()
        self._doubtful.clear()
        self.events.clear()
        self.lost += 1

    def _send_missing(self) -> None:
        doubtful, self._doubtful = self._doubtful, []
        for id_ in doubtful:
            if id_ in self.asked:
                self._send_call(self.asked[id_])


class World:
    """Two processes, a service, and a client."""

    def __init__(self, kinds: list[ConnectionKind], lab: Lab) -> None:
        self.kinds, self.lab, self.client = kinds, lab, Client()
        self.published = self.kept = 0
        self.tasks: list[asyncio.Task[None]] = []

    def events_due(self) -> int:
        """Return the number of events of the topic without history that the client has to get at least."""
        return 0 if self.client.lost else self.published

    async def settle(self) -> None:
        """Let everything that is on its way arrive."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def connect(self, to: int) -> None:
        """Connect to a process, and resume."""
        await self.begin(to)
        await self.settle()

    async def begin(self, to: int) -> tuple[Wire, asyncio.Task[None]]:
        """Connect to a process, and ask it to resume; return the connection, and the task that ends with it."""
        client, kind = self.client, self.kinds[to]
        wire = Wire(kind)
        await kind.handler_manager.register(wire, "alice")
        self.tasks.append(asyncio.create_task(wire.run()))
        client.wire = wire
        known = {} if client.key is None else {"key": client.key, "received": client.received}
        client.send("resume", id="resume", **known)
        return wire, self.tasks[-1]

    async def step(self, step: tuple[str, int]) -> None:
        """Take a step of the walk."""
        what, number = step
        client = self.client
        # Until it has read the answer to resume, a client sends nothing else.
        may_send = client.wire is not None and client.key is not None
        if what == "call" and may_send:
            client.call()
        elif what == "event":
            await self.kinds[number % 2].service_mesh_manager.publish_event("lab.a", self.published)
            self.published += 1
        elif what == "kept event":
            await self.kinds[number % 2].service_mesh_manager.publish_event("kept.a", self.kept)
            self.kept += 1
        elif what == "answer" and self.lab.gates:
            gates = sorted(self.lab.gates)
            self.lab.gates[gates[number % len(gates)]].set()
        elif what == "read":
            client.read(number + 1)
        elif what == "acknowledge" and may_send:
            client.send("ack", received=client.received)
        elif what == "cut" and client.wire is not None and client.key is not None:
            client.wire.cut()
            client.wire = None
        elif what == "lose" and client.key is not None:
            if client.wire is not None:
                client.wire.cut()
                client.wire = None
            client.lose()
        elif what == "resume" and client.wire is None:
            await self.connect(number % 2)
            client.read(1)  # hello
            client.read(1)  # the answer
        elif what == "glimpse" and client.wire is None:
            wire, task = await self.begin(number % 2)
            for _ in range(number):
                await asyncio.sleep(0)
            wire.cut()
            client.wire = None
            await task  # the key is good once more when the process knows that the connection is broken
        if number % 3:
            await asyncio.sleep(0)
        else:
            await self.settle()


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    async def authenticate(token: str) -> Identity:
        return Identity(user_id=token, username=token, token=token)

    lab = Lab()
    settings_ = Settings(mesh_url="embedded://demo", max_in_flight=1000)
    mesh, limits = EmbeddedMesh({"lab": lab}), SharedLimits.of(settings_)
    policy, kept = ExposePolicy(["lab.*"], ["#"]), parse_kept_topics(["kept.#:1h"])
    async with contextlib.AsyncExitStack() as stack:
        kinds = [
            ConnectionKind(name, settings_, authenticate, policy, mesh, limits, kept_topics=kept)
            for name in ("websocket", "tcp")
        ]
        for kind in kinds:
            await stack.enter_async_context(kind.running())
            kind.open()
        made = World(kinds, lab)
        await made.settle()
        await made.connect(0)
        made.client.read(2)
        await made.settle()
        made.client.read(1)
        yield made
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


STEPS = ["call", "event", "kept event", "answer", "read", "acknowledge", "cut", "lose", "resume", "glimpse"]


async def walk(steps: list[tuple[str, int]]) -> None:
    async with world() as made:
        for step in steps:
            await made.step(step)
        # In the end the client comes back, and everything is answered.
        client = made.client
        if client.wire is None:
            await made.connect(0)
        for _ in range(50):
            for gate in made.lab.gates.values():
                gate.set()
            await made.settle()
            client.read(1000)
            if not client.asked and len(client.kept) == made.kept and len(client.events) >= made.events_due():
                break
        await made.settle()
        client.read(1000)
        assert not client.asked
        assert all(count == 1 for count in client.answers.values()), client.answers
        assert all(count == 1 for count in made.lab.runs.values()), made.lab.runs
        assert client.answers.keys() <= made.lab.runs.keys()
        # Within a session no event is missing; those before it are, unless their topic has a history.
        assert client.events == list(range(made.published))[made.published - len(client.events) :]
        assert client.kept == list(range(made.kept))
        assert all(client.recovered)
        if not client.lost:
            assert client.answers.keys() == made.lab.runs.keys()
            assert len(client.events) == made.published
        wire = client.wire
        assert wire is not None
        wire.close(CloseCode.DISCONNECTED, "the end")
        await made.settle()
        for kind in made.kinds:
            # Nobody comes back to the sessions that were lost.
            kind.service_mesh_manager.resumption.sweep(time.monotonic() + 2 * kind.settings.resume_window)
        await made.settle()
        for kind in made.kinds:
            assert kind.service_mesh_manager.resumption.is_idle
            assert kind.service_mesh_manager.events.history.is_idle
            assert kind.handler_manager.is_idle
            assert len(kind.handler_manager) == 0
            assert kind.handler_manager.admission.is_idle


#: A client that loses its session with events on the wire, and misses others.
LOST: Final = [
    "kept event",
    "read",
    "kept event",
    "lose",
    "kept event",
    "resume",
    "kept event",
    "read",
    "lose",
    "event",
]


@example([(what, number) for number, what in enumerate(LOST)])
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=40))
def test_nothing_is_lost_doubled_or_out_of_order(steps: list[tuple[str, int]]) -> None:
    asyncio.run(walk(steps))


@pytest.mark.parametrize("turns", range(1, 16, 2))
@pytest.mark.parametrize("to", [0, 1])
def test_a_connection_breaks_while_its_session_moves(turns: int, to: int) -> None:
    steps = [("call", 0), ("event", 0), ("cut", 0), ("event", 1), ("glimpse", turns), ("event", 1), ("resume", to)]
    asyncio.run(walk(steps))
