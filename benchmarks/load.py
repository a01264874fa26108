"""Clients of one contender: connections that send requests and check every answer.

The process reads orders from standard input, one line of JSON each, and answers each with a line of JSON; see
:class:`Orders`. It ends when standard input does.

Their connections are those of clients.py.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from benchmarks.clients import HOST, CallClient, Client, Load, LoadError, client_of
from benchmarks.dialects import DIALECTS, TOPIC, make_dialect
from benchmarks.process import busy_seconds, cpu_seconds, family, run
from benchmarks.samples import histogram, percentile
from benchmarks.tokens import Signer, make_signer

ANSWER_TIMEOUT: Final = 20.0
CLOSE_TIMEOUT: Final = 20.0
#: Concurrent handshakes.
HANDSHAKES: Final = 32
#: Seconds between two looks at the clock when requests are sent at a rate.
TICK: Final = 0.001


# --- waiting ------------------------------------------------------------------------------------------------------


async def pause(load: Load, seconds: float) -> None:
    """Wait for ``seconds``. Raises the error of the load as soon as it fails."""
    await asyncio.wait((load.failed,), timeout=seconds)
    load.check()


async def until(load: Load, done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while not done():
        await pause(load, 0.01)
        if time.monotonic() > deadline:
            raise LoadError(otherwise)


async def unless_it_fails(load: Load, coroutine: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(coroutine)
    await asyncio.wait((task, load.failed), return_when=asyncio.FIRST_COMPLETED)
    load.check()
    await task


class Meter:
    """Counts, times and CPU seconds since its creation."""

    def __init__(self, load: Load, pids: Mapping[str, Iterable[int]]) -> None:
        self._load = load
        self._pids = pids
        self._busy, self._cpu = busy_seconds(), self._seconds()
        self._count, self._began = load.count, time.perf_counter()

    def read(self) -> dict[str, Any]:
        count, lasted = self._load.count - self._count, time.perf_counter() - self._began
        spent = {name: seconds - self._cpu[name] for name, seconds in self._seconds().items()}
        others = max(0.0, busy_seconds() - self._busy - sum(spent.values()))
        return {"count": count, "seconds": lasted, "cpu": spent, "others": others}

    def _seconds(self) -> dict[str, float]:
        return {name: sum(map(cpu_seconds, pids)) for name, pids in self._pids.items()}


class Orders:
    """Orders to the clients, by the names of the methods."""

    def __init__(self, load: Load, port: int, sign: Signer, pids: Mapping[str, int], kind: type[Client]) -> None:
        self._load = load
        self._port = port
        self._kind = kind
        self._sign = sign
        self._pids = pids
        self._users = 0
        #: Number of connections that are subscribed to the events.
        self._subscribed = 0
        #: The connection that has events published, if the others only listen.
        self._publisher: Client | None = None

    # --- connections ------------------------------------------------------------------------------------------

    async def open(self, count: int) -> int:
        """Open connections until there are ``count``, each for a different user."""
        await self._connect(self._tokens(count - len(self._load.clients)))
        return len(self._load.clients)

    async def connect(self, count: int) -> dict[str, Any]:
        """Open ``count`` more connections, measure that, and close them again."""
        tokens = list(self._tokens(count))
        before = len(self._load.clients)
        meter = self._meter()
        await self._connect(iter(tokens))
        sample = meter.read() | {"count": count}
        new, self._load.clients[before:] = self._load.clients[before:], []
        for client in new:
            client.close()
        await asyncio.wait([client.closed for client in new], timeout=CLOSE_TIMEOUT)
        if not all(client.closed.done() for client in new):
            raise LoadError("the server did not close the connections after their close frames")
        return sample

    def _tokens(self, count: int) -> Iterator[str]:
        for _ in range(count):
            self._users += 1
            yield self._sign(f"user-{self._users}")

    async def _connect(self, tokens: Iterator[str]) -> None:
        loop = asyncio.get_running_loop()

        async def connect() -> None:
            for token in tokens:
                client = self._kind(self._load, self._port, token)
                await loop.create_connection(partial(same, client), HOST, self._port)
                await client.opened
                self._load.clients.append(client)

        async def connect_all() -> None:
            await asyncio.gather(*(connect() for _ in range(HANDSHAKES)))

        await unless_it_fails(self._load, connect_all())

    # --- requests ---------------------------------------------------------------------------------------------

    async def load(self, connections: int, in_flight: int, warm_up: float, seconds: float) -> dict[str, Any]:
        """Keep ``in_flight`` requests in flight, spread evenly over the first ``connections`` connections."""
        load = self._load
        clients = load.clients[:connections]
        load.next = deque(clients * -(-in_flight // connections))
        for _ in range(in_flight):
            load.ask(load.next.popleft())
        return await self._measure_answers(warm_up, seconds, at_least=in_flight)

    async def pace(self, connections: int, rate: float, warm_up: float, seconds: float) -> dict[str, Any]:
        """Send ``rate`` requests a second on ``connections`` connections in turn, without waiting for answers."""

        async def send() -> None:
            began, sent = time.perf_counter(), 0
            while True:
                while sent < (time.perf_counter() - began) * rate:
                    self._load.ask(self._load.clients[sent % connections])
                    sent += 1
                await asyncio.sleep(TICK)

        sender = asyncio.ensure_future(send())
        try:
            return await self._measure_answers(warm_up, seconds, sender=sender)
        finally:
            sender.cancel()

    async def _measure_answers(
        self, warm_up: float, seconds: float, *, at_least: int = 1, sender: asyncio.Future[None] | None = None
    ) -> dict[str, Any]:
        load = self._load
        load.latencies.clear()
        # The first requests, sent all at once, must be answered before, even beyond the warm-up.
        await self._pass(warm_up, at_least)
        load.measuring = True
        meter = self._meter()
        # A short time could miss the bursts in which some servers answer.
        await self._pass(seconds, 2 * at_least)
        sample = meter.read()
        load.measuring, load.next = False, None
        if sender is not None:
            sender.cancel()
        await until(load, lambda: not load.in_flight, "some requests were not answered")
        ordered = sorted(load.latencies)
        shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
        gc.collect()
        return (
            sample
            | {name: percentile(ordered, share) for name, share in shares.items()}
            | {"latencies": histogram(ordered)}
        )

    async def _pass(self, seconds: float, at_least: int = 1) -> None:
        """Wait for ``seconds``, and until ``at_least`` requests have been answered."""
        load, enough = self._load, self._load.count + at_least
        await pause(load, seconds)
        await until(load, lambda: load.count >= enough, "requests were not answered")

    # --- events -----------------------------------------------------------------------------------------------

    async def subscribe(self) -> int:
        """Subscribe every connection to the events, if the dialect has subscriptions."""
        load = self._load
        if self._publisher is None and load.dialect.publishes_by_calls:
            (token,) = self._tokens(1)
            self._publisher = CallClient(load, self._port, token)
            await asyncio.get_running_loop().create_connection(partial(same, self._publisher), HOST, self._port)
        for client in load.clients[self._subscribed :]:
            number = load.number()
            message = load.dialect.subscribe(number)
            if message is not None:
                client.ask(number, message)
        self._subscribed = len(load.clients)
        await until(load, lambda: not load.in_flight, "some subscriptions were not answered")
        return self._subscribed

    async def fan_out(self, warm_up: float, seconds: float) -> dict[str, Any]:
        """Send events to every connection; each event waits until the one before has reached all connections."""
        await self._broadcast(warm_up)
        meter = self._meter()
        latencies = await self._broadcast(seconds)
        sample = meter.read()
        gc.collect()
        return sample | {"events": len(latencies), "p50": percentile(sorted(latencies), 0.5)}

    async def _broadcast(self, seconds: float) -> list[float]:
        """Send events for ``seconds`` and wait for the last; return the seconds each took to reach all connections."""
        load = self._load
        latencies: list[float] = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end or not latencies:
            arrived = load.broadcast(self._publisher or load.clients[0])
            await asyncio.wait((arrived, load.failed), timeout=ANSWER_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            load.check()
            if not arrived.done():
                raise LoadError(f"{load.missing} connections did not get an event")
            latencies.append(time.perf_counter() - began)
        return latencies

    def _meter(self) -> Meter:
        # Only a server has workers; the child processes of a broker come and go.
        pids = {name: family(pid) if name == "server" else [pid] for name, pid in self._pids.items()}
        return Meter(self._load, pids)


def same(client: Client) -> Client:
    return client


async def obey(options: argparse.Namespace) -> None:
    load = Load(make_dialect(options.dialect, options.service, options.broadcaster, options.topic), options.size)
    pids = {"clients": os.getpid(), **{name: int(pid) for name, pid in (each.split("=") for each in options.pid)}}
    key = os.environ.get("BENCHMARK_SIGNING_KEY", "")
    sign = make_signer(os.environ.get("BENCHMARK_ALGORITHM", "HS256"), key)
    orders = Orders(load, options.port, sign, pids, client_of(options.dialect))
    loop = asyncio.get_running_loop()
    gc.disable()
    while True:
        line = loop.run_in_executor(None, sys.stdin.readline)
        await asyncio.wait((line, load.failed), return_when=asyncio.FIRST_COMPLETED)
        load.check()
        if not line.result():
            return
        order = json.loads(line.result())
        print(json.dumps(await getattr(orders, order.pop("do"))(**order)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Clients of one of the servers.")
    parser.add_argument("dialect", choices=DIALECTS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--size", type=int, default=64, help="characters of text in each request")
    parser.add_argument("--service", default="bench", help="the service that answers")
    parser.add_argument("--broadcaster", default="bench.publish", help="the method that sends to all connections")
    parser.add_argument("--topic", default=TOPIC, help="the topic of the events to all connections")
    parser.add_argument("--pid", action="append", default=[], metavar="NAME=PID", help="measure its CPU time")
    options = parser.parse_args()
    try:
        run(obey(options))
    except (LoadError, OSError) as error:
        # No regular exit: it would wait for the thread that reads standard input.
        print(f"load: {str(error) or type(error).__name__}", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
