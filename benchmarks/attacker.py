"""The delay of others' calls while one client sends costly frames at its limits: ``python -m benchmarks.attacker``.

The gateway is a process, the attacker another, and this process makes the calls of others. Two figures: the latency of
those calls, which depends on the load of the machine, and the CPU time of the turns of the gateway's event loop, which
does not. A call arrives at a random moment, so a turn counts as often as it is long: half of all calls that arrive
while the gateway works wait for a turn longer than the median.

The latency is to tell how long the gateway makes others wait, and not how long an attacker on the same machine keeps
their processors busy. So on Linux the gateway has the first core, and this process, which shares the others with the
attacker, goes first there. That needs root; without it, the first line of the output says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import secrets
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.process import end_with_parent
from benchmarks.samples import percentile
from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.server import make_config
from nuropb_gateway_asgi.server.process import tune_collector

KEY = "k" * 48
METHODS = 400
PATTERNS = (65, 300)
#: Frames that the attacker has sent on a connection and that are not answered yet.
IN_FLIGHT = 32
#: Connections of an attack whose name says so.
CONNECTIONS = 10
#: Seconds between two calls of another client.
PAUSE = 0.01


# --- the gateway --------------------------------------------------------------------------------------------------


def topic_patterns(count: int) -> list[str]:
    """Return patterns that share their first word: one in four has a placeholder, one in four a wildcard before it."""
    kinds = ("app.area{}.#", "app.*.kind{}.#", "app.{{user_id}}.own{}.*", "app.#.last{}")
    return [kinds[number % 4].format(number) for number in range(count)]


def call_patterns(count: int) -> list[str]:
    return ["big.*", "quick.*", *(f"*.method{number}*" for number in range(count - 2))]


def make_service(methods: int) -> object:
    def method(self: object, first: int = 1, second: str = "", third: list[int] | None = None, **kwargs: Any) -> int:
        """Do something that takes a sentence to say.

        And another one, for those who want to know it in detail.
        """
        return 1

    names = {f"operation_{number}": method for number in range(methods)}
    return type("Big", (), {"_service_name": "big", "_version": "1.0.0", **names})()


class Turns:
    """The CPU time of each turn of an event loop, in seconds."""

    def __init__(self, loop: Any) -> None:
        self.seconds: list[float] = []
        run_once = loop._run_once

        def measured() -> None:
            began = time.thread_time()
            run_once()
            self.seconds.append(time.thread_time() - began)

        loop._run_once = measured

    def read(self) -> dict[str, float]:
        seconds, self.seconds = sorted(self.seconds), []
        total = sum(seconds)
        sums = list(itertools.accumulate(seconds))
        return {
            "cpu": total,
            **{
                name: next((each for each, so_far in zip(seconds, sums, strict=True) if so_far >= share * total), 0.0)
                for name, share in (("p50", 0.5), ("p99", 0.99))
            },
            "max": seconds[-1],
        }


def serve(patterns: int, mesh_url: str) -> None:
    end_with_parent()
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # its turns cannot be measured
    settings = Settings(
        mesh_url=mesh_url,
        jwt_key=KEY,
        expose=[*call_patterns(patterns), "demo.*"],
        expose_topics=[*topic_patterns(patterns), "quick.#"],
        targeted_topics=[],
        http="on",
        service_name=f"gateway-{secrets.token_hex(4)}",
        allowed_origins=[],
    )
    quick = type("Quick", (), {"_service_name": "quick", "echo": lambda self, **kwargs: kwargs})()
    services = {"big": make_service(METHODS), "quick": quick}
    mesh = EmbeddedMesh(services) if mesh_url.startswith("embedded") else None
    gateway = Gateway(settings, mesh=mesh)
    config = make_config(gateway.app, settings, ws_per_message_deflate=False, access_log=False)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    tune_collector()

    async def run() -> None:
        turns = Turns(asyncio.get_running_loop())

        def report() -> None:
            for _ in sys.stdin:
                print(json.dumps(turns.read()), flush=True)

        threading.Thread(target=report, daemon=True).start()
        print(listener.getsockname()[1], flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])

    asyncio.run(run())


# --- the attacker -------------------------------------------------------------------------------------------------


def made_up(count: int, allowed: bool = True) -> list[str]:
    if not allowed:
        return [f"nothing.{secrets.token_hex(8)}.here" for _ in range(count)]
    return [f"app.x{secrets.token_hex(4)}.{secrets.token_hex(4)}.last{random.choice((3, 7))}" for _ in range(count)]


def frame(kind: str, number: int, **payload: Any) -> str:
    return json.dumps({"type": kind, "payload": {"id": str(number), **payload}})


def subscriptions() -> Iterator[str]:
    for number in itertools.count(0, 2):
        topics = made_up(100)
        yield frame("subscribe", number, topics=topics)
        yield frame("unsubscribe", number + 1, topics=topics)


def denied_subscriptions() -> Iterator[str]:
    for number in itertools.count():
        yield frame("subscribe", number, topics=[*made_up(99), *made_up(1, allowed=False)])


def descriptions() -> Iterator[str]:
    for number in itertools.count():
        yield frame("describe", number, service="big")


def nested() -> Iterator[str]:
    one = "[" * 20 + "1" + "]" * 20
    params = {"a": json.loads("[" + ",".join([one] * 1500) + "]")}
    head = json.dumps(params, separators=(",", ":"))
    for number in itertools.count():
        yield f'{{"type":"request","payload":{{"id":"{number}","service":"quick","method":"none","params":{head}}}}}'


def made_up_methods() -> Iterator[str]:
    for number in itertools.count():
        yield frame("request", number, service=f"s{secrets.token_hex(4)}", method=f"m{secrets.token_hex(4)}")


def calls() -> Iterator[str]:
    for number in itertools.count():
        yield frame("request", number, service="quick", method="echo", params={"text": "x" * 64})


ATTACKS: dict[str, Callable[[], Iterator[str]] | None] = {
    "ordinary calls": calls,
    "subscribe 100": subscriptions,
    "denied subscribe": denied_subscriptions,
    "describe 400": descriptions,
    "nested 64 kB": nested,
    "nested on 10 connections": nested,
    "made-up methods": made_up_methods,
    "documents": None,
}


async def attack(port: int, name: str) -> None:
    end_with_parent()
    frames = ATTACKS[name]
    token = issue_token(KEY, "mallory")
    if frames is None:
        await asyncio.gather(*(fetch(port, token) for _ in range(8)))
        return
    await asyncio.gather(*(flood(port, frames()) for _ in range(CONNECTIONS if name.endswith("connections") else 1)))


async def flood(port: int, frames: Iterator[str]) -> None:
    async with opened(port, "mallory") as connection:
        waiting = asyncio.Semaphore(IN_FLIGHT)
        resume_at = 0.0
        done: list[int] = [0, 0]
        loop = asyncio.get_running_loop()

        async def read() -> None:
            nonlocal resume_at
            async for text in connection:
                if str(text).startswith(('{"type":"response"', '{"type":"error"')):
                    waiting.release()
                    if "too_many_requests" in str(text)[-300:]:
                        retry = json.loads(text)
                        error = retry["payload"]["error"] if "payload" in retry else retry
                        resume_at = max(resume_at, loop.time() + (error["retry_after_ms"] or 0) / 1000)
                        done[1] += 1
                    else:
                        done[0] += 1
                        if done[0] % 100 == 0:
                            print(f"{done[0]} answered, {done[1]} over the limit", file=sys.stderr, flush=True)

        reading = asyncio.create_task(read())
        for text in frames:
            await waiting.acquire()
            while (pause := resume_at - loop.time()) > 0:
                await asyncio.sleep(pause + random.uniform(0, 0.2))
            await connection.send(text)
        await reading


async def fetch(port: int, token: str) -> None:
    """Fetch documents, each under another name of the host."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        path = random.choice(("openapi", "asyncapi"))
        host = f"{secrets.token_hex(6)}.example.com"
        head = (
            f"GET /{path}.json HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode())
        answer = await reader.read()
        while chunk := await reader.read(65536):
            answer += chunk
        writer.close()
        if b" 429 " in answer[:20] or b" 503 " in answer[:20]:
            await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def opened(port: int, user: str) -> AsyncIterator[ClientConnection]:
    async with connect(
        f"ws://127.0.0.1:{port}/ws",
        additional_headers={"Authorization": f"Bearer {issue_token(KEY, user)}"},
        compression=None,
        max_size=None,
        proxy=None,
    ) as connection:
        await connection.recv()
        yield connection


# --- others -------------------------------------------------------------------------------------------------------


async def call_for(port: int, seconds: float) -> list[float]:
    """Call for some seconds, at times that do not depend on the answers; return the sorted latencies, in seconds."""
    began: list[float] = []
    latencies: list[float] = []
    async with opened(port, "alice") as connection:

        async def read() -> None:
            async for text in connection:
                number = int(json.loads(text)["payload"]["id"])
                latencies.append(time.monotonic() - began[number])

        reading = asyncio.create_task(read())
        for number in range(int(seconds / PAUSE)):
            began.append(time.monotonic())
            await connection.send(frame("request", number, service="quick", method="echo", params={}))
            await asyncio.sleep(PAUSE * random.random() * 2)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while len(latencies) < len(began):
                    await asyncio.sleep(0.01)
        reading.cancel()
    return sorted(latencies)


def place(pid: int, *cores: int) -> None:
    """Give a process its cores, on systems where that can be done."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores)


def go_first() -> bool:
    """Have this process, without its children, go first on its cores; return whether the system permits it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (AttributeError, PermissionError):
        return False
    return True


async def describe(port: int) -> None:
    """Have the service describe itself once: on the embedded mesh that is the service's work, in the same process."""
    async with opened(port, "alice") as connection:
        await connection.send(frame("describe", 0, service="big"))
        await connection.recv()


async def measure(attack: str | None, patterns: int, seconds: float, mesh_url: str, core: int) -> str:
    def start(*arguments: str) -> Any:
        return asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.attacker"),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if os.environ.get("SHOW") else asyncio.subprocess.DEVNULL,
        )

    server = await start("serve", "--patterns", str(patterns), "--mesh-url", mesh_url)
    attacker = None
    try:
        port = int(await server.stdout.readline())
        place(server.pid, core)
        await call_for(port, 0.5)
        await describe(port)
        if attack is not None:
            attacker = await start("attack", "--only", attack, "--port", str(port))
            await asyncio.sleep(0.7)
        server.stdin.write(b"read\n")
        await server.stdout.readline()
        latencies = await call_for(port, seconds)
        server.stdin.write(b"read\n")
        turns = json.loads(await server.stdout.readline())
    finally:
        for process in (attacker, server):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
    columns = [
        *(percentile(latencies, share) * 1000 for share in (0.5, 0.99)),
        latencies[-1] * 1000,
        turns["cpu"] / seconds * 100,
        *(turns[name] * 1000 for name in ("p50", "p99", "max")),
    ]
    return f"| {attack or 'nothing'} | {patterns} | " + " | ".join(f"{value:.1f}" for value in columns) + " |"


async def main(options: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    if len(cores) < 2 or not go_first():
        print("The caller shares its processor with the attacker, whose load is a part of the latency.")
    place(os.getpid(), *(cores[1:] or cores))
    print("| attack | patterns | p50 (ms) | p99 | max | CPU (%) | turn p50 (ms) | p99 | max |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    chosen = options.only.split(",") if options.only else [None, *ATTACKS]
    for patterns in map(int, options.patterns.split(",")):
        for name in chosen:
            print(await measure(name, patterns, options.seconds, options.mesh_url, cores[0]), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", nargs="?", choices=("main", "serve", "attack"), default="main")
    parser.add_argument("--patterns", default=",".join(map(str, PATTERNS)))
    parser.add_argument("--only", default="")
    parser.add_argument("--port", type=int)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--mesh-url", default="embedded://demo")
    given = parser.parse_args()
    if given.role == "serve":
        serve(int(given.patterns), given.mesh_url)
    elif given.role == "attack":
        asyncio.run(attack(given.port, given.only))
    else:
        asyncio.run(main(given))
