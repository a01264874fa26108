"""Attacks of hostile clients on a server process. Afterwards it must serve other clients as before."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nuropb_gateway_asgi.authentication import issue_token
from tests.kit.attacks import COSTLY, FLOODS, Flood, bomb, frames, handshakes, head
from tests.kit.certificates import Certificate
from tests.kit.clients import CONTINUATION, TEXT, RawClient, connect
from tests.kit.processes import Process, run_forked, run_process
from tests.kit.waiting import in_time

KEY = "a secret that is long enough to sign with, and no longer"
TOKEN = issue_token(KEY, "alice")
BEARER = ("Authorization", f"Bearer {TOKEN}")
NOBODYS = "bm9ib2R5cw.dG9rZW4.aXRzZWxm"
#: Error codes of calls that the demo service or the policy refuses.
REFUSALS = {"method_not_found", "permission_denied", "invalid_params", "too_many_requests", "service_error"}
#: The most bytes of memory that an attack may cost a server.
GROWTH = 64 * 2**20

HANDSHAKES = handshakes(NOBODYS)


def request(method: str, path: str, *headers: tuple[str, str]) -> bytes:
    return head(f"{method} {path} HTTP/1.1", ("Host", "gateway"), ("Connection", "close"), *headers)


FRAMES = frames("secret")


@dataclass(frozen=True)
class Target:
    """A server process."""

    process: Process
    url: str

    async def is_well(self) -> None:
        async with connect(self.url, TOKEN) as client:
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2

    @contextlib.asynccontextmanager
    async def unharmed(self) -> AsyncIterator[None]:
        """Check that the context's body costs little memory, and that other clients are served meanwhile."""
        before = self._most_memory()
        yield
        await self.is_well()
        assert self._most_memory() - before < GROWTH

    def _most_memory(self) -> int:
        """Return the process's peak memory so far, in bytes."""
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert match is not None
        return int(match[1]) * 1024


SERVE = ("nuropb_gateway_asgi", "serve", "--port", "0", "--deflate")
UVICORN = ("uvicorn", "nuropb_gateway_asgi:app", "--port", "0", "--loop", "asyncio", "--no-server-header")
PROTOCOLS = (
    *("--http", "nuropb_gateway_asgi.server:HTTPProtocol"),
    *("--ws", "nuropb_gateway_asgi.server:WebSocketProtocol"),
    *("--ws-max-size", "262144"),
)


@contextlib.asynccontextmanager
async def running(*command: str, server_protocols: str = "on", **more: str) -> AsyncIterator[Target]:
    settings = {"JWT_KEY": KEY, "AUTH_COOKIE": "Authorization", "ALLOWED_ORIGINS": "https://app.example.com"} | more
    settings["SERVER_PROTOCOLS"] = server_protocols
    async with run_forked(*command, settings=settings) as process:
        last = (
            r"gateway is at wss?://127\.0\.0\.1:(\d+)" if command[:2] == SERVE[:2] else r"running on http://[^:]+:(\d+)"
        )
        port = (await process.line(last))[1]
        yield Target(process, f"ws://127.0.0.1:{port}/ws")


@pytest.fixture(
    params=[SERVE, (*UVICORN, *PROTOCOLS), UVICORN], ids=["serve", "uvicorn by name", "uvicorn"], scope="module"
)
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    """Run the server of the command line, or uvicorn with the same protocols: named, or put in place by the gateway."""
    async with running(*request.param) as target:
        yield target
        assert "Traceback" not in target.process.output


@contextlib.asynccontextmanager
async def connected(url: str, *headers: tuple[str, str], receive_buffer: int | None = None) -> AsyncIterator[RawClient]:
    async with RawClient.open(url, receive_buffer=receive_buffer) as raw:
        assert (await raw.handshake("/ws", BEARER, *headers)).startswith("HTTP/1.1 101 ")
        yield raw


