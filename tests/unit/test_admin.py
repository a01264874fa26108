"""The admin API of one process on the embedded mesh, at a Unix socket and at a port."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import socket
import stat
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.admin import endpoint
from nuropb_gateway_asgi.admin.address import Taken, taking
from nuropb_gateway_asgi.admin.api import ACTIONS
from nuropb_gateway_asgi.admin.endpoint import MAX_BODY
from nuropb_gateway_asgi.admin.guard import ATTEMPTS
from nuropb_gateway_asgi.exceptions import AuthenticationFailed
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.kit.gateways import make_gateway
from tests.kit.waiting import DEADLINE, eventually

from .fakes import FakeHandler, request_frame

TOKEN = "an-admin-token-of-32-characters-or-more"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


class Orders:
    """A service that never answers."""

    async def get(self) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def running(
    address: str, policy_file: str = "", **settings: Any
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """Run a gateway with an admin API, and a client of that API."""
    settings = {"expose": ["orders.*"], "expose_topics": ["#"], **settings}
    given = Settings(admin_listen=address, server_protocols="off", policy=policy_file, **settings)
    gateway = make_gateway(given, mesh=EmbeddedMesh({"orders": Orders()}))
    path = address.removeprefix("unix:") if address.startswith("unix:") else None
    url = "http://localhost" if path is not None else f"http://{address}"
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with gateway.lifespan(), httpx.AsyncClient(transport=transport, base_url=url, trust_env=False) as client:
        async with asyncio.timeout(DEADLINE):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/v1/nothing")).status_code == 404:
                        break
                await asyncio.sleep(0.01)
        yield gateway, client


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@pytest.fixture
async def admin(socket_path: Path) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    async with running(f"unix:{socket_path}") as both:
        yield both


@pytest.fixture
async def at_port(tmp_path: Path) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    audit = tmp_path / "audit.jsonl"
    async with running(f"127.0.0.1:{port}", admin_token=TOKEN, audit_log=str(audit)) as both:
        yield both


async def connect(gateway: Gateway, token: str = "alice") -> FakeHandler:
    handler = FakeHandler()
    await gateway.handler_manager.register(handler, token)
    return handler


def receive(gateway: Gateway, handler: FakeHandler, frame: dict[str, Any]) -> None:
    gateway.handler_manager.on_handler_message(handler, json.dumps(frame))


async def ask(client: httpx.AsyncClient, path: str, body: Any = None, **query: Any) -> Any:
    response = await (
        client.get(f"/v1/{path}", params=query) if body is None else client.post(f"/v1/{path}", json=body)
    )
    assert response.status_code == 200, response.text
    return response.json()


# --- actions ------------------------------------------------------------------------------------------------------


async def test_connections_are_listed_with_their_topics_and_their_calls_in_flight(
    admin: tuple[Gateway, httpx.AsyncClient],
) -> None:
    gateway, client = admin
    alice, bob = await connect(gateway), await connect(gateway, "bob")
    receive(gateway, alice, {"type": "subscribe", "payload": {"id": "s", "topics": ["news.#", "users.alice"]}})
    receive(gateway, alice, request_frame(id="1", trace_id="t" * 32))
    await eventually(lambda: gateway.service_mesh_manager.in_flight)
    everybody = await ask(client, "connections")
    assert [each["user_id"] for each in everybody["connections"]] == ["alice", "bob"]
    assert (everybody["total"], everybody["missing"]) == (2, [])
    (one,) = (await ask(client, "connections", user_id="alice"))["connections"]
    assert one["session_id"] == alice.session_id
    assert (one["transport"], one["instance_id"]) == ("websocket", gateway.settings.instance_id)
    assert (one["topics"], one["topic_count"]) == (["news.#", "users.alice"], 2)
    (call,) = one["calls"]
    assert (one["in_flight"], call["service"], call["method"], call["trace_id"]) == (1, "orders", "get", "t" * 32)
    (other,) = (await ask(client, "connections", session_id=bob.session_id))["connections"]
    assert (other["user_id"], other["topics"], other["calls"]) == ("bob", [], [])
    limited = await ask(client, "connections", limit=1)
    assert (len(limited["connections"]), limited["total"]) == (1, 2)
    for handler in (alice, bob):
        gateway.handler_manager.unregister(handler)


async def test_users_and_sessions_are_disconnected(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    gateway, client = admin
    alice, bob = await connect(gateway), await connect(gateway, "bob")
    assert (await ask(client, "disconnect", {"user_ids": ["alice"]}))["count"] == 1
    body = {"session_id": bob.session_id, "code": 4100, "reason": "maintenance"}
    assert (await ask(client, "disconnect", body))["count"] == 1
    assert (alice.closes, bob.closes) == ([(4503, "disconnected")], [(4100, "maintenance")])
    for handler in (alice, bob):
        gateway.handler_manager.unregister(handler)


async def test_tokens_are_revoked_and_accepted_again(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    gateway, client = admin
    alice = await connect(gateway)
    await ask(client, "revoke", {"user_id": "alice"})
    await eventually(lambda: alice.closes)
    gateway.handler_manager.unregister(alice)
    with pytest.raises(AuthenticationFailed):
        await connect(gateway)
    await ask(client, "unrevoke", {"user_id": "alice"})
    gateway.handler_manager.unregister(await connect(gateway))


async def test_an_event_is_published(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    gateway, client = admin
    alice = await connect(gateway)
    receive(gateway, alice, {"type": "subscribe", "payload": {"id": "s", "topics": ["news.#"]}})
    await eventually(lambda: alice.frames)
    alice.take()
    assert await ask(client, "publish", {"topic": "news.today", "event": {"n": [1, 2.50]}}) == {"published": True}
    await eventually(lambda: alice.frames)
    payload = alice.frames[0]["payload"]
    assert (payload["topic"], payload["event"]) == ("news.today", {"n": [1, 2.5]})
    gateway.handler_manager.unregister(alice)


async def test_circuits_and_budgets_are_listed_and_reset(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    gateway, client = admin
    budgets, calls = gateway.handler_manager.shared_limits.budgets, gateway.service_mesh_manager.calls
    alice = await connect(gateway)
    for number in range(5):
        receive(gateway, alice, request_frame(id=str(number), timeout=0.15))
        await eventually(lambda: gateway.service_mesh_manager.in_flight == 0)
    await eventually(lambda: calls.breakers.open())
    found = await ask(client, "circuits")
    (circuit,) = found["circuits"]
    assert (circuit["service"], circuit["open"], circuit["timeouts"]) == ("orders", True, 5)
    (budget,) = found["budgets"]
    assert (budget["user_id"], budget["errors"]) == ("alice", 5)
    assert (await ask(client, "reset", {"service": "other"}))["count"] == 0
    assert (await ask(client, "reset", {"service": "orders"}))["count"] == 1
    assert (calls.breakers.open(), len(budgets)) == ([], 1)
    assert (await ask(client, "reset", {"user_id": "alice"}))["count"] == 1
    assert (await ask(client, "circuits")) == {"circuits": [], "budgets": [], "missing": []}
    gateway.handler_manager.unregister(alice)


async def test_the_policy_is_read_again_and_its_mistakes_are_told(socket_path: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nallow = "call"\nmethods = ["orders.*"]\n')
    async with running(f"unix:{socket_path}", policy_file=str(policy), expose=None, expose_topics=None) as (_, client):
        (before,) = (await ask(client, "status"))["processes"]
        assert before["policy"]["problem"] is None
        policy.write_text("[[rule]]\nwrong = 1\n")
        (after,) = (await ask(client, "reload", {}))["processes"]
        assert "policy.toml" in after["policy"]["problem"]


async def test_the_level_of_the_log_is_shown_and_set(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    gateway, client = admin
    logger = logging.getLogger("nuropb_gateway_asgi")
    levels = {
        name: logging.getLogger(name).level for name in (logger.name, "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
    }
    try:
        name = gateway.settings.instance_id
        assert (await ask(client, "log-level", {"level": "debug"}))["levels"] == {name: "debug"}
        assert logger.level == logging.DEBUG
        assert (await ask(client, "log-level"))["levels"] == {name: "debug"}
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


async def test_a_debug_bundle_has_the_state_of_the_process_and_no_secret(socket_path: Path) -> None:
    secret = "a-very-secret-key-of-more-than-32-bytes"
    settings = {"jwt_key": secret, "admin_token": TOKEN}
    async with running(f"unix:{socket_path}", **settings) as (gateway, client):
        alice = await connect(gateway, "alice:her-own-token")
        logging.getLogger("nuropb_gateway_asgi.somewhere").warning("a warning of %s", "the test")
        response = await client.get("/v1/debug-bundle", headers=HEADERS)
        gateway.handler_manager.unregister(alice)
        name = gateway.settings.instance_id
    assert response.headers["content-type"] == "application/gzip"
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        names = {each.name.partition("/")[2] for each in archive.getmembers()}
        texts = b"".join(archive.extractfile(each).read() for each in archive.getmembers())  # type: ignore[union-attr]
        (report,) = (
            json.load(archive.extractfile(each))  # type: ignore[arg-type]
            for each in archive.getmembers()
            if each.name.endswith(f"processes/{name}.json")
        )
    assert {f"processes/{name}.json", "circuits.json", "missing.json"} <= names
    assert (report["settings"]["JWT_KEY"], report["settings"]["ADMIN_TOKEN"]) == ("<hidden>", "<hidden>")
    assert report["tables"]["websocket"]["connections"] == 1
    assert any(task["name"] == "admin" and task["at"] for task in report["tasks"]["listed"])
    assert any("a warning of the test" in line for line in report["recent_warnings"])
    assert report["versions"]["uvicorn"]
    for each in (secret, TOKEN, "her-own-token"):
        assert each.encode() not in texts


# --- mistakes -----------------------------------------------------------------------------------------------------


MISTAKES: list[tuple[str, Any]] = [
    ("disconnect", {}),
    ("disconnect", {"user_ids": ["a"], "session_id": "b"}),
    ("disconnect", {"user_ids": ["a"], "code": 1000}),
    ("disconnect", {"user_ids": ["a"], "why": 1}),
    ("disconnect", {"user_ids": "a"}),
    ("revoke", {}),
    ("revoke", {"user_id": "a", "token_id": "b"}),
    ("revoke", {"issued_before": 1e300}),
    ("publish", {"topic": "hello", "event": 1}),
    ("publish", {"topic": "", "event": 1}),
    ("publish", {"event": 1}),
    ("reset", {"service": "a", "user_id": "b"}),
    ("log-level", {"level": "loud"}),
    ("log-level", []),
    ("reload", {"x": 1}),
]


async def test_parameters_that_fit_no_action_are_a_mistake(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    for path, body in MISTAKES:
        response = await admin[1].post(f"/v1/{path}", json=body)
        assert (response.status_code, response.json()["code"]) == (400, "invalid"), body
        assert response.json()["description"]
    for query in ("limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "user=alice", "user_id="):
        assert (await admin[1].get(f"/v1/connections?{query}")).status_code == 400, query


async def test_a_body_that_is_no_object_is_a_mistake(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    for content in (b"{", b"\xff", b"[" * 100_000, b'"x"', b"null"):
        response = await admin[1].post("/v1/reset", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, content


async def test_a_body_of_another_type_is_refused_as_a_form_of_another_site_could_send_it(
    admin: tuple[Gateway, httpx.AsyncClient],
) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = await admin[1].post("/v1/reset", content=b"{}", headers={"Content-Type": kind})
        assert response.status_code == 415


async def test_a_huge_body_is_refused(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 65536 + 1):
            yield b" " * 65536

    bodies: list[Any] = [b" " * (MAX_BODY + 1), parts()]
    for content in bodies:
        response = await admin[1].post("/v1/reset", content=content, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["code"]) == (413, "too_large")


async def test_a_path_leads_nowhere_else(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    for path in ("/console/../../settings.py", "/console/%2e%2e/__init__.py", "/console/admin.html", "/v1/", "/v1"):
        url = httpx.URL("http://localhost", raw_path=path.encode())
        assert (await admin[1].get(url)).status_code == 404, path


async def test_every_action_has_one_place() -> None:
    assert len({(each.method, each.path) for each in ACTIONS}) == len(ACTIONS) == len({each.name for each in ACTIONS})
    assert {each.audited for each in ACTIONS if each.method == "POST"} == {"each time"}


# --- strangers ----------------------------------------------------------------------------------------------------


async def test_every_action_needs_the_token_at_a_port(at_port: tuple[Gateway, httpx.AsyncClient]) -> None:
    _, client = at_port
    for action in ACTIONS[: ATTEMPTS - 1]:
        response = await client.request(action.method, f"/v1/{action.path}", headers={"Authorization": "Bearer no"})
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert (await client.get("/v1/status", headers=HEADERS)).status_code == 200


async def test_wrong_tokens_lock_an_address_out_and_are_counted_and_audited(
    at_port: tuple[Gateway, httpx.AsyncClient],
) -> None:
    gateway, client = at_port
    for _ in range(ATTEMPTS):
        assert (await client.get("/v1/status", headers={"Authorization": "Bearer guess"})).status_code == 401
    locked = await client.get("/v1/status", headers=HEADERS)
    assert locked.status_code == 429
    assert 1 <= int(locked.headers["retry-after"]) <= 60
    text = Path(gateway.settings.audit_log).read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    reasons = [each["Attributes"]["nuropb.reason"] for each in entries if each["EventName"].endswith("admin_refused")]
    assert reasons == ["token"] * ATTEMPTS + ["locked"]
    assert "guess" not in text


async def test_a_page_of_another_site_reaches_nothing(admin: tuple[Gateway, httpx.AsyncClient]) -> None:
    gateway, client = admin
    alice = await connect(gateway)
    for headers in ({"Host": "rebound.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        response = await client.post("/v1/disconnect", json={"user_ids": ["alice"]}, headers=headers)
        assert response.status_code == 403
        assert not any(name.startswith("access-control") for name in response.headers)
        assert (await client.options("/v1/disconnect", headers=headers)).status_code == 403
        assert (await client.get("/", headers=headers)).status_code == 403
    assert alice.closes == []
    gateway.handler_manager.unregister(alice)


async def test_a_body_that_does_not_come_is_not_waited_for(
    admin: tuple[Gateway, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "BODY_TIMEOUT", 0.05)
    path = str(admin[0].settings.admin_address)
    reader, writer = await asyncio.open_unix_connection(path)
    head = "POST /v1/reset HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    writer.write(head.encode())
    async with asyncio.timeout(DEADLINE):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_connections_without_requests_are_bounded(at_port: tuple[Gateway, httpx.AsyncClient]) -> None:
    gateway, client = at_port
    host, _, port = gateway.settings.admin_listen.partition(":")
    opened = [socket.create_connection((host, int(port))) for _ in range(40)]
    try:
        async with asyncio.timeout(DEADLINE):
            while (await client.get("/v1/status", headers=HEADERS)).status_code != 503:
                await asyncio.sleep(0.01)
    finally:
        for each in opened:
            each.close()
    async with asyncio.timeout(DEADLINE):
        while (await client.get("/v1/status", headers=HEADERS)).status_code != 200:
            await asyncio.sleep(0.01)


async def test_the_page_asks_for_a_token_only_where_one_is_needed(
    admin: tuple[Gateway, httpx.AsyncClient], at_port: tuple[Gateway, httpx.AsyncClient]
) -> None:
    for (_, client), expected in ((admin, "no"), (at_port, "yes")):
        page = await client.get("/")
        assert f'data-token="{expected}"' in page.text
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert (await client.get("/console/admin.js")).status_code == 200


async def test_audited_actions_say_who_did_what_and_hold_no_event(at_port: tuple[Gateway, httpx.AsyncClient]) -> None:
    gateway, client = at_port
    client.headers.update(HEADERS)
    await ask(client, "publish", {"topic": "news.x", "event": {"secret": "hunter2"}})
    await ask(client, "status")
    await client.post("/v1/reset", json={"service": "x" * 1025})
    text = Path(gateway.settings.audit_log).read_text()
    found = [json.loads(line)["Attributes"] for line in text.splitlines() if "admin_action" in line]
    assert [(each["nuropb.action"], each["nuropb.outcome"]) for each in found] == [
        ("publish", "ok"),
        ("reset", "invalid"),
    ]
    assert json.loads(found[0]["nuropb.parameters"]) == {"topic": "news.x", "event": "20 bytes"}
    assert found[0]["client.address"] == "127.0.0.1"
    assert "hunter2" not in text
    assert TOKEN not in text


async def test_reads_of_data_of_users_are_audited_once_in_a_while_and_each_bundle(
    at_port: tuple[Gateway, httpx.AsyncClient],
) -> None:
    gateway, client = at_port
    client.headers.update(HEADERS)
    for _ in range(3):  # as the page does
        for path in ("status", "connections", "circuits", "log-level"):
            await ask(client, path)
    await ask(client, "connections", user_id="alice")
    for _ in range(2):
        assert (await client.get("/v1/debug-bundle")).status_code == 200
    text = Path(gateway.settings.audit_log).read_text()
    found = [json.loads(line)["Attributes"] for line in text.splitlines() if "admin_action" in line]
    assert [(each["nuropb.action"], each["nuropb.parameters"]) for each in found] == [
        ("connections", '{"limit":100}'),
        ("circuits", "{}"),
        ("connections", '{"user_id":"alice","limit":100}'),
        ("debug-bundle", "{}"),
        ("debug-bundle", "{}"),
    ]


async def test_each_reason_to_refuse_a_request_is_a_series_from_the_start(
    at_port: tuple[Gateway, httpx.AsyncClient],
) -> None:
    gateway, _ = at_port
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway") as client:
        text = (await client.get("/metrics")).text
    for reason in ("host", "origin", "token", "locked"):
        assert f'nuropb_gateway_admin_refused_total{{reason="{reason}"}} 0.0' in text


# --- the address --------------------------------------------------------------------------------------------------


async def test_only_its_user_may_enter_the_socket_and_it_is_gone_in_the_end(socket_path: Path) -> None:
    async with running(f"unix:{socket_path}"):
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert not socket_path.exists()


def test_one_process_has_a_socket_at_a_time_and_the_next_one_takes_it_over(socket_path: Path) -> None:
    with taking(str(socket_path)), pytest.raises(Taken), taking(str(socket_path)):
        pass
    socket_path.touch()
    with pytest.raises(FileExistsError), taking(str(socket_path)):
        pass
    socket_path.unlink()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(socket_path))
    with taking(str(socket_path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path))


def test_one_process_has_a_port_at_a_time() -> None:
    with taking(("127.0.0.1", 0)) as listener, pytest.raises(Taken), taking(listener.getsockname()):
        pass


async def test_a_process_that_waits_for_the_address_serves_it_once_it_is_free(socket_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        with taking(str(socket_path)) as listener:
            listener.close()
            gateway = make_gateway(admin_listen=f"unix:{socket_path}")
            await stack.enter_async_context(gateway.lifespan())
        transport = httpx.AsyncHTTPTransport(uds=str(socket_path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            end = time.monotonic() + 20
            while time.monotonic() < end:
                with contextlib.suppress(httpx.TransportError):
                    assert (await client.get("/v1/status")).status_code == 200
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("nobody serves the address")
