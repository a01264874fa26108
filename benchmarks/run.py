"""Measure this gateway, nuropb_gw and a bare echo server in turns: ``python -m benchmarks.run``; see README.md.

Prints Markdown to standard output and progress to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import platform
import resource
import secrets
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.process import resident_bytes
from tests.servers.rabbitmq import RabbitMQError, RabbitMQNode, free_port

HERE: Final = Path(__file__).resolve().parent
START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 10.0
#: Open before the memory of connections is measured, so that what is paid once is not put down to them.
FIRST_CONNECTIONS: Final = 100
SETTLE: Final = 2.0
PACKAGES: Final = (
    *("nuropb-gateway-asgi", "uvicorn", "starlette", "websockets", "uvloop", "msgspec", "aio-pika", "aiormq", "pamqp"),
    *("prometheus-client", "nuropb-gw", "tornado", "nuropb", "pika"),
)


class BenchmarkError(RuntimeError):
    """A process did not start, or found something wrong."""


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    #: Modules without which it cannot run.
    needs: tuple[str, ...]
    is_echo: bool = False


CONTENDERS: Final = (
    Contender("gateway-uvloop", "this gateway, uvloop", ("uvloop",)),
    Contender("gateway-asyncio", "this gateway, asyncio", ()),
    Contender("nuropb_gw", "nuropb_gw 0.1.4 (Tornado)", ("nuropb_gw",)),
    Contender("echo", "floor: bare echo, uvloop", ("uvloop",), is_echo=True),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    turns: int
    seconds: float
    warm_up: float
    idle: tuple[int, ...]
    #: Connections, and requests in flight on each.
    cells: tuple[tuple[int, int], ...] = ((1, 1), (1, 32), (32, 1), (400, 1))


QUICK: Final = Plan(turns=8, seconds=0.45, warm_up=0.15, idle=(1000,))
FULL: Final = Plan(turns=30, seconds=1.0, warm_up=0.25, idle=(1000, 5000))


class Process:
    """A process with its standard error in a file; ended by its id."""

    def __init__(self, name: str, *arguments: str, directory: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = directory / f"{name}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=HERE.parent,
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise BenchmarkError if it has ended."""
        status = self._process.poll()
        if status is not None:
            raise self.error(f"ended with {status}")

    def error(self, what: str) -> BenchmarkError:
        log = self._log.read_text(errors="replace")[-3000:]
        return BenchmarkError(f"{self.name} {what}; the end of its log:\n{log}")

    def ask(self, line: str = "", *, timeout: float = START_TIMEOUT) -> str:
        """Write a line, if any, and return the line that is answered."""
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        if line:
            with contextlib.suppress(BrokenPipeError):
                pipes.stdin.write(line.encode() + b"\n")
                pipes.stdin.flush()
        deadline = time.monotonic() + timeout
        said = b""
        while not said.endswith(b"\n"):
            readable, _, _ = select.select([pipes.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(pipes.stdout.fileno(), 65536) if readable else b""
            if not chunk:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)
                raise self.error("ended" if readable else f"said nothing in {timeout:.0f} s")
            said += chunk
        return said.decode().strip()

    def stop(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Bench:
    """The broker, the service, and what is started against them."""

    def __init__(self, stack: contextlib.ExitStack, plan: Plan, size: int) -> None:
        self.plan = plan
        self._size = size
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        self._stack = stack
        say("starting RabbitMQ")
        self._node = stack.enter_context(RabbitMQNode())
        self._environment = {
            "PYTHONUNBUFFERED": "1",
            "NUROPB_GATEWAY_MESH_URL": self._node.url(),
            "NUROPB_GATEWAY_JWT_KEY": secrets.token_urlsafe(32),
            "NUROPB_GATEWAY_EXPOSE": "bench.*",
            # The others have none.
            "NUROPB_GATEWAY_RATE_LIMIT": "off",
            "NUROPB_GATEWAY_RATE_LIMIT_USER": "off",
        }
        self._service = self._start(stack, "service", "benchmarks.service", "--url", self._node.url())
        self.broker_version = self._service.ask().removeprefix("READY ")

    def _start(self, stack: contextlib.ExitStack, name: str, *arguments: str) -> Process:
        process = Process(name, *arguments, directory=self._directory, environment=self._environment)
        stack.callback(process.stop)
        return process

    def start(self, stack: contextlib.ExitStack, contender: Contender) -> tuple[Process, int]:
        """Start a contender and wait until it answers at ``/readyz``; returns it with its port."""
        port = free_port()
        process = self._start(stack, contender.name, "benchmarks.contenders", contender.name, "--port", str(port))
        deadline = time.monotonic() + START_TIMEOUT
        while not is_ready(port):
            process.check()
            if time.monotonic() > deadline:
                raise process.error(f"was not ready in {START_TIMEOUT:.0f} s")
            time.sleep(0.1)
        return process, port

    def clients(self, stack: contextlib.ExitStack, contender: Contender, process: Process, port: int) -> Process:
        """Start the clients of a contender, which wait for orders; see load.py."""
        arguments = ["--port", str(port), "--size", str(self._size), *(["--echo"] if contender.is_echo else [])]
        for name, pid in (("gateway", process.pid), ("service", self._service.pid), ("broker", self._node.pid)):
            arguments += ["--pid", f"{name}={pid}"]
        return self._start(stack, f"clients of {contender.name}", "benchmarks.load", *arguments)

    def measure_memory(self, contender: Contender) -> dict[str, float]:
        """Bytes: of the process with its first connections, and per connection above these."""
        with contextlib.ExitStack() as stack:
            process, port = self.start(stack, contender)
            clients = self.clients(stack, contender, process, port)
            sizes = {}
            for count in (FIRST_CONNECTIONS, *self.plan.idle):
                clients.ask(f"open {count}", timeout=START_TIMEOUT + count / 50)
                time.sleep(SETTLE)
                sizes[count] = resident_bytes(process.pid)
            first = sizes.pop(FIRST_CONNECTIONS)
            return {
                "process": first,
                **{str(count): (size - first) / (count - FIRST_CONNECTIONS) for count, size in sizes.items()},
            }


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(plan: Plan, size: int, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Everything. For each value the contenders take turns, and each turn begins with another one."""
    turns: list[dict[str, dict[str, Any]]] = []
    with contextlib.ExitStack() as stack:
        bench = Bench(stack, plan, size)
        memory = {}
        for contender in contenders:
            say(f"idle connections: {contender.title}")
            memory[contender.name] = bench.measure_memory(contender)
        clients = {}
        for contender in contenders:
            process, port = bench.start(stack, contender)
            clients[contender.name] = bench.clients(stack, contender, process, port)
            clients[contender.name].ask(f"open {max(connections for connections, _ in plan.cells)}")
        names = [contender.name for contender in contenders]
        for turn in range(plan.turns):
            say(f"load: turn {turn + 1} of {plan.turns}")
            shift = turn % len(names)
            measured: dict[str, dict[str, Any]] = {name: {} for name in names}
            for connections, window in plan.cells:
                order = f"load {connections} {window} {plan.warm_up} {plan.seconds}"
                for name in names[shift:] + names[:shift]:
                    measured[name][f"{connections}x{window}"] = json.loads(clients[name].ask(order))
            turns.append(measured)
        broker = bench.broker_version
    return {"turns": turns, "memory": memory, "broker": broker, "size": size}


# --- the report ---------------------------------------------------------------------------------------------------

Cell = Mapping[str, Any]


def cpu_per_thousand(cell: Cell) -> float:
    seconds: float = cell["cpu"]["gateway"]
    requests: int = cell["requests"]
    return seconds / requests * 1000


def rate(cell: Cell) -> float:
    requests: int = cell["requests"]
    seconds: float = cell["seconds"]
    return requests / seconds


def median_of(turns: Sequence[Mapping[str, Any]], name: str, cell: str, value: Callable[[Cell], float]) -> float:
    return statistics.median(value(turn[name][cell]) for turn in turns)


def ratio_of(turns: Sequence[Mapping[str, Any]], name: str, base: str, cell: str) -> str:
    ratios = sorted(cpu_per_thousand(turn[name][cell]) / cpu_per_thousand(turn[base][cell]) for turn in turns)
    if name == base:
        return "1"
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def report(results: Mapping[str, Any], plan: Plan, contenders: Sequence[Contender]) -> Iterator[str]:
    turns = results["turns"]
    base = contenders[0]
    for connections, window in plan.cells:
        cell = f"{connections}x{window}"
        on = "1 connection" if connections == 1 else f"{connections} connections"
        yield f"**{connections * window} in flight** ({window} on {'each of ' if connections > 1 else ''}{on})"
        yield ""
        head: tuple[str, ...] = (
            "",
            "CPU s / 1000 requests",
            f"times {base.title}",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "share of a core",
        )
        rows = []
        for contender in contenders:

            def median(value: Callable[[Cell], float], name: str = contender.name, cell: str = cell) -> float:
                return median_of(turns, name, cell, value)

            rows.append(
                (
                    contender.title,
                    f"{median(cpu_per_thousand):.3f}",
                    ratio_of(turns, contender.name, base.name, cell),
                    f"{median(rate):.0f}",
                    f"{median(lambda each: each['p50']) * 1000:.2f}",
                    f"{median(lambda each: each['p99']) * 1000:.2f}",
                    f"{median(lambda each: each['cpu']['gateway'] / each['seconds']):.0%}",
                )
            )
        yield from table(head, rows)
        yield ""
    yield "**Idle connections**"
    yield ""
    memory = results["memory"]
    head = ("", f"process with {FIRST_CONNECTIONS}, MiB", *(f"KiB each at {count}" for count in plan.idle))
    yield from table(
        head,
        [
            (
                contender.title,
                f"{memory[contender.name]['process'] / 2**20:.1f}",
                *(f"{memory[contender.name][str(count)] / 1024:.1f}" for count in plan.idle),
            )
            for contender in contenders
        ],
    )
    yield ""
    yield from describe_run(results, plan)


def describe_run(results: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    cells = [cell for turn in results["turns"] for contender in turn.values() for cell in contender.values()]
    measured = sum(cell["seconds"] for cell in cells)
    others = sum(cell["others"] for cell in cells) / measured / (os.cpu_count() or 1)
    yield (
        f"Medians of {plan.turns} turns, {plan.seconds:g} s for each value, {results['size']} characters of text in "
        f"each request; the ratios are medians of the ratios within a turn, with the lowest and the highest. "
        f"{sum(cell['requests'] for cell in cells)} answers, all of them right. "
        f"Other programs had {others:.0%} of the machine meanwhile."
    )
    yield ""
    yield f"- Machine: {machine()}"
    yield f"- {platform.python_implementation()} {platform.python_version()}, RabbitMQ {results['broker']}"
    yield f"- {', '.join(filter(None, map(package, PACKAGES)))}"


def machine() -> str:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model n" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}, {memory:.0f} GiB, {system}"


def package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="What a request and a connection cost, compared.")
    parser.add_argument("--full", action="store_true", help="longer, and with 5000 connections (about 13 minutes)")
    parser.add_argument("--size", type=int, default=64, help="characters of text in each request (64)")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="write everything that was measured there, as JSON")
    options = parser.parse_args()
    plan = FULL if options.full else QUICK
    contenders = []
    for contender in CONTENDERS:
        missing = [name for name in contender.needs if importlib.util.find_spec(name) is None]
        if missing:
            say(f"left out: {contender.title}, because {' and '.join(missing)} cannot be installed here")
        else:
            contenders.append(contender)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        results = measure(plan, options.size, contenders)
    except (BenchmarkError, RabbitMQError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    if options.raw is not None:
        options.raw.parent.mkdir(parents=True, exist_ok=True)
        options.raw.write_text(json.dumps(results))
    print("\n".join(report(results, plan, contenders)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
