"""Calls and event streams over HTTP, by honest and by hostile clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest

from nuropb_gateway_asgi import CloseCode
from nuropb_gateway_asgi.mesh.demo import DemoService
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.kit.clients import RawClient, connect
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.transports import HTTPClient, events, http_client
from tests.kit.turnstile import Turnstile

PAGE: Final = "https://app.example.com"
#: The limit for a body, in bytes.
LIMIT: Final = 4096
LONG: Final = {"seconds": 3600}


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[RunningGateway]:
    gateway = make_gateway(
        mesh=EmbeddedMesh({"demo": DemoService(), "turnstile": Turnstile()}),
        expose=["demo.*", "nobody.*", "turnstile.*"],
        expose_topics=["demo.#", "news.#"],
        allowed_origins=[PAGE],
        auth_cookie="Authorization",
        max_message_size=LIMIT,
        ping_interval=0.05,
        write_timeout=0.5,
        auth_timeout=1.0,
        outbox_size=65536,
        max_connections_per_user=20,
    )
    async with run_gateway(gateway, send_buffer=4096) as running:
        yield running


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A shared gateway that every test leaves without connections and calls."""
    yield shared
    await shared.is_empty()


@pytest.fixture
async def client(running: RunningGateway) -> AsyncIterator[HTTPClient]:
    async with http_client(running, "alice") as client:
        yield client


# --- calls --------------------------------------------------------------------------------------------------------


async def test_the_result_is_the_body(client: HTTPClient) -> None:
    response = await client.call("demo.add", {"a": 2, "b": 3}, X_Trace_Id="trace-1")
    assert (response.status_code, response.json()) == (200, 5)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-trace-id"] == "trace-1"
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["/rpc/demo/add/", "/events/", "/livez/", "/readyz/", "/client.js/", "/client-worker.js/", "/asyncapi.json/"],
)
async def test_a_slash_too_many_is_not_a_redirect(client: HTTPClient, path: str) -> None:
    for method in ("GET", "POST"):
        response = await client.request(method, path, headers={"X-Forwarded-Proto": "https"})
        assert response.status_code == 404
        assert "location" not in response.headers


async def test_the_service_sees_what_it_sees_of_other_connections(client: HTTPClient) -> None:
    context = (await client.call("demo.whoami", X_Trace_Id="trace-2")).json()
    assert context["user_id"] == "alice"
    assert context["Authorization"] == "Bearer alice"
    assert context["trace_id"] == "trace-2"
    assert context["session_id"]


async def test_a_call_without_a_body_has_no_parameters(client: HTTPClient) -> None:
    response = await client.post("/rpc/demo/echo")
    assert (response.status_code, response.json()) == (200, {})
    assert response.headers["x-trace-id"]


ERRORS: Final[list[tuple[str, str, dict[str, Any], int, str]]] = [
    ("nobody", "knows", {}, 503, "service_unavailable"),
    ("demo", "nothing", {}, 404, "method_not_found"),
    ("demo", "add", {"a": 1, "b": "x"}, 422, "invalid_params"),
    ("demo", "fail", {"how": "authorization"}, 403, "permission_denied"),
    ("demo", "fail", {"how": "authentication"}, 401, "unauthenticated"),
    ("demo", "fail", {"how": "deprecated"}, 410, "deprecated"),
    ("demo", "fail", {"how": "bug"}, 502, "service_error"),
    ("hidden", "method", {}, 403, "permission_denied"),
    ("demo", "_private", {}, 400, "bad_request"),
    ("demo", "a" * 256, {}, 400, "bad_request"),
    ("demo", "a%0ab", {}, 400, "bad_request"),
    ("demo", "%C3%28", {}, 400, "bad_request"),
    ("demo", 'x","params":{}},"y":{"z":"', {}, 400, "bad_request"),
    ("turnstile", "big", {"size": 65536}, 413, "payload_too_large"),
]


@pytest.mark.parametrize(("service", "method", "params", "status", "code"), ERRORS)
async def test_every_error_has_its_status(
    client: HTTPClient, service: str, method: str, params: dict[str, Any], status: int, code: str
) -> None:
    response = await client.post(f"/rpc/{service}/{method}", json=params)
    error = response.json()
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"error", "description", "code", "retryable", "retry_after_ms"}
    assert ("www-authenticate" in response.headers) == (status == 401)


