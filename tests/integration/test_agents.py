"""Tools for agents: clients of the official SDKs on real gateways and services, and hostile requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated, ToolsListChanged

from nuropb_gateway_asgi import FunctionAuthenticator, Settings, TokenExpired
from nuropb_gateway_asgi.agents.recent import MAX_CALLS
from nuropb_gateway_asgi.agents.serving.resources import PAGE_SIZE
from nuropb_gateway_asgi.mesh.demo import DemoService
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.kit.agents import MODES, Mode, agent, envelope, headers, post
from tests.kit.clients import connect
from tests.kit.gateways import DEADLINE, RunningGateway, authorise_from_token, eventually, make_gateway, run_gateway
from tests.kit.javascript import node
from tests.kit.turnstile import Turnstile
from tests.servers.javascript import CLIENT
from tests.servers.processes import ServiceProcess, unavailable

PAGE: Final = "https://app.example.com"
LIMIT: Final = 4096
POLICY: Final = """
[[rule]]
allow = "call"
methods = ["demo.*", "turnstile.*"]

[[rule]]
allow = "tool"
methods = ["demo.*", "turnstile.*"]
hints = { read_only = false, destructive = true }

[[rule]]
allow = "tool"
methods = ["demo.add"]
hints = { read_only = true, idempotent = true }

[[rule]]
deny = "tool"
methods = ["demo.publish"]
when = { role = { equals = "bob" } }

[[rule]]
allow = "tool"
methods = ["turnstile.open"]
command = true

[[rule]]
allow = "tool"
methods = ["demo.whoami"]
rate = "2/min"
burst = 2
when = { role = { equals = "hasty" } }

