"""A gateway under more load than it can take: ``python -m benchmarks.pressure``.

The gateway is a process on the embedded mesh, so that nothing but the gateway itself is the limit; this process is its
clients, which read no more of an answer than its id and whether it is a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import resource
import secrets
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

import uvicorn

from benchmarks.clients import CLOSE, HOST, PING, PONG, TEXT, frame, handshake_lines, take_frames
from benchmarks.process import cpu_seconds, end_with_parent, resident_bytes, run
from benchmarks.samples import percentile
from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.limits.overload import Overload
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.server import make_config, new_event_loop, tune_collector

KEY: Final = "k" * 48
#: Connections that call, and connections that only answer the gateway's pings.
CALLERS, IDLE = 200, 20
#: Calls in flight while the best rate is looked for.
IN_FLIGHT: Final = 64
#: Seconds: between two pings of a client, and between two looks of the clients at the clock.
PING_PAUSE, TICK = 0.1, 0.002
#: Loads, in multiples of the best rate.
LOADS: Final = (0.8, 1.0, 1.5, 2.0, 4.0)
#: Seconds in which the best rate is measured, and of each load before it is measured.
BEST_SECONDS, BEGINNING = 2.0, 1.0
#: Calls of a connection in one write, and seconds of each part, where the cost of a refusal is measured.
BUNCHES: Final = (1, 2, 4, 16)
PART: Final = 0.4
#: Connections that return after an outage, and the seconds over which they do.
RETURNING, RETURN_SECONDS = 10_000, 5.0
#: Events that are published in one turn of the event loop: else a publisher that is late would have it for itself.
MOST_AT_ONCE: Final = 40
#: New subscriptions, and events, a second.
SUBSCRIPTIONS, EVENTS = 1000, 10_000
PING_INTERVAL: Final = 5.0


# --- the gateway --------------------------------------------------------------------------------------------------


def serve(scene: str | None) -> None:
    """Run a gateway without rate limits for calls, and print its port."""
    end_with_parent()
    raise_file_limit()
    settings = Settings(
        mesh_url="embedded://demo",
        jwt_key=KEY,
        expose=["quick.*"],
        expose_topics=["#"],
        rate_limit="off",
        rate_limit_user="off",
        handshake_rate_per_address="off",
        max_connections=30_000,
        overload_delay=0.0 if scene == "refusals" else 0.05,
        service_name=f"gateway-{secrets.token_hex(4)}",
        ping_interval=PING_INTERVAL,
        log_level="warning",
    )
    quick = Quick()
    gateway = Gateway(settings, mesh=EmbeddedMesh({"quick": quick}))
    quick.publish_event = gateway.service_mesh_manager.publish_event
    quick.overload = gateway.handler_manager.shared_limits.overload
    config = make_config(gateway.app, settings, ws_per_message_deflate=False, access_log=False)
    listener = socket.create_server((HOST, 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        tune_collector()
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


class Quick:
    """A service that answers at once, and publishes events at a rate."""

    _service_name = "quick"

    def __init__(self) -> None:
        self.publish_event: Callable[..., Coroutine[Any, Any, None]] | None = None
        self.overload: Overload | None = None

    def echo(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    async def refuse(self, seconds: float) -> None:
        """Have all calls refused for some seconds, in a gateway that does it never else."""
        overload = self.overload
        assert overload is not None
        overload.active = overload.late = True

        def end() -> None:
            overload.active = overload.late = False

        asyncio.get_running_loop().call_later(seconds, end)

    async def publish(self, topics: list[str], rate: float, seconds: float) -> int:
        """Publish events, to each topic in turn; return their number."""
        assert self.publish_event is not None
        began, sent = time.perf_counter(), 0
        while (now := time.perf_counter()) - began < seconds:
            for _ in range(min(int((now - began) * rate) - sent, MOST_AT_ONCE)):
                await self.publish_event(topics[sent % len(topics)], {"number": sent})
                sent += 1
            await asyncio.sleep(TICK)
        return sent


def raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- clients ------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """Answers, refusals by code, pongs and ends of connections; times in seconds."""

    answered: list[float] = field(default_factory=list)
    #: Answers by user.
    served: Counter[str] = field(default_factory=Counter)
    refused: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    pongs: list[float] = field(default_factory=list)
    closed: Counter[str] = field(default_factory=Counter)
    events: int = 0
    #: Events that the gateway told it had dropped.
    dropped: int = 0


class Crowd:
    """Connections to one gateway, and their counts since the last :meth:`restart`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counts = Counts()
        self.numbers = itertools.count(1)
        #: The calls that follow once those of a connection are answered, in one write.
        self.again = 0

    def restart(self) -> None:
        self.counts = Counts()