async def test_a_call_has_the_time_that_its_client_grants(client: HTTPClient) -> None:
    response = await client.call("demo.slow", LONG, Prefer="wait=1")
    assert (response.status_code, response.json()["code"]) == (504, "timeout")


async def test_a_command_is_accepted_and_not_waited_for(client: HTTPClient) -> None:
    response = await client.call("turnstile.open", Prefer="handling=lenient, Respond-Async")
    assert (response.status_code, response.content) == (202, b"null")
    assert response.headers["preference-applied"] == "respond-async"
    assert (await client.call("turnstile.wait")).json() == "through"


async def test_calls_of_one_client_wait_side_by_side(client: HTTPClient) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(client.call("turnstile.wait"))
        tasks.create_task(client.call("turnstile.open"))
    assert waiting.result().json() == "through"


BODIES: Final[list[tuple[bytes, str | None, int]]] = [
    (b'{"a":1', "application/json", 400),
    (b'{"a":1}{"a":2}', "application/json", 400),
    (b'{"a":1},"service":"hidden"', "application/json", 400),
    (b'{"a":NaN}', "application/json", 400),
    (b"[1,2]", "application/json", 400),
    (b'"text"', "application/json", 400),
    (b'{"a":"\xff"}', "application/json", 400),
    (b'{"a":' * 100 + b"1" + b"}" * 100, "application/json", 400),
    (b"[" * 2000 + b"]" * 2000, "application/json", 400),
    (b'{"a":1}', None, 415),
    (b'{"a":1}', "text/plain", 415),
    (b"a=1", "application/x-www-form-urlencoded", 415),
    (b'{"a":1}', "application/json; charset=latin-1", 415),
    (b'{"a":"' + b"x" * LIMIT + b'"}', "application/json", 413),
]