@pytest.mark.parametrize("name", HANDSHAKES)
async def test_a_hostile_handshake_is_answered(target: Target, name: str) -> None:
    request, status = HANDSHAKES[name]
    async with target.unharmed(), RawClient.open(target.url) as raw:
        await raw.send(request)
        answer = (await raw.read_until(b"\r\n\r\n")).decode("latin-1")
        assert answer.startswith(f"HTTP/1.1 {status} ")
        if status == 101:
            return
        # The answer has neither the client's data nor texts of the libraries.
        answer += (await raw.ended()).decode("latin-1") if "connection: close" in answer.lower() else ""
        assert NOBODYS not in answer
        assert "websocket connection" not in answer.lower()
        assert "server: " not in answer.lower()


@pytest.mark.parametrize("name", FRAMES)
async def test_a_hostile_frame_ends_its_connection_only(target: Target, name: str) -> None:
    data, code = FRAMES[name]
    async with target.unharmed(), connected(target.url) as raw:
        await raw.send(data)
        if code is not None:
            assert await raw.close_code() == code


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_ended(target: Target, name: str) -> None:
    flood = FLOODS[name]
    async with target.unharmed(), connected(target.url, receive_buffer=4096) as raw:
        await pour(raw, flood)
        assert await raw.close_code() == flood.closed_with


async def pour(raw: RawClient, flood: Flood) -> None:
    with contextlib.suppress(ConnectionError):
        for piece in flood.pieces():
            await raw.send(piece)


async def test_others_are_served_during_all_floods_at_once(target: Target) -> None:
    async with target.unharmed(), contextlib.AsyncExitStack() as stack, connect(target.url, TOKEN) as client:
        attackers = [await stack.enter_async_context(connected(target.url)) for _ in FLOODS]
        floods = asyncio.gather(*(pour(raw, flood) for raw, flood in zip(attackers, FLOODS.values(), strict=True)))
        await client.result("demo.echo")
        while not floods.done():
            await client.result("demo.echo")
        await floods


async def test_costly_frames_are_answered_once_each_and_others_are_served_meanwhile(target: Target) -> None:
    async with target.unharmed(), connect(target.url, TOKEN) as attacker, connect(target.url, TOKEN) as client:
        wanted = [str(number) for number in range(10 * len(COSTLY))]

        async def attack() -> list[str]:
            for id_, make in zip(wanted, itertools.cycle(COSTLY.values()), strict=False):
                await attacker.send_text(make(id_))
            found = [(await attacker.wait_for(lambda frame: frame["type"] == "response"))["payload"] for _ in wanted]
            assert {each["error"]["code"] for each in found if each["error"]} <= REFUSALS
            return [each["id"] for each in found]

        attacking = asyncio.create_task(attack())
        await client.result("demo.echo")
        while not attacking.done():
            await client.result("demo.echo")
        assert sorted(await attacking) == sorted(wanted)
        assert await attacker.settled() == []


DEFLATE = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")
#: A compressed message is too big, or a protocol error if the connection is not compressed.
DEFUSED = (1009, 1002)


async def test_silent_clients_of_ten_addresses_leave_places_for_others() -> None:
    async with (
        running(*SERVE, MAX_CONNECTIONS="100", TCP="127.0.0.1:0") as target,
        contextlib.AsyncExitStack() as stack,
    ):
        port = (await target.process.line(r"listening on tcp://127\.0\.0\.1:(\d+)"))[1]
        for number in range(60):
            raw = await stack.enter_async_context(RawClient.open(target.url))
            forwarded = ("X-Forwarded-For", f"192.0.2.{number % 10}")
            assert (await raw.handshake("/ws", forwarded)).startswith("HTTP/1.1 101 ")
            await stack.enter_async_context(RawClient.open(f"tcp://127.0.0.1:{port}"))
        await target.is_well()
        async with connect(target.url, hello=False) as client:
            await client.send("authorize", token=TOKEN)
            await client.event("hello")
        async with RawClient.open(f"tcp://127.0.0.1:{port}") as raw:
            await raw.send(b'{"type":"authorize","payload":{"token":"%b"}}\n' % TOKEN.encode())
            assert b'"hello"' in await raw.read_until(b"\n")