class Visitor(asyncio.Protocol):
    """A connection that may be refused or closed."""

    def __init__(self, crowd: Crowd, user: str) -> None:
        self.crowd = crowd
        self.user = user
        self.opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting: dict[bytes, float] = {}
        self.pinged: float | None = None
        self._accepted = False
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    async def open(self) -> str:
        """Connect; return "hello", or the first line of the refusal."""
        await asyncio.get_running_loop().create_connection(lambda: self, HOST, self.crowd.port)
        return await self.opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        lines = (
            "GET /ws HTTP/1.1",
            f"Host: {HOST}:{self.crowd.port}",
            *handshake_lines(),
            f"Authorization: Bearer {issue_token(KEY, self.user)}",
        )
        self._transport.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_result("closed")
        self.crowd.counts.closed["reset" if error else "closed"] += 1

    def say(self, text: str) -> None:
        assert self._transport is not None
        self._transport.write(frame(TEXT, text.encode()))

    def call(self, count: int = 1) -> None:
        """Send some calls in one write."""
        assert self._transport is not None
        frames = []
        for number in itertools.islice(self.crowd.numbers, count):
            self.waiting[b"%d" % number] = time.perf_counter()
            text = (
                f'{{"type":"request","payload":{{"service":"quick","method":"echo","params":{{"text":"{"x" * 64}"}},'
                f'"id":"{number}"}}}}'
            )
            frames.append(frame(TEXT, text.encode()))
        self._transport.write(b"".join(frames))

    def ask(self, kind: str, **payload: Any) -> None:
        """Send another frame."""
        number = next(self.crowd.numbers)
        self.waiting[b"%d" % number] = time.perf_counter()
        self.say(json.dumps({"type": kind, "payload": {"id": str(number), **payload}}))

    def ping(self) -> None:
        """Send a WebSocket ping, unless one is under way."""
        if self.pinged is None and self._transport is not None:
            self.pinged = time.perf_counter()
            self._transport.write(frame(PING, b""))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._accepted:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 101 "):
                if not self.opened.done():
                    self.opened.set_result(bytes(buffer[9:12]).decode())
                return
            self._accepted = True
            del buffer[: end + 4]
        for first, payload in take_frames(buffer):
            self._on_frame(first & 0x0F, payload)

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        counts = self.crowd.counts
        if opcode == PING:
            assert self._transport is not None
            self._transport.write(frame(PONG, payload))
        elif opcode == PONG and self.pinged is not None:
            counts.pongs.append(time.perf_counter() - self.pinged)
            self.pinged = None
        elif opcode == CLOSE:
            counts.closed[str(struct.unpack(">H", payload[:2])[0])] += 1
        elif opcode == TEXT and not self.opened.done():
            self.opened.set_result("hello")
        elif opcode == TEXT and payload.startswith(b'{"type":"ping"'):
            self.say('{"type":"pong"}')
        elif opcode == TEXT and payload.startswith(b'{"type":"event"'):
            counts.events += 1
            if b'"topic":"dropped"' in payload:
                counts.dropped += json.loads(payload)["payload"]["event"]["count"]
        elif opcode == TEXT and (at := payload.find(b'"id":"')) >= 0:
            asked = self.waiting.pop(payload[at + 6 : payload.index(b'"', at + 6)], None)
            if asked is None:
                counts.codes["an answer too many"] += 1
                return
            took = time.perf_counter() - asked
            if b'"error":null' in payload:
                counts.answered.append(took)
                counts.served[self.user] += 1
            else:
                at = payload.find(b'"code":"') + 8
                counts.codes[payload[at : payload.index(b'"', at)].decode()] += 1
                counts.refused.append(took)
            if self.crowd.again and not self.waiting:
                self.call(self.crowd.again)


async def open_all(crowd: Crowd, count: int, prefix: str) -> list[Visitor]:
    """Open connections, each of a user of its own."""
    visitors = [Visitor(crowd, f"{prefix}-{number}") for number in range(count)]
    for start in range(0, count, 50):
        opened = await asyncio.gather(*(each.open() for each in visitors[start : start + 50]))
        if set(opened) != {"hello"}:
            raise RuntimeError(f"connections were refused: {Counter(opened)}")
    return visitors