@pytest.mark.parametrize(("body", "kind", "status"), BODIES, ids=range(len(BODIES)))
async def test_a_body_that_is_none_is_refused(client: HTTPClient, body: bytes, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = await client.post("/rpc/demo/echo", content=body, headers=headers)
    assert response.status_code == status
    assert response.json()["code"] == ("payload_too_large" if status == 413 else "bad_request")
    assert (await client.call("demo.add", {"a": 1, "b": 1})).json() == 2


@pytest.mark.parametrize(("more", "status"), [(-1, 200), (0, 200), (1, 413)])
async def test_the_limit_of_a_body_is_the_clients_own_text(client: HTTPClient, more: int, status: int) -> None:
    body = b'{"text":"' + b"x" * (LIMIT + more - 11) + b'"}'
    assert len(body) == LIMIT + more
    response = await client.post("/rpc/demo/echo", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status


async def test_a_body_without_a_length_is_too_big_as_soon_as_it_is(client: HTTPClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 1024

    headers = {"Content-Type": "application/json"}
    with contextlib.suppress(httpx.WriteError):  # the answer may arrive while the client is still sending
        assert (await client.post("/rpc/demo/echo", content=body(), headers=headers)).status_code == 413


async def test_a_body_that_drips_is_not_waited_for(running: RunningGateway) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.send(_head("POST", "/rpc/demo/echo", "Content-Length: 100", "Content-Type: application/json") + b"{")
        assert (await raw.read_until(b"\r\n")).split()[1] == b"408"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_only_post_is_for_calls(client: HTTPClient, method: str) -> None:
    response = await client.request(method, "/rpc/demo/echo")
    assert (response.status_code, response.headers["allow"]) == (405, "POST, OPTIONS")


async def test_a_trace_id_is_refused_that_cannot_be_one(client: HTTPClient) -> None:
    assert (await client.call("demo.echo", X_Trace_Id="x" * 129)).status_code == 400


async def test_a_call_ends_when_its_client_goes(running: RunningGateway) -> None:
    statistics = running.gateway.channels["http"].service_mesh_manager.statistics
    before = statistics.abandoned
    async with RawClient.open(running.url) as raw:
        body = json.dumps(LONG).encode()
        headers = (f"Content-Length: {len(body)}", "Content-Type: application/json")
        await raw.send(_head("POST", "/rpc/demo/slow", *headers) + body)
        await eventually(lambda: running.occupancy[2] == 1)
        raw.abort()
    await eventually(lambda: statistics.abandoned == before + 1)
    await running.is_empty()


def _head(method: str, path: str, *headers: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", "Authorization: Bearer alice", *headers)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


# --- authentication and origins -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/rpc/demo/echo", "/events"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer bad"}, 401),
        ({"Authorization": "Basic YTpi"}, 401),
        ({"Authorization": "Bearer alice", "Origin": "https://evil.example"}, 403),
        ({"Cookie": "Authorization=alice"}, 403),
        ({"Cookie": "Authorization=alice", "Origin": "null"}, 403),
        ({"Cookie": "Authorization=alice", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Cookie": "Authorization=bob", "Origin": PAGE, "Authorization": "Bearer alice"}, 401),
    ],
)
async def test_who_is_not_let_in_is_told_so(
    running: RunningGateway, path: str, headers: dict[str, str], status: int
) -> None:
    async with http_client(running) as client:
        response = await client.request("GET" if path == "/events" else "POST", path, headers=headers)
        assert response.status_code == status
        assert set(response.json()) == {"error", "description", "code", "retryable", "retry_after_ms"}
        several = "Cookie" in headers and "Authorization" in headers
        assert ("several tokens" in response.json()["description"]) is several
        token_in_url = await client.post("/rpc/demo/echo?token=alice&access_token=alice")
        assert token_in_url.status_code == 401


async def test_a_cookie_is_taken_from_pages_that_may_connect(running: RunningGateway) -> None:
    cookie = {"Cookie": "Authorization=alice"}
    async with http_client(running) as client:
        response = await client.call("demo.whoami", **cookie, Origin=PAGE)
        assert response.json()["user_id"] == "alice"
        # A page cannot set this header, so it is the browser's word; the gateway trusts it for GET requests only.
        assert (await client.call("demo.whoami", **cookie, Sec_Fetch_Site="same-origin")).status_code == 403
        async with client.stream("GET", "/events", headers=cookie | {"Sec-Fetch-Site": "same-origin"}) as stream:
            assert stream.status_code == 200


TRACING = "traceparent, tracestate, baggage, sentry-trace, x-datadog-trace-id, x-requested-with"


async def test_pages_of_allowed_origins_may_read_the_answers(running: RunningGateway) -> None:
    async with http_client(running, "alice") as client:
        response = await client.call("demo.echo", Origin=PAGE)
        assert response.headers["access-control-allow-origin"] == PAGE
        assert response.headers["access-control-allow-credentials"] == "true"
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": f"authorization, {TRACING}"}
        preflight = await client.options("/rpc/demo/echo", headers=ask | {"Origin": PAGE})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        foreign = await client.options("/rpc/demo/echo", headers=ask | {"Origin": "https://evil.example"})
        assert foreign.status_code == 400
        assert "access-control-allow-origin" not in foreign.headers


# --- events -------------------------------------------------------------------------------------------------------


async def test_a_stream_brings_what_was_asked_for(running: RunningGateway, client: HTTPClient) -> None:
    async with events(running, "alice", ["news.#", "demo.x"], hello=False) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["x-accel-buffering"] == "no"
        first = await stream.next()
        assert first is not None
        assert first.retry is not None
        assert first.data == ""
        hello = await stream.next()
        assert hello is not None
        assert (hello.event, hello.payload["event"]["user_id"]) == ("hello", "alice")
        assert hello.id is not None
        session = hello.id.removesuffix("0")
        for topic in ("other.x", "news.1", "demo.x", "news.2"):
            await client.call("demo.publish", {"topic": topic, "event": {"line": "a\nb"}}, X_Trace_Id="t")
        seen = [await stream.next() for _ in range(3)]
        assert [(each.id, each.event, each.payload["topic"]) for each in seen if each] == [
            (f"{session}2", None, "news.1"),
            (f"{session}3", None, "demo.x"),
            (f"{session}4", None, "news.2"),
        ]
        assert seen[0] is not None
        assert seen[0].payload["event"] == {"line": "a\nb"}


async def test_events_with_a_target_and_messages_come_without_a_topic(
    running: RunningGateway, client: HTTPClient
) -> None:
    async with events(running, "carol") as stream, events(running, "bob") as other:
        await client.call("demo.publish", {"topic": "private.x", "event": 1, "target": ["bob"]})
        assert (await other.event("private.x"))["event"] == 1
        manager = running.gateway.channels["http"].handler_manager
        assert manager.send_message_to_user_ids(["carol"], '{"any":\n"thing"}') == 1
        event = await stream.next()
        assert event is not None
        assert (event.event, event.payload) == ("frame", {"any": "thing"})


async def test_a_quiet_stream_has_comments(running: RunningGateway) -> None:
    async with events(running, "alice", ["demo.x"]) as stream:
        waiting = asyncio.create_task(stream.next())
        await eventually(lambda: stream.comments.count("ping") >= 2)
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_who_comes_back_is_told_of_a_gap(running: RunningGateway) -> None:
    async with events(running, "alice", ["demo.x"], Last_Event_Id="7") as stream:
        assert (await stream.event("gap"))["event"] == {"reason": "reconnected", "topics": ["demo.x"]}


TOPICS: Final = [
    ("topic=secret.x", 403, "permission_denied"),
    ("topic=demo.x&topic=secret.x", 403, "permission_denied"),
    ("topic=", 400, "bad_request"),
    ("topic=%ff", 400, "bad_request"),
    ("topic=demo.x%0d%0aid:%209", 400, "bad_request"),
    ("&".join(f"topic=demo.{number}" for number in range(101)), 400, "bad_request"),
    ("topic=demo." + "x" * 300, 400, "bad_request"),
]


@pytest.mark.parametrize(("query", "status", "code"), TOPICS, ids=range(len(TOPICS)))
async def test_topics_that_cannot_be_had_are_a_status(client: HTTPClient, query: str, status: int, code: str) -> None:
    async with client.stream("GET", f"/events?{query}") as response:
        assert response.status_code == status  # checked before reading, because a stream would not end
        assert json.loads(await response.aread())["code"] == code


async def test_a_stream_takes_no_body(client: HTTPClient) -> None:
    assert (await client.request("GET", "/events", content=b"{}")).status_code == 400
    assert (await client.post("/events")).headers["allow"] == "GET, OPTIONS"


async def test_a_stream_ends_with_the_token(running: RunningGateway) -> None:
    async with events(running, "alice:for:0.7", ["demo.x"]) as stream:
        last = (await stream.rest())[-1]
    assert last == {"topic": "closed", "event": {"code": CloseCode.TOKEN_EXPIRED, "reason": "token expired"}}


async def test_a_revoked_token_ends_streams_and_calls(running: RunningGateway, client: HTTPClient) -> None:
    manager = running.gateway.service_mesh_manager
    async with http_client(running, "carol") as revoked, events(running, "carol") as stream:
        call = asyncio.create_task(revoked.call("demo.slow", LONG))
        await eventually(lambda: running.occupancy[2] == 1)
        await manager.revoke(user_id="carol")
        assert (await stream.rest())[-1]["event"]["code"] == CloseCode.TOKEN_REVOKED
        assert (await call).status_code == 401
    assert (await client.call("demo.echo")).status_code == 200


async def test_a_reader_that_does_not_keep_up_is_hung_up_on(running: RunningGateway, client: HTTPClient) -> None:
    manager = running.gateway.channels["http"].handler_manager
    before = manager.statistics.closed[CloseCode.SLOW_CONSUMER]
    async with RawClient.open(running.url, receive_buffer=4096) as raw:
        await raw.send(_head("GET", "/events?topic=demo.x"))
        await raw.read_until(b"hello")
        async with asyncio.timeout(DEADLINE):
            while manager.statistics.closed[CloseCode.SLOW_CONSUMER] == before:
                event = {"topic": "demo.x", "event": "x" * 3000}
                assert (await client.call("demo.publish", event)).status_code == 200
        await eventually(lambda: len(manager) == 0)
    await running.is_empty()


async def test_one_user_has_only_so_many_streams_and_calls(running: RunningGateway, client: HTTPClient) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(19):
            await stack.enter_async_context(events(running, "alice"))
        call = asyncio.create_task(client.call("demo.slow", LONG))
        await eventually(lambda: running.occupancy[2] == 1)
        response = await client.call("demo.echo")
        assert (response.status_code, response.headers["retry-after"]) == (429, "5")
        async with http_client(running, "bob") as bob:
            assert (await bob.call("demo.echo")).status_code == 200
        call.cancel()
        await asyncio.wait([call])


# --- limits and drain ---------------------------------------------------------------------------------------------


async def test_only_refused_tokens_count_as_handshakes() -> None:
    async with (
        run_gateway(handshake_rate_per_address="1/s burst 12") as running,
        http_client(running, "alice") as client,
        http_client(running, "bad") as guesser,
    ):
        answers = [await client.call("demo.add", {"a": 1, "b": 2}) for _ in range(30)]
        assert {answer.status_code for answer in answers} == {200}
        tried = [(await guesser.call("demo.echo")).status_code for _ in range(4)]
        assert tried[0] == 401
        assert tried[-1] == 503


async def test_a_stream_that_may_be_let_in_later_is_told_when_to_come_back() -> None:
    accepts = {"Accept": "text/event-stream", "Last-Event-ID": "key:7"}
    async with (
        run_gateway(max_connections_per_user=1) as running,
        http_client(running, "alice") as client,
        events(running, "alice"),
    ):
        assert (await client.get("/events")).status_code == 429
        waits = set()
        for _ in range(5):
            response = await client.get("/events", headers=accepts)
            assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
            retry, event = response.text.strip().split("\n\n")
            assert event == (
                'event: closed\ndata: {"topic":"closed","event":{"code":1013,'
                '"reason":"This user has too many connections"}}'
            )
            waits.add(int(retry.removeprefix("retry: ")))
        assert len(waits) > 1
        assert all(5000 <= wait <= 10000 for wait in waits)
        # What cannot heal is an error, as for everybody else.
        assert (await client.get("/events", headers=accepts | {"Authorization": "Bearer bad"})).status_code == 401


async def test_limits_are_those_of_other_connections() -> None:
    async with (
        run_gateway(rate_limit_user="1/s burst 3") as running,
        http_client(running, "alice") as client,
        connect(running.url, "alice") as socket,
    ):
        for _ in range(3):
            assert await socket.result("demo.add", {"a": 1, "b": 2}) == 3
        response = await client.call("demo.echo")
        assert (response.status_code, response.json()["code"]) == (429, "too_many_requests")
        assert int(response.headers["retry-after"]) >= 1


async def test_a_drain_answers_calls_and_ends_streams() -> None:
    turnstile = Turnstile()
    gateway = make_gateway(mesh=EmbeddedMesh({"turnstile": turnstile}), expose=["turnstile.*"])
    async with (
        run_gateway(gateway) as running,
        http_client(running, "alice") as client,
        events(running, "alice") as stream,
    ):
        call = asyncio.create_task(client.call("turnstile.wait"))
        await eventually(lambda: running.occupancy[2] == 1)
        drain = asyncio.create_task(gateway.drain())
        goodbye = await stream.next()
        assert goodbye is not None
        assert (goodbye.event, goodbye.retry) == ("goodbye", goodbye.payload["event"]["retry_after_ms"])
        refused = await client.call("turnstile.open")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        turnstile.open()
        assert (await call).json() == "through"
        assert (await stream.rest())[-1]["event"]["code"] == CloseCode.SERVICE_RESTART
        await drain


async def test_without_the_setting_there_is_no_http() -> None:
    async with run_gateway(http="off") as running, http_client(running, "alice") as client:
        assert (await client.call("demo.echo")).status_code == 404
        assert (await client.get("/events")).status_code == 404
        assert "http" not in running.gateway.channels
