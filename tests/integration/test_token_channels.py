"""The tokens of tests/kit/token_table.py at a real server, through every channel of a token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest

from nuropb_gateway_asgi.authentication.tokens import is_token
from tests.kit.clients import bearer_subprotocol, connect
from tests.kit.gateways import RunningGateway, make_gateway, run_gateway
from tests.kit.token_table import HONEST, HOSTILE, Row, clock_of_the_table, verifiers

ORIGIN: Final = "https://app.example.com"
COOKIE: Final = "Authorization"

#: The arguments of a handshake that carries a token through one channel.
Way = Callable[[str], dict[str, Any]]
IN_HANDSHAKES: Final[dict[str, Way]] = {
    "header": lambda token: {"headers": [("Authorization", f"Bearer {token}")]},
    "subprotocol": lambda token: {"subprotocols": ["nuropb.v1", bearer_subprotocol(token)]},
    "cookie": lambda token: {"headers": [("Cookie", f"{COOKIE}={quote(token, safe='')}")], "origin": ORIGIN},
}
#: For each verifier of the gateways in this file, every seventh hostile token and every other honest one, except tokens
#: that are too long for a header (see test_handshake.py).
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
    expected = "alice" if row in HONEST else ("unauthenticated", 4510)
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
            assert (await client.closed()).code == 4510
    await running.is_empty()


def test_the_sample_has_tokens_of_every_kind() -> None:
    judged = [row for row in ROWS if is_token(row.token)]
    assert len([row for row in judged if row in HONEST]) >= 10
    assert len([row for row in judged if row in HOSTILE]) >= 25