async def pace(visitors: list[Visitor], rate: float, seconds: float) -> None:
    """Send calls at a rate, on all connections in turn, without waiting for answers."""
    began, sent = time.perf_counter(), 0
    turn = itertools.cycle(visitors)
    while (now := time.perf_counter()) - began < seconds:
        while sent < (now - began) * rate:
            next(turn).call()
            sent += 1
        await asyncio.sleep(TICK)


@contextlib.asynccontextmanager
async def pinging(visitors: list[Visitor]) -> AsyncIterator[None]:
    """Send pings on some connections meanwhile."""

    async def ping() -> None:
        while True:
            for each in visitors:
                each.ping()
            await asyncio.sleep(PING_PAUSE)

    task = asyncio.create_task(ping())
    try:
        yield
    finally:
        task.cancel()


def milliseconds(seconds: list[float]) -> str:
    """Show median, 99th percentile and maximum."""
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    return " / ".join(
        f"{1000 * each:.0f}" for each in (percentile(ordered, 0.5), percentile(ordered, 0.99), ordered[-1])
    )


# --- what is measured ---------------------------------------------------------------------------------------------


class Best(NamedTuple):
    """Answers per second of a process that is busy all the time, and seconds of CPU for each."""

    rate: float
    call: float


async def best_rate(crowd: Crowd, callers: list[Visitor], pid: int) -> Best:
    """Measure the answers while IN_FLIGHT calls are in flight."""
    crowd.again = 1
    for each in callers[:IN_FLIGHT]:
        each.call()
    await asyncio.sleep(0.5)
    crowd.restart()
    began, cpu = time.perf_counter(), cpu_seconds(pid)
    await asyncio.sleep(BEST_SECONDS)
    lasted, busy, count = time.perf_counter() - began, cpu_seconds(pid) - cpu, len(crowd.counts.answered)
    crowd.again = 0
    await quiet(callers)
    return Best(count / lasted, busy / count)


async def overload(crowd: Crowd, pid: int, seconds: float) -> None:
    """Call at 0.8 to 4 times the best rate, which is measured anew around each load."""
    callers = await open_all(crowd, CALLERS, "caller")
    idle = await open_all(crowd, IDLE, "idle")
    before = await best_rate(crowd, callers, pid)
    print(
        "| load | best/s | answered/s | of the best | to each caller | ms | refused/s | ms | of a call's CPU | codes "
        "| pong ms | closed | MiB | beginning: refused ms |"
    )
    for times in LOADS:
        memory = resident_bytes(pid)
        crowd.restart()
        async with pinging(idle):
            # An overload is found out in its first half second, in which the calls of a queue wait for each other.
            await pace(callers, times * before.rate, BEGINNING)
            beginning = crowd.counts
            crowd.restart()
            began, cpu = time.perf_counter(), cpu_seconds(pid)
            await pace(callers, times * before.rate, seconds)
        lasted, busy = time.perf_counter() - began, cpu_seconds(pid) - cpu
        counts = crowd.counts
        closed = beginning.closed + counts.closed
        left = await quiet(callers)
        after = await best_rate(crowd, callers, pid)
        rate, call = (before.rate + after.rate) / 2, (before.call + after.call) / 2
        served = sorted(counts.served[each.user] for each in callers)
        cells = [
            f"{times}",
            f"{rate:,.0f}",
            f"{len(counts.answered) / lasted:,.0f}",
            f"{100 * len(counts.answered) / lasted / rate:.0f} %",
            f"{served[0]} to {served[-1]}",
            milliseconds(counts.answered),
            f"{len(counts.refused) / lasted:,.0f}",
            milliseconds(counts.refused),
            f"{(busy / call - len(counts.answered)) / len(counts.refused):.2f}" if counts.refused else "-",
            ", ".join(f"{code} {count}" for code, count in counts.codes.items()) or "none",
            milliseconds(counts.pongs),
            ", ".join(f"{code} {count}" for code, count in closed.items()) or "none",
            f"{memory / 2**20:.0f} to {resident_bytes(pid) / 2**20:.0f}",
            milliseconds(beginning.refused),
        ]
        print("| " + " | ".join(cells) + " |" + (f" {left} calls without an answer" if left else ""), flush=True)
        before = after


