"""Tokens on a live connection: expiry, refresh, refused refreshes."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from nuropb_gateway_asgi import Gateway, Identity, Settings
from nuropb_gateway_asgi.authentication import issue_token
from tests.integration.websocket.conftest import BRIEFLY, LONG
from tests.kit.clients import Client, connect, refusal
from tests.kit.gateways import SERVERS, RunningGateway, Server, authorise_from_token, make_gateway, run_gateway
from tests.kit.tokens import SECRET


def read_claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


async def test_the_token_expires(running: RunningGateway) -> None:
    async with connect(running.url, f"alice:for:{BRIEFLY}") as client:
        await client.request("demo.slow", LONG)
        closed = await client.closed()
        assert (closed.code, closed.frames) == (4005, [])


@pytest.mark.parametrize("server", SERVERS)
async def test_the_leeway_holds_for_the_whole_life_of_a_connection(server: Server) -> None:
    # The leeway is chosen such that one token is within it for the whole test, and the other ends during the test.
    gateway = Gateway(Settings(jwt_key=SECRET, jwt_leeway=60, allowed_origins=[], overload_delay=0.0))
    kept, brief = issue_token(SECRET, "alice", lifetime=-5), issue_token(SECRET, "bob", lifetime=-56)
    async with run_gateway(gateway, server=server) as running:
        async with connect(running.url, kept) as alice, connect(running.url, brief) as bob:
            for client, token in ((alice, kept), (bob, brief)):
                assert client.hello["expires_at"] == read_claims(token)["exp"] < time.time()
            assert await bob.result("demo.echo") == {}
            assert (await bob.closed()).code == 4005
            assert await alice.result("demo.echo") == {}
            assert (await alice.ask("authorize", token=kept))["result"] == {"expires_at": alice.hello["expires_at"]}
        assert (await refusal(running.url, issue_token(SECRET, "bob", lifetime=-61))).status == 401


async def test_a_newer_token_keeps_the_connection(running: RunningGateway) -> None:
    async with connect(running.url, f"alice:for:{BRIEFLY}") as client:
        answer = await client.ask("authorize", token="alice:for:1000", trace_id="t")
        assert answer["result"]["expires_at"] > client.hello["expires_at"]
        assert answer["trace_id"] == "t"
        assert (await client.result("demo.whoami"))["Authorization"] == "Bearer alice:for:1000"
        async with connect(running.url, f"alice:for:{BRIEFLY}") as other:
            assert (await other.closed()).code == 4005
        assert await client.result("demo.echo") == {}
        # A token that expires earlier shortens the connection.
        assert (await client.ask("authorize", token="alice:for:0.05"))["error"] is None
        assert (await client.closed()).code == 4005


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("bad", "unauthenticated"),
        ("", "unauthenticated"),
        ("alice:for:0", "unauthenticated"),
        ("bob", "permission_denied"),
    ],
)
async def test_a_token_that_does_not_do_changes_nothing(client: Client, token: str, code: str) -> None:
    assert (await client.ask("authorize", token=token))["error"]["code"] == code
    assert (await client.result("demo.whoami"))["Authorization"] == "Bearer alice"


async def test_authorize_without_an_id_is_answered_too(client: Client) -> None:
    await client.send("authorize", token="alice:2")
    assert "expires_at" in (await client.next())["payload"]["result"]
    await client.send("authorize", token="bad")
    answer = await client.next()
    error = answer if answer["type"] == "error" else answer["payload"]["error"]
    assert error["code"] == "unauthenticated"


async def test_a_flood_of_tokens_keeps_one_authenticator_busy() -> None:
    busy = most = 0
    opened = asyncio.Event()

    async def slow(token: str) -> Identity | None:
        nonlocal busy, most
        answer = authorise_from_token(token)
        if token != "alice":
            busy += 1
            most = max(most, busy)
            await opened.wait()
            busy -= 1
        return None if answer is None else Identity(user_id="alice", username="Alice", token=token)

    async with run_gateway(make_gateway(authenticator=slow)) as running, connect(running.url, "alice") as client:
        for number in range(50):
            await client.send("authorize", token=f"alice:{number}", id=str(number))
        assert await client.result("demo.echo") == {}  # nothing waits for the authenticator
        opened.set()
        answers = [await client.answer(str(number)) for number in range(50)]
        assert most == 1
        refused = [answer["error"]["code"] for answer in answers if answer["error"] is not None]
        assert refused == ["too_many_requests"] * 49
        assert (await client.ask("authorize", token="alice:50"))["error"] is None


async def test_an_authenticator_that_fails_later(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(token: str) -> Identity | None:
        if token != "alice":
            raise ZeroDivisionError("secret")
        return Identity(user_id="alice", username="Alice", token=token)

    async with run_gateway(make_gateway(authenticator=broken)) as running, connect(running.url, "alice") as client:
        assert (await client.ask("authorize", token="alice:2"))["error"]["code"] == "internal"
        assert await client.result("demo.echo") == {}
    assert "secret" not in caplog.text
