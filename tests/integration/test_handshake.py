"""Handshakes: accepted and refused ones, the form of refusals, and that refused clients leave nothing behind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jws

from nuropb_gateway_asgi import Gateway, Identity, Settings
from nuropb_gateway_asgi.authentication import issue_token
from tests.kit.clients import Closed, RawClient, bearer_subprotocol, connect, refusal, turned_away
from tests.kit.gateways import RunningGateway, eventually, make_gateway, run_gateway

ORIGIN = "https://app.example.com"
ORIGINS = [ORIGIN, "https://.example.org", "http://localhost:3000"]
COOKIE = "Authorization"


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[RunningGateway]:
    async with run_gateway(allowed_origins=ORIGINS, auth_cookie=COOKIE) as running:
        yield running


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A gateway; no test may leave anything of it in use."""
    yield shared
    await shared.is_empty()


class Gate:
    """An authenticator that makes all clients wait until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0

    async def __call__(self, token: str) -> Identity | None:
        self.waiting += 1
        await self.opened.wait()
        return Identity(user_id="alice", username="Alice", token=token)


async def whoami(url: str, *headers: tuple[str, str], **options: Any) -> str:
    """Return the user whose token the services see."""
    async with connect(url, headers=headers, **options) as client:
        context = await client.result("demo.whoami")
        token: str = context["Authorization"].removeprefix("Bearer ")
        assert context["user_id"] == client.hello["user_id"] == token.partition(":")[0]
        return token


# --- where the token comes from ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["Bearer alice", "bearer alice", "BEARER  alice", "Bearer :alice", "Bearer:alice", "Bearer : alice"],
)
async def test_a_token_in_the_header(running: RunningGateway, value: str) -> None:
    assert await whoami(running.url, ("Authorization", value)) == "alice"


async def test_a_token_in_a_subprotocol(running: RunningGateway) -> None:
    async with connect(running.url, subprotocols=["nuropb.v1", bearer_subprotocol("alice:ÿ".replace("ÿ", "~"))]) as c:
        assert c.hello["user_id"] == "alice"
        assert c.subprotocol == "nuropb.v1"


@pytest.mark.parametrize("value", ["alice", "Bearer%20alice", '"alice"'])
async def test_a_token_in_a_cookie(running: RunningGateway, value: str) -> None:
    cookie = ("Cookie", f"other=1; {COOKIE}={value}; another=2")
    assert await whoami(running.url, cookie, origin=ORIGIN) == "alice"


async def test_a_token_in_the_first_frame(running: RunningGateway) -> None:
    async with connect(running.url, hello=False) as client:
        await client.send("authorize", token="alice:for:100", id="a", trace_id="t")
        hello = await client.next()
        assert hello["payload"]["topic"] == "hello"
        assert hello["payload"]["event"]["user_id"] == "alice"
        answer = await client.next()
        assert answer["type"] == "response"
        assert answer["payload"] == {
            "id": "a",
            "trace_id": "t",
            "result": {"expires_at": hello["payload"]["event"]["expires_at"]},
            "error": None,
        }
        assert await client.result("demo.add", {"a": 1, "b": 2}) == 3


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer alice"), ("Authorization", "Bearer alice")],
        [("Authorization", "Bearer alice"), ("Cookie", f"{COOKIE}=alice")],
        [("Cookie", f"{COOKIE}=alice; {COOKIE}=alice")],
    ],
)
async def test_the_same_token_twice(running: RunningGateway, headers: list[tuple[str, str]]) -> None:
    assert await whoami(running.url, *headers, origin=ORIGIN) == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer alice"), ("Authorization", "Bearer bob")],
        [("Authorization", "Bearer alice"), ("Authorization", "Basic bob")],
        [("Authorization", "Bearer alice, Bearer alice")],
        [("Authorization", "Bearer alice"), ("Cookie", f"{COOKIE}=bob")],
        [("Cookie", f"{COOKIE}=alice; {COOKIE}=bob")],
        [("Cookie", f"{COOKIE}=alice"), ("Cookie", f"{COOKIE}=bob")],
    ],
)
async def test_two_different_tokens(running: RunningGateway, headers: list[tuple[str, str]]) -> None:
    code, frame = await turned_away(running.url, headers=headers, origin=ORIGIN)
    assert (code, frame["code"]) == (4510, "unauthenticated")


async def test_different_tokens_in_subprotocols(running: RunningGateway) -> None:
    alice, bob = bearer_subprotocol("alice"), bearer_subprotocol("bob")
    assert (await refusal(running.url, "alice", subprotocols=["nuropb.v1", bob])).status == 401
    assert (await refusal(running.url, subprotocols=["nuropb.v1", alice, bob])).status == 401
    assert await whoami(running.url, ("Authorization", "Bearer bob"), subprotocols=["nuropb.v1", bob, bob]) == "bob"


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Basic YWxpY2U6eA==")],
        [("Authorization", "alice")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", "Bearer alice bob")],
        [("Authorization", "")],
        [("Authorization", "Bearer al\tice")],
        [("Sec-WebSocket-Protocol", "nuropb.v1, base64url.bearer.nuropb.")],
        [("Sec-WebSocket-Protocol", "nuropb.v1, base64url.bearer.nuropb.YWxpY2U=")],
        [("Sec-WebSocket-Protocol", "nuropb.v1, base64url.bearer.nuropb.!!!!")],
        [("Sec-WebSocket-Protocol", "nuropb.v1, base64url.bearer.nuropb.YWxp\u00e9")],
    ],
)
async def test_a_token_that_cannot_be_read(running: RunningGateway, headers: list[tuple[str, str]]) -> None:
    async with RawClient.open(running.url) as raw:
        response = await raw.handshake("/ws", *headers)
        # The server itself refuses invalid HTTP; the gateway never sees it.
        assert response.startswith(("HTTP/1.1 401 ", "HTTP/1.1 400 "))


async def test_a_token_in_the_query_string_is_none(running: RunningGateway) -> None:
    async with connect(f"{running.url}?token=alice&access_token=alice&Authorization=Bearer%20alice", hello=False) as c:
        await c.send("request", service="demo", method="whoami")
        assert (await c.error())["code"] == "unauthenticated"


async def test_without_a_cookie_name_no_cookie_is_read() -> None:
    async with (
        run_gateway(allowed_origins=ORIGINS) as running,
        connect(running.url, origin=ORIGIN, headers=[("Cookie", f"{COOKIE}=alice")], hello=False) as client,
    ):
        await client.send("ping")
        assert (await client.next())["code"] == "unauthenticated"


@pytest.mark.parametrize(("origin", "status"), [(None, 403), ("https://evil.example", 403), ("null", 403)])
async def test_a_cookie_needs_an_allowed_origin(running: RunningGateway, origin: str | None, status: int) -> None:
    refused = await refusal(running.url, headers=[("Cookie", f"{COOKIE}=alice")], origin=origin)
    assert refused.status == status


# --- origins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        ORIGIN,
        "HTTPS://APP.Example.COM",
        "https://app.example.com:443",
        "https://a.example.org",
        "https://a.b.example.org",
        "http://localhost:3000",
    ],
)
async def test_an_allowed_origin(running: RunningGateway, origin: str) -> None:
    async with connect(running.url, "alice", origin=origin) as client:
        assert client.hello["user_id"] == "alice"


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com.evil.example",
        "https://evil-app.example.com",
        "https://evilapp.example.com",
        "https://example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com:0443",
        "https://app.example.com/",
        "https://app.example.com@evil.example",
        "https://evil.example#app.example.com",
        "https://app.example.com https://evil.example",
        "https://example.org",
        "https://.example.org",
        "https://evilexample.org",
        "https://a.example.org:8443",
        "http://a.example.org",
        "http://localhost",
        "http://localhost:3001",
        "http://127.0.0.1:3000",
        "https://app\u0435.example.com".encode().decode("latin-1"),
        "null",
        "",
        "*",
    ],
)
async def test_an_origin_that_is_not_allowed(running: RunningGateway, origin: str) -> None:
    for token in (b"alice", b"bad"):
        async with RawClient.open(running.url) as raw:
            bearer = ("Authorization", f"Bearer {token.decode()}")
            response = await raw.handshake("/ws", ("Origin", origin), bearer)
            assert response.startswith("HTTP/1.1 403 ")


async def test_two_origins_are_not_allowed(running: RunningGateway) -> None:
    async with RawClient.open(running.url) as raw:
        response = await raw.handshake("/ws", ("Origin", ORIGIN), ("Origin", ORIGIN), ("Authorization", "Bearer alice"))
        assert response.startswith(("HTTP/1.1 403 ", "HTTP/1.1 400 "))  # from the gateway, or from the server before it


async def test_every_origin_may_be_allowed() -> None:
    async with run_gateway(allowed_origins=["*"]) as running:
        for origin in ("https://evil.example", "null"):
            async with connect(running.url, "alice", origin=origin) as client:
                assert client.hello["user_id"] == "alice"


async def test_in_development_pages_of_this_machine_are_allowed() -> None:
    async with run_gateway() as running:
        for origin in ("http://localhost:5173", "http://127.0.0.1", "https://[::1]:8443"):
            async with connect(running.url, "alice", origin=origin) as client:
                assert client.hello["user_id"] == "alice"
        for origin in ("http://localhost.evil.example", "https://app.example.com", "null"):
            assert (await refusal(running.url, "alice", origin=origin)).status == 403


# --- how a refusal looks ----------------------------------------------------------------------------------------


async def test_no_valid_token_without_an_origin(running: RunningGateway) -> None:
    refused = await refusal(running.url, "bad-secret")
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert "Retry-After" not in refused.headers
    assert "secret" not in refused.body


async def test_no_valid_token_from_a_browser(running: RunningGateway) -> None:
    code, frame = await turned_away(running.url, "bad-secret", origin=ORIGIN)
    assert code == 4510
    assert frame == {
        "type": "error",
        "error": "NuropbAuthenticationError",
        "description": "A valid bearer token is required",
        "code": "unauthenticated",
        "retryable": False,
    }


async def test_a_refused_browser_learns_its_subprotocol_and_not_its_token(running: RunningGateway) -> None:
    offered = [bearer_subprotocol("bad"), "nuropb.v1"]
    async with connect(running.url, subprotocols=offered, origin=ORIGIN, hello=False) as client:
        assert client.subprotocol == "nuropb.v1"
        assert (await client.closed()).code == 4510


async def test_the_token_is_never_echoed(running: RunningGateway) -> None:
    token = bearer_subprotocol("alice")
    for offered in (f"{token}, nuropb.v1", f"nuropb.v1, {token}", f"nuropb.v1,{token},nuropb.v2"):
        async with RawClient.open(running.url) as raw:
            response = await raw.handshake("/ws", ("Sec-WebSocket-Protocol", offered))
            assert response.startswith("HTTP/1.1 101 ")
            assert "sec-websocket-protocol: nuropb.v1\r\n" in response.lower()
            assert token not in response


@pytest.mark.parametrize("offered", [["nuropb.v2"], ["mqtt", bearer_subprotocol("alice")], ["NUROPB.V1"]])
async def test_an_unknown_subprotocol(running: RunningGateway, offered: list[str]) -> None:
    refused = await refusal(running.url, "alice", subprotocols=offered)
    assert refused.status == 400
    code, frame = await turned_away(running.url, "alice", subprotocols=offered, origin=ORIGIN)
    assert (code, frame["code"]) == (4505, "bad_request")


@pytest.mark.parametrize(
    "offered",
    [
        "nuropb.bearer.c2VjcmV0",
        "BEARER.c2VjcmV0",
        "access_token",
        "Authorization",
        "my-secret",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.sig",
        "c2VjcmV0LXRoYXQtaXMtbG9uZw",
        "x" * 25,
        "123456",
    ],
)
async def test_what_may_be_a_token_is_not_selected_as_a_subprotocol(running: RunningGateway, offered: str) -> None:
    async with RawClient.open(running.url) as raw:
        response = await raw.handshake("/ws", ("Origin", ORIGIN), ("Sec-WebSocket-Protocol", offered))
        assert response.startswith("HTTP/1.1 101 ")
        assert offered.lower() not in response.lower()
        assert await raw.close_code() == 4505


async def test_only_the_subprotocol_of_the_token_is_offered(running: RunningGateway) -> None:
    """The subprotocol that carries a token is not a protocol, so the gateway must not choose it."""
    async with RawClient.open(running.url) as raw:
        response = await raw.handshake(
            "/ws", ("Origin", ORIGIN), ("Sec-WebSocket-Protocol", bearer_subprotocol("alice"))
        )
        assert response.startswith("HTTP/1.1 101 ")
        assert "sec-websocket-protocol" not in response.lower()
        assert await raw.close_code() == 4505


async def test_no_subprotocol_is_version_one(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        assert client.subprotocol is None
        assert client.hello["protocol"] == "nuropb.v1"


async def test_a_gateway_that_drains_lets_nobody_in() -> None:
    async with run_gateway(allowed_origins=ORIGINS) as running:
        await running.gateway.drain()
        refused = await refusal(running.url, "alice")
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        code, frame = await turned_away(running.url, "alice", origin=ORIGIN)
        assert code == 1013
        assert frame["retryable"] is True
        assert frame["retry_after_ms"] > 0
        assert (await refusal(running.url, "alice", origin="https://evil.example")).status == 403


async def test_more_connections_than_the_process_may_have() -> None:
    async with run_gateway(allowed_origins=ORIGINS, max_connections=2) as running:
        async with connect(running.url, "alice"), connect(running.url, hello=False):  # the second is not authorised
            refused = await refusal(running.url, "bob")
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
            code, frame = await turned_away(running.url, "bob", origin=ORIGIN)
            assert (code, frame["code"]) == (1013, "too_many_requests")
            assert frame["retry_after_ms"] > 0
            assert (await refusal(running.url, "bob", origin="https://evil.example")).status == 403
            assert len(running.gateway.handler_manager) == 1
        await running.is_empty()
        async with connect(running.url, "bob"):
            pass


async def test_more_connections_than_a_user_may_have() -> None:
    async with run_gateway(allowed_origins=ORIGINS, max_connections_per_user=2) as running:
        async with (
            connect(running.url, "alice"),
            connect(running.url, "alice:2") as second,
            connect(running.url, "bob"),
        ):
            refused = await refusal(running.url, "alice:3")
            assert refused.status == 429
            assert int(refused.headers["Retry-After"]) > 0
            code, frame = await turned_away(running.url, "alice:3", origin=ORIGIN)
            assert (code, frame["code"]) == (4504, "too_many_requests")
            async with connect(running.url, hello=False) as by_frame:
                await by_frame.send("authorize", token="alice:3")
                closed = await by_frame.closed()
                assert closed.code == 4504
                assert [frame["type"] for frame in closed.frames] == ["error"]
            assert len(running.gateway.handler_manager) == 3
            second.abort()
            await eventually(lambda: len(running.gateway.handler_manager) == 2)
            async with connect(running.url, "alice:3"):
                pass
        await running.is_empty()


def forwarded_for(address: str) -> list[tuple[str, str]]:
    """Return the header that a proxy adds; uvicorn trusts it from this machine."""
    return [("X-Forwarded-For", address)]


async def test_a_flood_of_handshakes_is_for_its_address_alone_to_feel() -> None:
    limited = run_gateway(
        allowed_origins=ORIGINS, handshake_rate_per_address="1/h burst 3", handshake_rate="1/h burst 5"
    )
    flood = forwarded_for("192.0.2.1")
    async with limited as running:
        for _ in range(3):
            async with connect(running.url, "alice", headers=flood):
                pass
        refused = await refusal(running.url, "alice", headers=flood)
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        code, frame = await turned_away(running.url, "alice", headers=flood, origin=ORIGIN)
        assert (code, frame["code"]) == (1013, "too_many_requests")
        for address in ("192.0.2.2", "192.0.2.3"):
            async with connect(running.url, "bob", headers=forwarded_for(address)):
                pass
        assert (await refusal(running.url, "bob", headers=forwarded_for("192.0.2.4"))).status == 503  # a limit for all


async def test_who_guesses_tokens_comes_to_the_limit_ten_times_as_fast() -> None:
    async with run_gateway(handshake_rate_per_address="1/h burst 20") as running:
        statuses = [(await refusal(running.url, "bad")).status for _ in range(3)]
        assert statuses == [401, 401, 503]


async def test_more_connections_than_an_address_may_have() -> None:
    async with run_gateway(max_connections_per_address=1) as running:
        async with connect(running.url, "alice"):
            assert (await refusal(running.url, "bob")).status == 503
            async with connect(running.url, "bob", headers=forwarded_for("192.0.2.2")):
                pass
        await running.is_empty()
        async with connect(running.url, "bob"):
            pass


async def test_connections_at_once_are_counted_too() -> None:
    """All connections have passed the first check when the first one is registered."""
    gate = Gate()
    async with run_gateway(make_gateway(authenticator=gate, max_connections_per_user=3)) as running:
        async with contextlib.AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(RawClient.open(running.url)) for _ in range(10)]
            for raw in raws:
                await raw.send(RawClient.upgrade("/ws", ("Authorization", "Bearer alice")))
            await eventually(lambda: gate.waiting == 10)
            gate.opened.set()
            heads = [await raw.read_until(b"\r\n\r\n") for raw in raws]
            assert sorted(head[9:12] for head in heads) == [b"101"] * 3 + [b"429"] * 7
            assert running.occupancy[1] == 3
        await running.is_empty()


async def test_refusals_do_not_fill_the_log(running: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert (await refusal(running.url, "bad-secret")).status == 401
        await running.is_empty()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "secret" not in caplog.text


# --- the first frame --------------------------------------------------------------------------------------------


async def test_nothing_goes_before_authorize(running: RunningGateway) -> None:
    frames: list[Any] = [
        {"type": "request", "payload": {"service": "demo", "method": "echo", "id": "1"}},
        {"type": "command", "payload": {"service": "demo", "method": "echo"}},
        {"type": "subscribe", "payload": {"topics": ["demo.#"]}},
        {"type": "describe"},
        {"type": "cancel", "payload": {"id": "1"}},
        {"type": "ping"},
    ]
    async with connect(running.url, hello=False) as client:
        for frame in frames:
            await client.send_frame(frame)
            answer = await client.next()
            expected = frame.get("payload", {}).get("id") if frame["type"] != "cancel" else None
            if expected is None:
                assert (answer["type"], answer["code"]) == ("error", "unauthenticated")
            else:
                assert (answer["payload"]["id"], answer["payload"]["error"]["code"]) == (expected, "unauthenticated")
        assert running.occupancy == (1, 0, 0)
        for text in ("{", '{"type":"authorize"}'):
            await client.send_text(text)
            assert (await client.error())["code"] == "bad_request"
        await client.send("authorize", token=1, id="wrong", trace_id="t")
        answer = await client.answer("wrong")
        assert (answer["trace_id"], answer["error"]["code"]) == ("t", "bad_request")
        await client.send("authorize", token="alice")
        assert (await client.event("hello"))["event"]["user_id"] == "alice"
        await client.settled()
        assert client.inbox == []


async def test_too_many_frames_before_authorize(running: RunningGateway) -> None:
    async with connect(running.url, hello=False) as client:
        for _ in range(10):
            await client.send("ping")
        closed = await client.closed()
        assert closed.code == 4501
        assert {frame["code"] for frame in closed.frames[:10]} == {"unauthenticated"}


@pytest.mark.parametrize("token", ["bad", "", "x" * 9000, "with space", "new\nline", "ü"])
async def test_a_bad_token_in_the_first_frame(running: RunningGateway, token: str) -> None:
    async with connect(running.url, hello=False) as client:
        await client.send("authorize", token=token, id="a")
        assert (await client.answer("a"))["error"]["code"] == "unauthenticated"
        assert await client.closed() == Closed(4510, "A valid bearer token is required", [])
    async with connect(running.url, hello=False) as client:
        await client.send("authorize", token=token)
        closed = await client.closed()
        assert closed.code == 4510
        assert [frame["code"] for frame in closed.frames] == ["unauthenticated"]


async def test_connections_that_say_nothing_leave_room_for_others() -> None:
    async with run_gateway(max_connections=8, allowed_origins=ORIGINS) as running, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connect(running.url, hello=False)) for _ in range(4)]
        async with connect(running.url, "alice") as client:
            await client.settled()
        async with connect(running.url, hello=False) as client:
            # The connection that has been silent for longest gives way.
            closed = await silent[0].closed()
            assert (closed.code, [frame["code"] for frame in closed.frames]) == (1013, ["too_many_requests"])
            assert closed.frames[0]["retry_after_ms"] == 5000
            await client.send("authorize", token="alice")
            await client.event("hello")
        await silent[3].send("authorize", token="alice")
        await silent[3].event("hello")


async def test_a_connection_whose_token_is_being_checked_gives_way_to_no_other() -> None:
    gate = Gate()
    async with run_gateway(make_gateway(authenticator=gate, max_connections=4)) as running:
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(connect(running.url, hello=False))
            await client.send("authorize", token="alice")
            await eventually(lambda: gate.waiting == 1)
            silent = [await stack.enter_async_context(connect(running.url, hello=False)) for _ in range(3)]
            assert (await silent[0].closed()).code == 1013
            gate.opened.set()
            await client.event("hello")
        await running.is_empty()


async def test_many_addresses_without_a_token_leave_those_with_one_their_rate() -> None:
    limited = run_gateway(handshake_rate="1/h burst 12", handshake_rate_per_address="1/h burst 20")
    async with limited as running:
        for number in range(12):
            async with connect(running.url, headers=forwarded_for(f"192.0.2.{number}"), hello=False) as client:
                client.abort()
            await running.is_empty()
        refused = await refusal(running.url, headers=forwarded_for("198.51.100.1"))
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        for number in range(12):  # also from the same addresses, as behind a proxy that does not tell them
            async with connect(running.url, "alice", headers=forwarded_for(f"192.0.2.{number}")):
                pass


async def test_many_addresses_with_wrong_tokens_leave_valid_ones_their_rate() -> None:
    limited = run_gateway(handshake_rate="1/h burst 3", handshake_rate_per_address="1/h burst 20")
    async with limited as running:
        for number in range(6):
            for headers in ([], [("Sec-WebSocket-Protocol", "unknown")]):
                status = (
                    await refusal(running.url, "bad", headers=[*forwarded_for(f"192.0.2.{number}"), *headers])
                ).status
                assert status in (400, 401)
        for _ in range(3):
            async with connect(running.url, "alice", headers=forwarded_for("198.51.100.1")):
                pass
        assert (await refusal(running.url, "alice", headers=forwarded_for("198.51.100.2"))).status == 503


async def test_an_address_whose_connections_never_bring_a_token_comes_to_its_limit_ten_times_as_fast() -> None:
    async with run_gateway(handshake_rate_per_address="1/h burst 20", auth_timeout=0.05) as running:
        for _ in range(2):
            async with connect(running.url, hello=False) as client:
                assert (await client.closed()).code == 4502
            await running.is_empty()
        assert (await refusal(running.url)).status == 503
        async with connect(running.url, "alice"):
            pass


async def test_wrong_newer_tokens_close_the_connection_and_count_for_its_address() -> None:
    async with run_gateway(handshake_rate_per_address="1/h burst 61") as running:
        async with connect(running.url, "alice") as client:
            for _ in range(5):
                answer = await client.ask("authorize", token="bad")
                assert answer["error"]["code"] == "unauthenticated"
            assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
            await client.send("authorize", token="bad", id="last")
            closed = await client.closed()
            assert (closed.code, closed.reason) == (4510, "too many wrong tokens")
            assert [frame["payload"]["error"]["code"] for frame in closed.frames] == ["unauthenticated"]
        await running.is_empty()
        assert (await refusal(running.url, "alice")).status == 503


async def test_a_binary_first_frame(running: RunningGateway) -> None:
    async with connect(running.url, hello=False) as client:
        await client.send_text(b'{"type":"authorize","payload":{"token":"alice"}}')
        assert (await client.closed()).code == 1003


async def test_a_first_frame_that_is_too_big(running: RunningGateway) -> None:
    async with connect(running.url, hello=False) as client:
        await client.send("authorize", token="x" * 70000)
        closed = await client.closed()
        assert (closed.code, [frame["code"] for frame in closed.frames]) == (1009, ["payload_too_large"])


@pytest.mark.parametrize("origin", [None, ORIGIN])
async def test_authorize_does_not_come_in_time(origin: str | None) -> None:
    async with run_gateway(allowed_origins=ORIGINS, auth_timeout=0.1) as running:
        async with connect(running.url, origin=origin, hello=False) as client:
            closed = await client.closed()
            assert closed.code == 4502
            assert [frame["code"] for frame in closed.frames] == ["unauthenticated"]
        await running.is_empty()


async def test_frames_that_are_none_do_not_gain_time() -> None:
    async with run_gateway(auth_timeout=0.3) as running, connect(running.url, hello=False) as client:
        await client.send("ping")
        assert (await client.next())["code"] == "unauthenticated"
        assert (await client.closed()).code == 4502


async def test_the_client_leaves_instead_of_authorising(running: RunningGateway) -> None:
    async with connect(running.url, hello=False) as client:
        await eventually(lambda: running.occupancy == (1, 0, 0))
        client.abort()
    await running.is_empty()


# --- a slow authenticator, and clients that do not wait for it --------------------------------------------------


@pytest.mark.parametrize("server", ["websockets-sansio", "wsproto", "hypercorn"])
async def test_the_client_leaves_in_the_middle_of_the_handshake(server: Any) -> None:
    gate = Gate()
    gateway = make_gateway(authenticator=gate, max_connections=1)
    async with run_gateway(gateway, server=server) as running:
        async with RawClient.open(running.url) as raw:
            await raw.send(RawClient.upgrade("/ws", ("Authorization", "Bearer alice")))
            await eventually(lambda: gate.waiting == 1)
            raw.abort()
        gate.opened.set()
        await running.is_empty()
        async with connect(running.url, "alice"):
            assert running.occupancy == (1, 1, 0)


async def test_the_client_leaves_while_its_first_frame_is_looked_at() -> None:
    gate = Gate()
    async with run_gateway(make_gateway(authenticator=gate)) as running:
        async with connect(running.url, hello=False) as client:
            await client.send("authorize", token="alice")
            await eventually(lambda: gate.waiting == 1)
            client.abort()
        gate.opened.set()
        await running.is_empty()


async def test_the_gateway_drains_in_the_middle_of_the_handshake() -> None:
    gate = Gate()
    async with run_gateway(make_gateway(authenticator=gate)) as running:
        refused = asyncio.create_task(refusal(running.url, "alice"))
        async with connect(running.url, hello=False) as client:
            await client.send("authorize", token="alice")
            await eventually(lambda: gate.waiting == 2)
            await running.gateway.drain()
            gate.opened.set()
            assert (await refused).status == 503
            closed = await client.closed()
            assert (closed.code, [frame["code"] for frame in closed.frames]) == (1013, ["mesh_unavailable"])
        await running.is_empty()


async def test_an_authenticator_that_does_not_answer_says_nothing_against_the_token() -> None:
    gate = Gate()
    async with run_gateway(make_gateway(authenticator=gate, auth_timeout=0.7)) as running:
        refused = asyncio.create_task(refusal(running.url, "alice"))
        async with connect(running.url, hello=False) as client:
            await client.send("authorize", token="alice")
            assert (await client.closed()).code == 1013
        assert (await refused).status == 503
        await running.is_empty()


async def test_an_authenticator_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(token: str) -> Identity | None:
        raise ZeroDivisionError

    async with run_gateway(make_gateway(authenticator=broken, allowed_origins=ORIGINS)) as running:
        with caplog.at_level(logging.ERROR):
            refused = await refusal(running.url, "alice")
            assert refused.status == 500
            async with connect(running.url, hello=False) as client:
                await client.send("authorize", token="alice")
                assert (await client.closed()).code == 1011
        await running.is_empty()
    assert caplog.text.count("ZeroDivisionError") >= 2


# --- JSON web tokens, by settings -------------------------------------------------------------------------------

SECRET = "a secret that is long enough to sign with, and no longer"
CLAIMS: dict[str, Any] = {"iss": "https://issuer.example", "aud": "gateway"}


@pytest.fixture(scope="module")
async def with_jwt() -> AsyncIterator[RunningGateway]:
    settings = Settings(jwt_key=SECRET, jwt_issuer=CLAIMS["iss"], jwt_audience=CLAIMS["aud"], jwt_leeway=0)
    async with run_gateway(Gateway(settings)) as running:
        yield running


async def test_a_signed_token(with_jwt: RunningGateway) -> None:
    expires_at = int(time.time()) + 1000
    token = issue_token(SECRET, "u-1", username="Ada Lovelace", **CLAIMS, exp=expires_at)
    async with connect(with_jwt.url, token) as client:
        hello = client.hello
        assert (hello["user_id"], hello["username"], hello["expires_at"]) == ("u-1", "Ada Lovelace", expires_at)
        context = await client.result("demo.whoami", trace_id="t")
        assert context == {
            "user_id": "u-1",
            "Authorization": f"Bearer {token}",
            "trace_id": "t",
            "session_id": hello["session_id"],
        }


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"exp": None},
        {"iss": "https://other.example"},
        {"aud": "another"},
        {"aud": None},
        {"nbf": 4102444800},
        {"sub": ""},
        {"sub": 7},
    ],
)
async def test_a_token_whose_claims_do_not_do(with_jwt: RunningGateway, claims: dict[str, Any]) -> None:
    payload = {"sub": "u-1", "exp": int(time.time()) + 1000, **CLAIMS, **claims}
    token = jws.sign({name: value for name, value in payload.items() if value is not None}, SECRET)
    assert (await refusal(with_jwt.url, token)).status == 401


async def test_a_token_that_somebody_else_signed(with_jwt: RunningGateway) -> None:
    good = issue_token(SECRET, "u-1", **CLAIMS)
    head, payload, signature = good.split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    for token in (
        issue_token("another secret that is long enough to be one", "u-1", **CLAIMS),
        f"{head}.{payload}.{signature[::-1]}",
        f"{unsigned}.{payload}.",
        f"{unsigned}.{payload}.{signature}",
        f"{head}.{payload}",
        "...",
    ):
        assert (await refusal(with_jwt.url, token)).status == 401
    await with_jwt.is_empty()


async def test_a_token_that_an_rsa_key_signed() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
    claims = {"sub": "u-1", "exp": int(time.time()) + 1000}
    async with run_gateway(Gateway(Settings(jwt_key=public))) as running:
        async with connect(running.url, jws.sign(claims, private, algorithm="RS256")) as client:
            assert client.hello["user_id"] == "u-1"
            assert client.hello["username"] == "u-1"
        # The public key is not secret, so nobody may be able to sign with it.
        forged = issue_token(public.replace("PUBLIC", "SECRET"), "u-1")
        assert (await refusal(running.url, forged)).status == 401


async def test_the_token_for_development() -> None:
    gateway = Gateway(Settings())
    async with run_gateway(gateway) as running:
        assert gateway.development_token is not None
        async with connect(running.url, gateway.development_token) as client:
            assert (client.hello["user_id"], client.hello["username"]) == ("dev", "Developer")


# --- hostile handshakes -----------------------------------------------------------------------------------------

BEARER = ("Authorization", "Bearer alice")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /ws HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        RawClient.upgrade("/ws", BEARER)[:-2],
        RawClient.upgrade("/ws", BEARER).replace(b"13\r\n", b"12\r\n"),
        RawClient.upgrade("/ws", BEARER).replace(b"Sec-WebSocket-Key", b"X-Key"),
        RawClient.upgrade("/ws", BEARER).replace(b"GET", b"POST"),
        RawClient.upgrade("/ws", BEARER, ("Content-Length", "5")) + b"hello",
        RawClient.upgrade("/ws", BEARER) + RawClient.upgrade("/ws", BEARER),
        RawClient.upgrade("/ws", BEARER) + RawClient.frame(b"{}", fin=False),
        RawClient.upgrade("/ws", ("Sec-WebSocket-Protocol", "nuropb.v1, \xe9\xff")),
        RawClient.upgrade("/ws", ("Cookie", "Authorization=\xff\xfe; =; ;;; x")),
        RawClient.upgrade("/ws", ("Authorization", "Bearer \xff\x80")),
        RawClient.upgrade("/nowhere", BEARER),
        RawClient.upgrade("//ws", BEARER),
        RawClient.upgrade("/ws/../ws", BEARER),
    ],
)
async def test_a_handshake_that_is_none(running: RunningGateway, request_: bytes) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.send(request_)
        raw.finish()
        await raw.ended()
    await running.is_empty()
    async with connect(running.url, "alice") as client:
        assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