async def test_handshakes_of_twelve_addresses_without_a_token_leave_others_their_rate() -> None:
    limits = {"HANDSHAKE_RATE": "1/min burst 100", "HANDSHAKE_RATE_PER_ADDRESS": "1/min burst 100"}
    async with running(*SERVE, **limits) as target:
        statuses = set()
        for number in range(180):
            for headers in ((), (("Authorization", f"Bearer {NOBODYS}"),), (("Sec-WebSocket-Protocol", "unknown"),)):
                async with RawClient.open(target.url) as raw:
                    forwarded = ("X-Forwarded-For", f"192.0.2.{number % 12}")
                    statuses.add((await raw.handshake("/ws", forwarded, *headers)).split()[1])
        assert statuses == {"101", "400", "401", "503"}
        await target.is_well()


#: Requests that a stranger can make without end, by the place where they are refused or served.
CHEAP = {
    "path": request("GET", f"/{'p' * 20_000}"),
    "address": request("GET", "/x", ("X-Forwarded-For", "9" * 14_000)),
    "path of a WebSocket": RawClient.upgrade(f"/{'p' * 20_000}"),
    "token": RawClient.upgrade("/ws", ("Authorization", f"Bearer {NOBODYS}")),
    "origin": RawClient.upgrade("/ws", ("Origin", f"https://{'e' * 5000}.example")),
    "subprotocol": RawClient.upgrade("/ws", ("Sec-WebSocket-Protocol", "x" * 5000)),
    "no token": RawClient.upgrade("/ws"),
    "invalid UTF-8": RawClient.upgrade("/ws"),
    "malformed HTTP": b"\x00\x01\x02 garbage\r\n\r\n",
    "long head": request("GET", "/", ("X-Long", "y" * 70_000)),
    "events": request("GET", f"/events?topic={'t' * 9000}", ("Authorization", f"Bearer {NOBODYS}")),
    "call": request("POST", "/rpc/a/b", ("Authorization", f"Bearer {NOBODYS}"), ("Content-Length", "0")),
    "method": request("GET", f"/rpc/a/{'m' * 5000}"),
    "contract": request("GET", "/asyncapi.json", ("Authorization", f"Bearer {NOBODYS}")),
    "health": request("GET", "/livez"),
    "line": b"\x00\xff\n" * 12,
    "token in a line": b'{"type":"authorize","payload":{"token":"%b"}}\n' % NOBODYS.encode(),
}
#: What follows the answer to some of them.
THEN = {"invalid UTF-8": RawClient.frame(b"\xff\xff")}


#: ``serve`` with a smaller bound on lines that never ends, so that the number of lines does not depend on time.
BOUNDED = """
import sys
from nuropb_gateway_asgi.observability import refusal_lines
refusal_lines.LINES, refusal_lines.SECONDS = 10, 1e9
from nuropb_gateway_asgi.__main__ import main
sys.exit(main(["serve", "--port", "0"]))
"""


async def test_no_request_of_a_stranger_fills_the_log() -> None:
    settings = {"JWT_KEY": KEY, "HTTP": "on", "TCP": "127.0.0.1:0", "ALLOWED_ORIGINS": "https://app.example.com"}
    settings |= {"HANDSHAKE_RATE": "off", "HANDSHAKE_RATE_PER_ADDRESS": "off"}
    async with run_process(sys.executable, "-c", BOUNDED, settings=settings) as process:
        tcp = (await process.line(r"listening on tcp://127\.0\.0\.1:(\d+)"))[1]
        port = (await process.line(r"gateway is at ws://127\.0\.0\.1:(\d+)"))[1]

        async def attack(name: str) -> None:
            is_line = "line" in name
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                async with RawClient.open(f"tcp://127.0.0.1:{tcp if is_line else port}") as raw:
                    await raw.send(CHEAP[name])
                    await raw.read_until(b"\n" if is_line else b"\r\n\r\n")
                    await raw.send(THEN.get(name, b""))

        for _ in range(15):
            await asyncio.gather(*map(attack, CHEAP))
        # Ten lines each about refusals, about refused requests, and about connections and other requests without a
        # token; and a few about the start, and about an overload.
        written = process.stdout + process.stderr
        assert len(written) <= 3 * 10 + 28
        assert max(map(len, written)) < 1000
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert sum("are left out: more than 10 in" in line for line in process.stderr) == 3