async def refusals(crowd: Crowd, pid: int, seconds: float) -> None:
    """Compare the CPU time of a refusal with that of a call, in pairs, by the frames that come with one read."""
    callers = await open_all(crowd, IN_FLIGHT, "caller")
    (other,) = await open_all(crowd, 1, "other")

    async def cost(bunch: int, refuse: float) -> float:
        if refuse:
            other.ask("request", service="quick", method="refuse", params={"seconds": refuse})
            await quiet([other])
        crowd.again = bunch
        for each in callers:
            each.call(bunch)
        await asyncio.sleep(0.05)
        crowd.restart()
        cpu = cpu_seconds(pid)
        await asyncio.sleep(PART)
        took, counts = cpu_seconds(pid) - cpu, crowd.counts
        crowd.again = 0
        await quiet(callers)
        await asyncio.sleep(refuse - PART if refuse else 0.0)
        if bool(refuse) != bool(counts.refused) or bool(refuse) == bool(counts.answered):
            raise RuntimeError(f"{len(counts.answered)} calls answered, {len(counts.refused)} refused")
        return 1e6 * took / len(counts.refused or counts.answered)

    print("| frames in a read | call us | refusal us | in calls | answered at twice the best rate, by the model |")
    for bunch in BUNCHES:
        rows = [(await cost(bunch, 0.0), await cost(bunch, PART + 0.4)) for _ in range(max(3, int(seconds / 4)))]
        call, refusal = (min(column) for column in zip(*rows, strict=True))
        share = sorted(one / other for other, one in rows)[len(rows) // 2]
        # Of two calls for each that the process has time for, `answered` are answered and the others refused.
        answered = (1 - 2 * share) / (1 - share)
        print(f"| {bunch} | {call:.0f} | {refusal:.1f} | {share:.3f} | {100 * max(answered, 0):.0f} % |", flush=True)


async def returning(crowd: Crowd, pid: int, seconds: float) -> None:
    """Have ten thousand connections come back within five seconds, while another client calls."""
    other = (await open_all(crowd, 1, "other"))[0]
    calls = asyncio.create_task(pace([other], 20, 600))
    began, cpu = time.perf_counter(), cpu_seconds(pid)
    tries: Counter[str] = Counter()
    arrived: list[float] = []

    async def arrive(number: int) -> None:
        await asyncio.sleep(RETURN_SECONDS * number / RETURNING)
        for attempt in itertools.count():
            visitor = Visitor(crowd, f"user-{number}")
            try:
                answer = await visitor.open()
            except OSError as error:
                answer = type(error).__name__
            tries[answer] += 1
            if answer == "hello":
                arrived.append(time.perf_counter() - began)
                return
            await asyncio.sleep(min(10.0, 1.0 * 2**attempt) * (0.5 + secrets.randbelow(500) / 1000))

    await asyncio.gather(*map(arrive, range(RETURNING)))
    calls.cancel()
    print(
        f"{RETURNING:,} connections in {max(arrived):.1f} s (median {percentile(sorted(arrived), 0.5):.1f}), "
        f"handshakes {dict(tries)}, {cpu_seconds(pid) - cpu:.1f} s of CPU; another client's calls: "
        f"{milliseconds(crowd.counts.answered)} ms, refused {len(crowd.counts.refused)}, "
        f"{resident_bytes(pid) / 2**20:.0f} MiB"
    )


async def subscribing(crowd: Crowd, pid: int, seconds: float) -> None:
    """Subscribe to a thousand new topics a second, and end as many subscriptions."""
    visitors = await open_all(crowd, 100, "user")
    others = Crowd(crowd.port)
    (other,) = await open_all(others, 1, "other")
    calls = asyncio.create_task(pace([other], 50, seconds))
    began, cpu, asked = time.perf_counter(), cpu_seconds(pid), 0
    while (now := time.perf_counter()) - began < seconds:
        while asked < (now - began) * SUBSCRIPTIONS:
            visitor, topic = visitors[asked % 100], asked // 100
            visitor.ask("subscribe", topics=[f"news.{visitor.user}.{topic}"])
            if topic >= 50:
                visitor.ask("unsubscribe", topics=[f"news.{visitor.user}.{topic - 50}"])
            asked += 1
        await asyncio.sleep(TICK)
    await calls
    await quiet(visitors)
    print(
        f"{asked / seconds:,.0f} subscriptions a second, answered after {milliseconds(crowd.counts.answered)} ms, "
        f"{len(crowd.counts.refused)} refused; {100 * (cpu_seconds(pid) - cpu) / seconds:.0f} % of a core; another "
        f"client's calls: {milliseconds(others.counts.answered)} ms"
    )


async def many_topics(crowd: Crowd, pid: int, seconds: float) -> None:
    """Subscribe a thousand connections to a hundred topics each, all of them distinct, and publish to all."""
    visitors = await open_all(crowd, 1000, "user")
    before = resident_bytes(pid)
    for visitor in visitors:
        visitor.ask("subscribe", topics=[f"news.{visitor.user}.{number}" for number in range(100)])
        await asyncio.sleep(0)
    await quiet(visitors)
    grown = resident_bytes(pid) - before
    others = Crowd(crowd.port)
    (other,) = await open_all(others, 1, "other")
    await asyncio.sleep(2.0)  # the subscriptions were an overload
    crowd.restart()
    cpu = cpu_seconds(pid)
    topics = [f"news.user-{number}.{number % 100}" for number in range(1000)]
    calls = asyncio.create_task(pace([other], 50, min(seconds, 10.0)))
    other.ask(
        "request",
        service="quick",
        method="publish",
        params={"topics": topics, "rate": 1000, "seconds": min(seconds, 10.0)},
    )
    await calls
    await quiet([other])
    events = crowd.counts.events
    print(
        f"100,000 topics take {grown / 2**20:.0f} MiB; 1,000 events a second: {events:,} delivered, "
        f"{1e6 * (cpu_seconds(pid) - cpu) / max(events, 1):.0f} us of CPU for each, with its publication; "
        f"another client's calls: {milliseconds(others.counts.answered[:-1])} ms"
    )


async def many_events(crowd: Crowd, pid: int, seconds: float) -> None:
    """Subscribe one connection to a hundred patterns, and publish ten thousand events a second to it."""
    (visitor,) = await open_all(crowd, 1, "user")
    visitor.ask("subscribe", topics=[f"app.area{number}.#" for number in range(100)])
    await quiet([visitor])
    others = Crowd(crowd.port)
    (other,) = await open_all(others, 1, "other")
    crowd.restart()
    cpu, memory = cpu_seconds(pid), resident_bytes(pid)
    topics = [f"app.area{number}.kind" for number in range(100)]
    calls = asyncio.create_task(pace([other], 50, seconds))
    other.ask(
        "request", service="quick", method="publish", params={"topics": topics, "rate": EVENTS, "seconds": seconds}
    )
    await calls
    await quiet([other])
    counts = crowd.counts
    print(
        f"{counts.events / seconds:,.0f} events a second delivered, {counts.dropped:,} dropped and told, "
        f"{100 * (cpu_seconds(pid) - cpu) / seconds:.0f} % of a core, with their publication; "
        f"closed {dict(counts.closed)}; "
        f"{memory / 2**20:.0f} to {resident_bytes(pid) / 2**20:.0f} MiB; another client's calls: "
        f"{milliseconds(others.counts.answered[:-1])} ms"
    )


async def quiet(visitors: list[Visitor]) -> int:
    """Wait until all is answered, for a minute and a half at most; return the number of calls without an answer."""
    deadline = time.perf_counter() + 90.0
    while any(each.waiting for each in visitors) and time.perf_counter() < deadline:
        await asyncio.sleep(0.05)
    return sum(len(each.waiting) for each in visitors)


SCENES: dict[str, Callable[[Crowd, int, float], Coroutine[Any, Any, None]]] = {
    "refusals": refusals,
    "overload": overload,
    "return": returning,
    "subscriptions": subscribing,
    "topics": many_topics,
    "events": many_events,
}


async def measure(name: str, seconds: float) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, *("-m", "benchmarks.pressure", "serve", "--only", name), stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        port = int(await server.stdout.readline())
        await SCENES[name](Crowd(port), server.pid, seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        await server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a gateway under more load than it can take.")
    parser.add_argument("role", nargs="?", choices=["serve"], help="for the processes of this command")
    parser.add_argument("--only", choices=SCENES, help="one of the scenes")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    options = parser.parse_args()
    if options.role == "serve":
        serve(options.only)
        return
    raise_file_limit()
    for name in [options.only] if options.only else SCENES:
        print(f"\n{name}", flush=True)
        run(measure(name, options.seconds))


if __name__ == "__main__":
    main()