[[rule]]
allow = "subscribe"
topics = ["demo.tick", "news.#"]
"""


@pytest.fixture(scope="module")
async def turnstile() -> Turnstile:
    return Turnstile()


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, turnstile: Turnstile) -> AsyncIterator[RunningGateway]:
    path = tmp_path_factory.mktemp("policy") / "policy.toml"
    path.write_text(POLICY)
    gateway = make_gateway(
        Settings(
            error_details="nuropb",
            policy=str(path),
            allowed_origins=[PAGE],
            max_message_size=LIMIT,
            max_json_depth=8,
            outbox_size=200000,
        ),
        mesh=EmbeddedMesh({"demo": DemoService(), "turnstile": turnstile}),
        authenticator=FunctionAuthenticator(claims_of),
    )
    async with run_gateway(gateway) as running:
        yield running


async def claims_of(token: str) -> dict[str, Any] | None:
    """Return the claims of a test's token, and its user as a role."""
    claims = authorise_from_token(token)
    return None if claims is None else {**claims, "role": claims["user_id"]}


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A shared gateway that every test leaves without connections and calls."""
    yield shared
    await shared.is_empty()


# --- tools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_the_sdk_lists_and_calls_tools_in_each_of_its_modes(running: RunningGateway, mode: Mode) -> None:
    async with agent(running.site, "alice", mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {"demo__add", "demo__whoami", "turnstile__wait"} <= set(tools)
        result = await client.call_tool("demo__add", {"a": 1, "b": 2})
    assert tools["demo__add"].title == "demo.add"
    assert tools["demo__add"].input_schema["additionalProperties"] is False
    assert tools["demo__echo"].input_schema["additionalProperties"] is True
    assert (result.structured_content, result.is_error) == ({"result": 3}, False)


async def test_hints_are_those_of_the_rule_that_decides(running: RunningGateway) -> None:
    async with agent(running.site, "alice") as client:
        tools = {tool.name: tool.annotations for tool in (await client.list_tools()).tools}
    assert (tools["demo__add"].read_only_hint, tools["demo__add"].idempotent_hint) == (True, True)
    assert tools["demo__fail"].destructive_hint is True


async def test_two_tokens_have_different_tools(running: RunningGateway) -> None:
    async with agent(running.site, "alice") as alice, agent(running.site, "bob") as bob:
        names = [{tool.name for tool in (await client.list_tools()).tools} for client in (alice, bob)]
        refused = await bob.call_tool("demo__publish", {"topic": "news.today"})
    assert names[0] - names[1] == {"demo__publish"}
    assert refused.is_error
    assert refused.structured_content["error"]["code"] == "permission_denied"


@pytest.mark.parametrize("mode", MODES)
async def test_a_long_list_of_tools_comes_in_pages(mode: Mode) -> None:
    methods = {f"method_{number:03}": lambda self: "done" for number in range(PAGE_SIZE + 1)}
    service = type("Many", (), methods)()
    gateway = make_gateway(mesh=EmbeddedMesh({"many": service}), mcp="on", expose=["many.*"], expose_tools=["many.*"])
    async with run_gateway(gateway) as running:
        async with agent(running.site, "alice", mode) as client:
            first = await client.list_tools()
            second = await client.list_tools(cursor=first.next_cursor)
        await running.is_empty()
    assert (len(first.tools), len(second.tools), second.next_cursor) == (PAGE_SIZE, 1, None)
    assert second.tools[0].name == f"many__method_{PAGE_SIZE:03}"


async def test_a_list_says_for_how_long_it_is_valid_and_that_it_is_the_users_own(running: RunningGateway) -> None:
    result = (await post(running.site, envelope("tools/list"), headers("tools/list"))).json()["result"]
    assert (result["ttlMs"], result["cacheScope"]) == (1000, "private")


async def test_what_a_user_may_call_is_not_by_itself_a_tool() -> None:
    async with run_gateway(mcp="on", expose=["demo.*"], expose_tools=["demo.add", "other.*"]) as running:
        async with agent(running.site, "alice") as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["demo__add"]
            assert (await client.call_tool("demo__echo", {})).is_error
            assert (await client.call_tool("other__method", {})).is_error
        await running.is_empty()


async def test_a_tool_may_send_a_command(running: RunningGateway) -> None:
    async with agent(running.site, "alice") as client:
        answer = await client.call_tool("turnstile__open", {})
        assert answer.structured_content == {"accepted": True}
        assert (await client.call_tool("turnstile__wait", {})).structured_content == {"result": "through"}


async def test_a_failure_is_a_tool_error_with_code_and_remedy(running: RunningGateway) -> None:
    async with agent(running.site, "alice") as client:
        validation = await client.call_tool("demo__fail", {"how": "validation"})
        bug = await client.call_tool("demo__fail", {"how": "bug"})
    assert validation.is_error
    assert validation.content[0].text.startswith("invalid_params: ")
    assert "input schema" in validation.content[0].text
    assert bug.structured_content["error"]["code"] == "service_error"
    assert "Traceback" not in bug.content[0].text
    assert "ZeroDivisionError" not in bug.content[0].text


async def test_a_long_result_is_cut_with_a_note(running: RunningGateway) -> None:
    async with agent(running.site, "alice") as client:
        result = await client.call_tool("turnstile__big", {"size": 100000})
    assert result.structured_content is None
    assert len(result.content[0].text) < 70000
    assert "Ask for less" in result.content[0].text


async def test_a_rule_about_tools_has_a_rate_of_its_own(running: RunningGateway) -> None:
    async with agent(running.site, "hasty") as client:
        results = [await client.call_tool("demo__whoami", {}) for _ in range(4)]
    codes = [result.structured_content["error"]["code"] for result in results if result.is_error]
    assert "too_many_requests" in codes
    assert not results[0].is_error


async def test_the_trace_of_a_host_reaches_the_service(running: RunningGateway) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = envelope(
        "tools/call", name="demo__whoami", arguments={}, meta={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    )
    answer = await post(running.site, body, headers(name="demo__whoami"))
    assert answer.json()["result"]["structuredContent"]["trace_id"] == trace_id


# --- ends of calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_cancelled_call_is_cancelled_on_the_mesh(running: RunningGateway, mode: Mode) -> None:
    streams = int(mode == "legacy")
    async with agent(running.site, "alice", mode) as client:
        await eventually(lambda: running.occupancy == (streams, streams, 0))
        call = asyncio.ensure_future(client.call_tool("demo__slow", {"seconds": 3600}))
        await eventually(lambda: running.occupancy[2] == 1)
        call.cancel()
        await eventually(lambda: running.occupancy == (streams, streams, 0))
        # The client fails if it ends while an answer is on its way: that of a later call comes behind it.
        assert not (await client.call_tool("demo__add", {"a": 1, "b": 2})).is_error


@pytest.mark.parametrize("version", ["2026-07-28", "2025-06-18"])
async def test_a_lost_connection_ends_its_call(running: RunningGateway, version: str) -> None:
    calls = running.gateway.connection_kinds["mcp"].service_mesh_manager
    body = envelope("tools/call", name="demo__slow", arguments={"seconds": 3600})
    sent = headers(name="demo__slow") | {"MCP-Protocol-Version": version}
    request = asyncio.ensure_future(post(running.site, body, sent))
    await eventually(lambda: calls.in_flight == 1)
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request
    await eventually(lambda: calls.in_flight == 0)


async def test_another_user_cannot_cancel_a_call(running: RunningGateway) -> None:
    calls = running.gateway.connection_kinds["mcp"].service_mesh_manager
    call = envelope("tools/call", name="turnstile__wait", arguments={})
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    session = {"MCP-Protocol-Version": "2025-06-18", "Mcp-Session-Id": "s"}
    request = asyncio.ensure_future(post(running.site, call, headers() | session))
    await eventually(lambda: calls.in_flight == 1)
    assert (await post(running.site, cancel, headers(token="bob") | session)).status_code == 202
    assert calls.in_flight == 1
    assert (await post(running.site, cancel, headers() | session)).status_code == 202
    answer = (await request).json()
    assert answer["result"]["structuredContent"]["error"]["code"] == "cancelled"


async def test_a_drain_waits_for_calls_and_then_ends_what_listens(turnstile: Turnstile) -> None:
    gateway = make_gateway(
        mesh=EmbeddedMesh({"turnstile": turnstile}), mcp="on", expose=["turnstile.*"], expose_tools=["turnstile.*"]
    )
    async with run_gateway(gateway) as running, agent(running.site, "alice") as client:
        kind = gateway.connection_kinds["mcp"]
        await client.list_tools()  # or the client would list them after the call
        async with client.listen(tools_list_changed=True) as events:
            call = asyncio.ensure_future(client.call_tool("turnstile__wait", {}))
            await eventually(lambda: kind.service_mesh_manager.in_flight == 1)
            drain = asyncio.ensure_future(gateway.drain())
            await eventually(lambda: kind.handler_manager.closed_for is not None)
            turnstile.open()
            assert (await call).structured_content == {"result": "through"}
            await drain
            assert [event async for event in events] == []
        await running.is_empty()


# --- changes and events -------------------------------------------------------------------------------------------


async def test_a_change_of_the_policy_changes_the_tools_and_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    gateway = make_gateway(Settings(policy=str(path)))
    async with run_gateway(gateway) as running, agent(running.site, "alice") as client:
        async with client.listen(tools_list_changed=True) as events:
            assert "demo__add" in {tool.name for tool in (await client.list_tools()).tools}
            path.write_text(POLICY + '[[rule]]\ndeny = "tool"\nmethods = ["demo.add"]\n')
            assert await anext(aiter(events)) == ToolsListChanged()
            assert (await client.call_tool("demo__add", {"a": 1, "b": 1})).is_error
            tools = (await client.list_tools(cache_mode="bypass")).tools
            assert "demo__add" not in {tool.name for tool in tools}
        await running.is_empty()


async def test_events_are_resources_for_a_host_that_listens(running: RunningGateway) -> None:
    uri = "topic://news.today"
    async with agent(running.site, "alice") as client:
        assert [each.uri for each in (await client.list_resources()).resources] == ["topic://demo.tick"]
        async with client.listen(resource_subscriptions=[uri, "topic://secret.x"]) as events:
            await client.call_tool("demo__publish", {"topic": "news.today", "event": {"n": 1}})
            assert await anext(aiter(events)) == ResourceUpdated(uri)


@pytest.mark.parametrize("mode", MODES)
async def test_reading_a_topic_answers_with_its_next_event(running: RunningGateway, mode: Mode) -> None:
    async with agent(running.site, "alice", mode) as client:
        contents = (await client.read_resource("topic://demo.tick")).contents
        with pytest.raises(MCPError, match="not allowed"):
            await client.read_resource("topic://secret.x")
    assert json.loads(contents[0].text)["topic"] == "demo.tick"


async def test_reading_a_topic_with_a_history_answers_with_its_last_event() -> None:
    kept: Any = {"history": ["news.#:1h"], "expose_topics": ["news.#"], "expose_tools": ["demo.*"], "mcp": "on"}
    async with run_gateway(**kept) as running, connect(running.url, "alice") as client:
        for number in range(3):
            await client.result("demo.publish", {"topic": "news.today", "event": number})
        async with agent(running.site, "alice") as host:
            for _ in range(2):
                (content,) = (await host.read_resource("topic://news.today")).contents
                assert json.loads(content.text)["event"] == 2


# --- identity -----------------------------------------------------------------------------------------------------


async def test_the_log_has_a_line_for_each_call_without_its_arguments(
    running: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nuropb_gateway_asgi.agents.audit")
    async with agent(running.site, "alice:hunter2") as client:
        await client.call_tool("demo__echo", {"password": "swordfish"})
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("agents.audit")]
    assert line.startswith("tool call user=alice tool=demo.echo outcome=ok ms=")
    assert "swordfish" not in caplog.text
    assert "hunter2" not in caplog.text


async def test_the_log_has_the_arguments_if_the_operator_asks_for_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nuropb_gateway_asgi.agents.audit")
    async with run_gateway(mcp="on", log_tool_arguments="on") as running, agent(running.site, "alice") as client:
        await client.call_tool("demo__echo", {"order": "7\nline"})
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("agents.audit")]
    assert line.endswith('arguments={"order":"7\\nline"}')


async def test_a_user_sees_the_latest_calls_of_own_agents(running: RunningGateway) -> None:
    async with agent(running.site, "carol") as client:
        for _ in range(MAX_CALLS + 1):
            await client.call_tool("demo__add", {"a": 1, "b": 2})
        await client.call_tool("demo__fail", {"how": "bug"})
    url = running.site.http("/mcp/calls")
    async with httpx2.AsyncClient(timeout=DEADLINE) as client:
        own = (await client.get(url, headers={"Authorization": "Bearer carol"})).json()["calls"]
        others = (await client.get(url, headers={"Authorization": "Bearer nobody-else"})).json()["calls"]
        refused = await client.get(url)
        posted = await client.post(url, headers={"Authorization": "Bearer carol"})
    assert (len(own), others) == (MAX_CALLS, [])
    assert {name: own[0][name] for name in ("tool", "outcome")} == {"tool": "demo.fail", "outcome": "service_error"}
    assert set(own[0]) == {"at", "tool", "outcome", "ms", "trace_id"}
    assert (refused.status_code, posted.status_code) == (401, 405)


async def test_a_service_that_is_away_is_left_out_and_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    gateway = make_gateway(mcp="on", expose=["demo.*", "nobody.*"], expose_tools=["demo.add", "nobody.*"])
    async with run_gateway(gateway) as running, agent(running.site, "alice") as client:
        for _ in range(2):
            tools = (await client.list_tools(cache_mode="bypass")).tools
            assert [tool.name for tool in tools] == ["demo__add"]
    told = [record.getMessage() for record in caplog.records if "nobody" in record.getMessage()]
    assert told == ["service nobody does not describe itself; its tools are left out"]


async def test_a_refusal_leads_to_the_provider_of_tokens() -> None:
    settings = Settings(
        mcp="on", jwt_oidc_issuer="https://login.example.com/realms/main", public_url="https://example.com/gateway"
    )
    async with run_gateway(make_gateway(settings)) as running:
        refused = await post(running.site, envelope("tools/list"), headers("tools/list", token=None))
        async with httpx2.AsyncClient() as client:
            found = await client.get(running.site.http("/.well-known/oauth-protected-resource/mcp"))
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == (
        'Bearer resource_metadata="https://example.com/gateway/.well-known/oauth-protected-resource/mcp"'
    )
    document = found.json()
    assert document["resource"] == "https://example.com/gateway/mcp"
    assert document["authorization_servers"] == ["https://login.example.com/realms/main"]


async def test_an_expired_token_is_told_and_leads_to_the_provider_too() -> None:
    async def refuse(token: str) -> None:
        raise TokenExpired

    settings = Settings(mcp="on", jwt_oidc_issuer="https://login.example.com/", public_url="https://example.com")
    async with run_gateway(make_gateway(settings, authenticator=refuse)) as running:
        refused = await post(running.site, envelope("tools/list"), headers("tools/list"))
    challenge = refused.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer error="invalid_token", error_description="')
    assert challenge.endswith(', resource_metadata="https://example.com/.well-known/oauth-protected-resource/mcp"')


async def test_without_a_provider_there_is_no_document(running: RunningGateway) -> None:
    refused = await post(running.site, envelope("tools/list"), headers("tools/list", token=None))
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    async with httpx2.AsyncClient() as client:
        assert (await client.get(running.site.http("/.well-known/oauth-protected-resource"))).status_code == 404


async def test_mcp_is_off_on_a_real_mesh_unless_asked_for() -> None:
    assert not Settings(mesh_url="amqp://localhost/").serves_mcp
    assert Settings(mesh_url="amqp://localhost/", mcp="on").serves_mcp
    async with run_gateway(mcp="off") as running:
        assert (await post(running.site, envelope("tools/list"), headers("tools/list"))).status_code == 404


# --- hostile agents -----------------------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def call(arguments: Any, name: Any = "demo__echo", **more: Any) -> bytes:
    return json.dumps(envelope("tools/call", name=name, arguments=arguments, **more)).encode()


ECHO: Final = headers(name="demo__echo")
LEGACY: Final = ECHO | {"MCP-Protocol-Version": "2025-06-18"}
LIST: Final = headers("tools/list")

#: What is sent: a body, and the headers. What has to come: a status, and a word of the answer.
HOSTILE: Final[dict[str, tuple[bytes, dict[str, str], int, str]]] = {
    "no token": (call({}), headers(name="demo__echo", token=None), 401, "bearer token"),
    "an unknown token": (call({}), headers(name="demo__echo", token="nobody at all"), 401, "bearer token"),
    "a token of 20000 characters": (call({}), headers(name="demo__echo", token="a" * 20000), 401, "bearer token"),
    "a token in a cookie": (
        call({}), headers(name="demo__echo", token=None) | {"Cookie": "Authorization=alice"}, 401, "bearer token",
    ),
    "a foreign origin": (call({}), ECHO | {"Origin": "https://evil.example"}, 403, "Origin"),
    "the origin null": (call({}), ECHO | {"Origin": "null"}, 403, "Origin"),
    "an origin that looks like an allowed one": (call({}), ECHO | {"Origin": f"{PAGE}.evil.example"}, 403, "Origin"),
    "DNS rebinding: host and origin of an attacker": (
        call({}), ECHO | {"Host": "evil.example", "Origin": "http://evil.example"}, 403, "Origin",
    ),
    "DNS rebinding, handshake protocol": (
        call({}), LEGACY | {"Host": "evil.example", "Origin": "http://evil.example"}, 403, "Origin",
    ),
    "a form of another site": (call({}), ECHO | {"Content-Type": "text/plain"}, 415, "application/json"),
    "a multipart form": (call({}), ECHO | {"Content-Type": "multipart/form-data; boundary=x"}, 415, "application/json"),
    "no body": (b"", ECHO, 400, "not JSON"),
    "not JSON": (b"{", ECHO, 400, "not JSON"),
    "not UTF-8": (b'{"a":"\xff"}', ECHO, 400, "not JSON"),
    "NaN": (call({"x": 1}).replace(b'"x": 1', b'"x": NaN'), ECHO, 400, "not JSON"),
    "two values": (call({}) + b"{}", ECHO, 400, "not JSON"),
    "a body over the limit": (call({"x": "y" * LIMIT}), ECHO, 413, "more than"),
    "nested arguments": (call(nested(14)), ECHO, 400, "levels"),
    "arguments nested 1900 deep": (b"[" * 1900 + b"]" * 1900, ECHO, 400, ""),
    "a huge integer": (call({"x": 10**30 + 1}), ECHO, 400, "64 bits"),
    "an infinite number": (call({"x": 1}).replace(b'"x": 1', b'"x": 1e999'), ECHO, 400, ""),
    "a batch": (b"[" + call({}) + b"]", ECHO, 400, "single"),
    "a batch, handshake protocol": (b"[" + call({}) + b"]", LEGACY, 400, ""),
    "a posted response": (b'{"jsonrpc":"2.0","id":1,"result":{}}', ECHO, 400, ""),
    "a number as a message": (b"7", ECHO, 400, ""),
    "an id that is an object": (call({}).replace(b'"id": 1', b'"id": {}'), ECHO, 400, ""),
    "arguments that are a list": (call([1]), ECHO, 400, ""),
    "arguments that are a text": (call("x"), ECHO, 400, ""),
    "a name that is a number": (call({}, 5), ECHO, 400, ""),
    "another name in the header": (call({}, "demo__add"), ECHO, 400, ""),
    "another method in the header": (call({}), headers("tools/list"), 400, ""),
    "an unknown tool": (call({}, "x"), headers(name="x"), 400, "Unknown tool"),
    "a tool's name as a path": (call({}, "../x"), headers(name="../x"), 400, "Unknown tool"),
    "a service of others": (
        call({}, "payroll__all"), headers(name="payroll__all"), 200, "permission_denied",
    ),
    "a private method": (call({}, "demo___run_"), headers(name="demo___run_"), 400, "Unknown tool"),
    "the description itself": (
        call({}, "demo__nuropb_describe"), headers(name="demo__nuropb_describe"), 200, "permission_denied",
    ),
    "a lone surrogate": (call({"x": 1}).replace(b'"x": 1', b'"x": "\\ud800"'), ECHO, 400, ""),
    "another's session": (call({"a": 1}), LEGACY | {"Mcp-Session-Id": "f" * 32}, 200, '"a"'),
    "an unknown version": (call({}), ECHO | {"MCP-Protocol-Version": "2199-01-01"}, 400, ""),
    "an unknown method": (
        json.dumps(envelope("tools/delete")).encode(), headers("tools/delete"), 404, "",
    ),
    "a cursor made up": (json.dumps(envelope("tools/list", cursor="zzz\x00")).encode(), LIST, 200, '"tools":[]'),
    "a cursor that is a list": (json.dumps(envelope("tools/list", cursor=[])).encode(), LIST, 400, ""),
    "no Accept": (call({}), {**ECHO, "Accept": "text/html"}, 406, ""),
    "listening under another method": (
        json.dumps(envelope("subscriptions/listen", notifications={})).encode(), ECHO, 400, "",
    ),
    "a resource that is a file": (
        json.dumps(envelope("resources/read", uri="file:///etc/passwd")).encode(),
        headers("resources/read", "file:///etc/passwd"), 400, "Unknown resource",
    ),
}  # fmt: skip


def test_there_are_forty_hostile_requests() -> None:
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_request_gets_its_answer(
    running: RunningGateway, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    body, sent, status, word = HOSTILE[name]
    answer = await post(running.site, body, sent)
    assert (answer.status_code, word if word in answer.text else answer.text) == (status, word)
    assert "Traceback" not in answer.text
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_other_methods_are_refused(running: RunningGateway, method: str) -> None:
    async with httpx2.AsyncClient() as client:
        answer = await client.request(method, running.site.http("/mcp"), headers=headers())
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, POST, OPTIONS")


# --- real services, and the other SDK -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def on_rabbitmq(amqp_url: str, service: ServiceProcess) -> AsyncIterator[RunningGateway]:
    gateway = make_gateway(
        mesh_url=amqp_url,
        service_name=f"gateway-{secrets.token_hex(4)}",
        mcp="on",
        expose=["*.*"],
        expose_tools=[f"{service.service}.*"],
        # A service of a name that the policy knows and nobody hosts is left out.
        expose_topics=["#"],
    )
    async with run_gateway(gateway) as running:
        await eventually(lambda: not gateway.not_ready())
        yield running


@pytest.mark.parametrize("mode", MODES)
async def test_the_sdk_calls_a_nuropb_service(amqp_url: str, echo_service: ServiceProcess, mode: Mode) -> None:
    name = echo_service.service.replace(".", "_")
    async with on_rabbitmq(amqp_url, echo_service) as running, agent(running.site, "alice", mode) as client:
        tools = {tool.title: tool for tool in (await client.list_tools()).tools}
        add = tools[f"{echo_service.service}.add"]
        assert add.name.startswith(name[:20])
        assert add.input_schema["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer"}}
        assert (await client.call_tool(add.name, {"a": 1, "b": 2})).structured_content == {"result": 3}
        secret = tools[f"{echo_service.service}.secret"]
        assert (await client.call_tool(secret.name, {"value": "x"})).structured_content == {"result": "kept x"}
        failed = await client.call_tool(tools[f"{echo_service.service}.fail_value"].name, {})
        assert failed.is_error
        assert "hunter2" not in failed.model_dump_json()


async def test_the_sdk_for_typescript_lists_and_calls_tools(amqp_url: str, echo_service: ServiceProcess) -> None:
    if not (CLIENT / "node_modules" / "@modelcontextprotocol").exists():
        unavailable("the SDK for TypeScript is not installed: npm ci in clients/js")
    program = [*node(), str(CLIENT / "tests" / "agent.js")]
    async with on_rabbitmq(amqp_url, echo_service) as running:
        arguments = [running.site.http("/mcp"), "alice", f"{echo_service.service}.add"]
        done = await asyncio.to_thread(
            subprocess.run, [*program, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"structuredContent": {"result": 3}, "isError": False}