async def test_a_compression_bomb_goes_off_nowhere(target: Target) -> None:
    data = bomb(100 * 2**20)
    assert len(data) < 262144  # otherwise its size alone would exceed the limit
    async with target.unharmed(), connected(target.url, DEFLATE) as raw:
        await raw.send(data)
        assert await raw.close_code() in DEFUSED


async def test_a_compression_bomb_in_fragments_goes_off_nowhere(target: Target) -> None:
    data = bomb(100 * 2**20, fragment=300)
    async with target.unharmed(), connected(target.url, DEFLATE) as raw:
        with contextlib.suppress(ConnectionError):
            await raw.send(data)
        assert await raw.close_code() in DEFUSED


async def test_many_unfinished_messages_take_little(target: Target) -> None:
    half = RawClient.frame(b"x" * 1000, fin=False) + RawClient.frame(b"x", CONTINUATION, fin=False) * 1000
    async with target.unharmed(), contextlib.AsyncExitStack() as stack:
        for _ in range(50):
            raw = await stack.enter_async_context(connected(target.url))
            await raw.send(half + RawClient.frame(b"x" * 60000, TEXT)[:30000])


@pytest.mark.parametrize("target", [SERVE], ids=["serve"], indirect=True)
async def test_who_does_not_finish_a_request_is_hung_up_on_within_ten_seconds(target: Target, tmp_path: Path) -> None:
    request = RawClient.upgrade("/ws", BEARER)
    loop = asyncio.get_running_loop()

    async def wait(start: bytes, drip: bytes, url: str = target.url, *, idles: bool = False) -> bytes:
        async with RawClient.open(url) as raw:
            began = loop.time()
            await raw.send(start)

            async def trickle() -> None:
                for position in range(len(drip)):
                    await asyncio.sleep(0.5)
                    await raw.send(drip[position : position + 1])

            trickling = asyncio.create_task(trickle())
            try:
                async with in_time(9 if idles else 15):
                    answer = await raw.ended()
            finally:
                trickling.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await trickling
            # Not earlier than after 9 s: a slow client that finishes within that time is served.
            assert idles or loop.time() - began > 9
            return answer

    get = b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n"
    certificate = Certificate.make(tmp_path)
    tls = ("--ssl-certfile", str(certificate.certificate), "--ssl-keyfile", str(certificate.key))
    async with running(*SERVE, *tls) as with_tls:
        answers: list[bytes] = await together(
            wait(b"", b""),
            wait(b"", request),
            wait(request[:-2], b""),
            wait(request[:-2], b"X: " + b"x" * 100),
            wait(get, b"", idles=True),
            wait(get, request),
            wait(b"", b"", with_tls.url),
        )
    for answer in answers:
        assert answer == b"" or answer.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 200 "))
    await target.is_well()


async def together(*waits: Awaitable[bytes]) -> list[bytes]:
    return list(await asyncio.gather(*waits))


async def test_plain_uvicorn_survives_what_it_does_not_answer() -> None:
    async with running(*UVICORN, server_protocols="off") as target:
        for request, _ in HANDSHAKES.values():
            async with RawClient.open(target.url) as raw:
                with contextlib.suppress(ConnectionError):
                    await raw.send(request)
                    raw.finish()
        for data, _ in FRAMES.values():
            async with connected(target.url) as raw:
                await raw.send(data)
                raw.abort()
        async with connected(target.url, DEFLATE) as raw:
            await raw.send(bomb(20 * 2**20))
            assert await raw.close_code() == 1009
        await target.is_well()
