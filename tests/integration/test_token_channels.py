"""The tokens of tests/kit/token_table.py at a real server, through every channel of a token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.authentication.tokens import is_token
from tests.kit.clients import bearer_subprotocol, connect, refusal
from tests.kit.gateways import DEADLINE, RunningGateway, make_gateway, run_gateway
from tests.kit.processes import run_forked
from tests.kit.token_table import HONEST, HOSTILE, Row, clock_of_the_table, verifiers
from tests.servers.rabbitmq import free_port

ORIGIN: Final = "https://app.example.com"
COOKIE: Final = "Authorization"

#: The arguments of a handshake that carries a token through one channel.
Way = Callable[[str], dict[str, Any]]
IN_HANDSHAKES: Final[dict[str, Way]] = {
    "header": lambda token: {"headers": [("Authorization", f"Bearer {token}")]},
    "subprotocol": lambda token: {"subprotocols": ["nuropb.v1", bearer_subprotocol(token)]},
    "cookie": lambda token: {"headers": [("Cookie", f"{COOKIE}={quote(token, safe='')}")], "origin": ORIGIN},
}
#: For each verifier of the gateways in this file, every seventh hostile token and every other honest one, except long
#: ones, which are tested by the end of this file.
ROWS: Final = [
    row
    for verifier in ("HS", "ES", "SET")
    for rows, step in ((HONEST, 2), (HOSTILE, 7))
    for row in [row for row in rows if row.verifier == verifier and len(row.token) < 4000][::step]
]


@pytest.fixture(scope="module", autouse=True)
def _stopped_clock() -> Iterator[None]:
    with clock_of_the_table():
        yield


@pytest.fixture(scope="module")
async def gateways() -> AsyncIterator[dict[str, RunningGateway]]:
    options: dict[str, Any] = {"allowed_origins": [ORIGIN], "auth_cookie": COOKIE}
    async with verifiers() as judges:
        made = {name: make_gateway(authenticator=judges[name], **options) for name in ("HS", "ES", "SET")}
        async with run_gateway(made["HS"]) as hs, run_gateway(made["ES"]) as es, run_gateway(made["SET"]) as set_:
            yield {"HS": hs, "ES": es, "SET": set_}


#: The rows of genuine tokens whose time is over.
EXPIRED = {"exp with another name", "expired"}


def _name(row: Row) -> str:
    return f"{row.verifier}: {row.name}"


async def _outcome(url: str, **options: Any) -> Any:
    """Return the user of a connection, or its refusal."""
    async with connect(url, hello=False, **({"origin": ORIGIN} | options)) as client:
        frame = await client.next()
        if frame["type"] == "error":
            return frame["code"], (await client.closed()).code
        return frame["payload"]["event"]["user_id"]


@pytest.mark.parametrize("row", ROWS, ids=_name)
async def test_a_token_is_judged_the_same_by_whatever_way_it_comes(
    gateways: dict[str, RunningGateway], row: Row
) -> None:
    running = gateways[row.verifier]
    code = 4005 if row.name in EXPIRED else 4510
    expected = "alice" if row in HONEST else ("unauthenticated", code)
    if is_token(row.token):  # other texts are not valid in a header
        for name, way in IN_HANDSHAKES.items():
            assert await _outcome(running.url, **way(row.token)) == expected, name
    async with connect(running.url, hello=False) as client:
        await client.send("authorize", token=row.token)
        frame = await client.next()
        if expected == "alice":
            assert frame["payload"]["event"]["user_id"] == "alice"
        elif frame["code"] != "bad_request":  # no string of the protocol: another first frame may follow
            assert frame["code"] == "unauthenticated"
            assert (await client.closed()).code == code
    await running.is_empty()


def test_the_sample_has_tokens_of_every_kind() -> None:
    judged = [row for row in ROWS if is_token(row.token)]
    assert len([row for row in judged if row in HONEST]) >= 10
    assert len([row for row in judged if row in HOSTILE]) >= 25


# --- long tokens, at servers as users start them

KEY: Final = "a secret that is long enough to sign with, and no longer"
SERVE: Final = ("nuropb_gateway_asgi", "serve", "--port", "0")
UVICORN: Final = (
    *("uvicorn", "nuropb_gateway_asgi:app", "--port", "0"),
    *("--http", "nuropb_gateway_asgi.server:HTTPProtocol"),
    *("--ws", "nuropb_gateway_asgi.server:WebSocketProtocol"),
)


def long_token(size: int) -> str:
    """Return a token with so many characters, or up to two fewer where base64url has no such length."""
    padding = "x" * ((size - len(issue_token(KEY, "alice", groups=""))) * 3 // 4)
    return issue_token(KEY, "alice", groups=padding)


LONGEST: Final = long_token(16384)
#: Longer than any token, and short enough for a line of a head.
TOO_LONG: Final = long_token(16400)


@pytest.fixture(scope="module", params=[SERVE, UVICORN], ids=["serve", "uvicorn"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[int, int]]:
    """Run a server with all kinds of connections; return its ports for HTTP and TCP."""
    tcp = free_port()
    settings = {"JWT_KEY": KEY, "ALLOWED_ORIGINS": ORIGIN, "AUTH_COOKIE": COOKIE, "HTTP": "on"}
    async with run_forked(*request.param, settings=settings | {"TCP": f"127.0.0.1:{tcp}"}) as process:
        pattern = (
            r"gateway is at ws://127\.0\.0\.1:(\d+)" if request.param is SERVE else r"running on http://[^:]+:(\d+)"
        )
        yield int((await process.line(pattern))[1]), tcp
        assert "Traceback" not in process.output


async def first_frame(port: int, token: str) -> Any:
    """Authorise by TCP, and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(json.dumps({"type": "authorize", "payload": {"token": token}}).encode() + b"\n")
    frame = json.loads(await asyncio.wait_for(reader.readline(), DEADLINE))
    writer.close()
    await writer.wait_closed()
    return frame


async def test_a_token_of_16_kib_is_accepted_and_a_longer_one_refused(server: tuple[int, int]) -> None:
    port, tcp = server
    assert 16381 <= len(LONGEST) <= 16384 < len(TOO_LONG)
    url = f"ws://127.0.0.1:{port}/ws"
    for token, expected in ((LONGEST, "alice"), (TOO_LONG, ("unauthenticated", 4510))):
        for name, way in IN_HANDSHAKES.items():
            assert await _outcome(url, **way(token)) == expected, name
        async with connect(url, hello=False) as client:
            await client.send("authorize", token=token)
            frame = await client.next()
            assert frame["type"] == ("event" if expected == "alice" else "error")
        assert (await first_frame(tcp, token))["type"] == ("event" if expected == "alice" else "error")
        async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
            response = await http.post(
                f"http://127.0.0.1:{port}/rpc/demo/whoami", json={}, headers={"Authorization": f"Bearer {token}"}
            )
            assert response.status_code == (200 if expected == "alice" else 401)


async def test_a_token_that_no_head_has_room_for_is_refused_by_a_status(server: tuple[int, int]) -> None:
    port, _ = server
    url, huge = f"ws://127.0.0.1:{port}/ws", long_token(25000)
    for name in ("header", "subprotocol"):
        assert (await refusal(url, origin=ORIGIN, **IN_HANDSHAKES[name](huge))).status == 431, name
