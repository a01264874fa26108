"""Policy files, rates, ended subscriptions and explanations, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from nuropb_gateway_asgi import FunctionAuthenticator, Gateway, Identity, Settings, SettingsError
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.authorization import Decision, ExposePolicy
from nuropb_gateway_asgi.authorization import policy_file as _policy_file
from tests.kit.clients import Client, connect
from tests.kit.gateways import RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.processes import Process, run_forked, run_module
from tests.servers.processes import ServiceProcess

from .conftest import Broker

SECRET = "a secret that is long enough to sign with, and no longer"

GENEROUS = """\
[[rule]]
allow = "call"
methods = ["demo.*"]

[[rule]]
allow = "subscribe"
topics = ["demo.#", "users.{user_id}.#"]
"""
STRICT = """\
[[rule]]
allow = "call"
methods = ["demo.*"]

[[rule]]
deny = "call"
methods = ["demo.add"]

[[rule]]
allow = "subscribe"
topics = ["demo.tick", "users.{user_id}.#"]
"""
BROKEN = STRICT.replace('deny = "call"', 'denies = "call"')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(GENEROUS)
    return path


def replace(path: Path, text: str) -> None:
    beside = path.with_name("beside")
    beside.write_text(text)
    beside.replace(path)


async def claims_in_the_token(token: str) -> dict[str, Any]:
    """Read the claims from a token such as ``alice;scope=all;team=red``."""
    user_id, *claims = token.split(";")
    return {"user_id": user_id} | {name: value for name, _, value in (claim.partition("=") for claim in claims)}


# --- a file that changes --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def watched(path: Path) -> AsyncIterator[tuple[RunningGateway, Client, Client]]:
    """Run a gateway with this policy, and connections of alice and bob with subscriptions."""
    async with (
        run_gateway(gateway_with(path)) as gateway,
        connect(gateway.url, "alice") as alice,
        connect(gateway.url, "bob") as bob,
    ):
        for client in (alice, bob):
            user = client.hello["user_id"]
            answer = await client.ask("subscribe", topics=["demo.tick", "demo.news", f"users.{user}.mail"])
            assert answer["error"] is None
            assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
        yield gateway, alice, bob


def gateway_with(path: Path) -> Gateway:
    return make_gateway(Settings(policy=str(path)))


async def felt(client: Client) -> None:
    """Check that the strict rules are in force for this client."""
    event = (await client.event("unsubscribed"))["event"]
    assert event == {"topics": ["demo.news"], "reason": "policy"}
    assert await client.error_code("demo.add", {"a": 1, "b": 2}) == "permission_denied"
    assert await client.result("demo.echo") == {}
    topics = ["demo.tick", f"users.{client.hello['user_id']}.mail"]
    assert (await client.ask("unsubscribe", topics=[]))["result"] == {"topics": topics}
    refused = await client.ask("subscribe", topics=["demo.news"])
    assert refused["error"]["code"] == "permission_denied"


@pytest.mark.parametrize("how", ["replaced", "written over", "hangup"])
async def test_connections_feel_a_new_policy_and_lose_what_it_does_not_allow(
    path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_policy_file, "POLL_INTERVAL", 60.0 if how == "hangup" else 0.02)
    async with watched(path) as (gateway, alice, bob):
        if how == "replaced":
            replace(path, STRICT)
        else:
            path.write_text(STRICT)
        if how == "hangup":
            os.kill(os.getpid(), signal.SIGHUP)
        await felt(alice)
        await felt(bob)
        await gateway.gateway.service_mesh_manager.publish_event("demo.news", {"n": 1})
        await gateway.gateway.service_mesh_manager.publish_event("users.alice.mail", {"n": 2})
        assert (await alice.event("users.alice.mail"))["event"] == {"n": 2}
        seen = await alice.settled() + await bob.settled()
        assert {frame["payload"]["topic"] for frame in seen} <= {"demo.tick"}


async def test_while_the_policy_changes_every_frame_is_answered_once_and_by_one_of_the_two(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_policy_file, "POLL_INTERVAL", 60.0)
    async with run_gateway(make_gateway(Settings(policy=str(path), rate_limit="off"))) as gateway:
        file = gateway.gateway._policy_file
        assert file is not None

        async def go_on(name: str, done: asyncio.Event) -> None:
            async with connect(gateway.url, name) as client:
                allowed = {"ok": 0, "permission_denied": 0}
                number = 0
                while not (done.is_set() and number > 20):
                    number += 1
                    await client.send("subscribe", id=f"s{number}", topics=["demo.news"])
                    await client.request("demo.add", {"a": number, "b": 1}, id=f"c{number}")
                    answer = await client.answer(f"c{number}")
                    allowed["ok" if answer["error"] is None else answer["error"]["code"]] += 1
                    assert answer["result"] in (None, number + 1)
                    answer = await client.answer(f"s{number}")
                    assert answer["error"] is None or answer["error"]["code"] == "permission_denied"
                    await client.ask("unsubscribe", topics=["demo.news"])
                assert sum(allowed.values()) == number
                frames = await client.settled()
                assert {frame["payload"]["topic"] for frame in frames} <= {"unsubscribed"}

        async def reloaded(times: int) -> None:
            await eventually(lambda: file.reloads["ok"] >= times)

        done = asyncio.Event()
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(go_on, f"user{number}", done)
            for number in range(1, 31):
                path.write_text(STRICT if number % 2 else GENEROUS)
                os.kill(os.getpid(), signal.SIGHUP)
                await reloaded(number)
            done.set()
        assert file.reloads == {"ok": 30}


async def test_a_broken_policy_changes_nothing_and_is_told_to_operators(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_policy_file, "POLL_INTERVAL", 0.02)
    async with watched(path) as (gateway, alice, _), httpx.AsyncClient(trust_env=False) as browser:
        ready = await browser.get(gateway.site.http("/readyz"))
        assert ready.json()["policy"] == {"rules": 2, "problem": None}
        replace(path, BROKEN)
        problem = f"{path}:6: unknown key 'denies' in a rule; expected allow, deny, methods, topics, "
        await eventually(lambda: f"policy reload failed; keeping the previous policy: {problem}" in caplog.text)
        assert await alice.result("demo.add", {"a": 1, "b": 2}) == 3
        assert (await alice.ask("subscribe", topics=["demo.more"]))["error"] is None
        ready = await browser.get(gateway.site.http("/readyz"))
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert ready.json()["policy"]["problem"].startswith(problem)
        metrics = (await browser.get(gateway.site.http("/metrics"))).text
        assert 'nuropb_gateway_policy_reloads_total{result="failed"} 1.0' in metrics
        assert "nuropb_gateway_policy_broken 1.0" in metrics
        replace(path, STRICT)
        event = (await alice.event("unsubscribed"))["event"]
        assert event["topics"] == ["demo.news", "demo.more"]
        metrics = (await browser.get(gateway.site.http("/metrics"))).text
        assert 'nuropb_gateway_policy_reloads_total{result="ok"} 1.0' in metrics
        assert "nuropb_gateway_policy_broken 0.0" in metrics
        assert re.search(r'nuropb_gateway_subscriptions_ended_total{transport="websocket"} [1-9]', metrics)
        ready = await browser.get(gateway.site.http("/readyz"))
        assert ready.json()["policy"] == {"rules": 3, "problem": None}


async def test_without_a_policy_file_nothing_is_said_of_one() -> None:
    async with run_gateway() as gateway, httpx.AsyncClient(trust_env=False) as browser:
        assert "policy" not in (await browser.get(gateway.site.http("/readyz"))).json()


async def test_a_newer_token_with_fewer_claims_ends_what_it_does_not_allow(path: Path) -> None:
    path.write_text("""\
[[rule]]
allow = "call"
methods = ["demo.*"]
when = { scope = { equals = "all" } }

[[rule]]
allow = "subscribe"
topics = ["demo.tick"]

[[rule]]
allow = "subscribe"
topics = ["demo.#", "{claim:team}.#"]
when = { scope = { equals = "all" } }
""")
    gateway = make_gateway(Settings(policy=str(path)), authenticator=FunctionAuthenticator(claims_in_the_token))
    async with run_gateway(gateway) as running, connect(running.url, "alice;scope=all;team=red") as client:
        assert (await client.ask("subscribe", topics=["demo.tick", "demo.news", "red.x"]))["error"] is None
        assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
        assert (await client.ask("authorize", token="alice;scope=all;team=blue"))["error"] is None
        assert (await client.event("unsubscribed"))["event"] == {"topics": ["red.x"], "reason": "policy"}
        assert (await client.ask("authorize", token="alice"))["error"] is None
        assert (await client.event("unsubscribed"))["event"] == {"topics": ["demo.news"], "reason": "policy"}
        assert await client.error_code("demo.add", {"a": 1, "b": 2}) == "permission_denied"
        assert (await client.ask("subscribe", topics=[]))["result"] == {"topics": ["demo.tick"]}


# --- as a process ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(path: Path, **settings: str) -> AsyncIterator[tuple[Process, str]]:
    settings = {"JWT_KEY": SECRET, "POLICY": str(path), **settings}
    async with run_forked("nuropb_gateway_asgi", "serve", "--port", "0", settings=settings) as process:
        yield process, (await process.line(r"ws://\S+"))[0]


async def test_a_served_gateway_takes_the_policy_up_again_on_a_hangup(path: Path) -> None:
    async with serving(path) as (process, url), connect(url, issue_token(SECRET, "alice")) as client:
        assert (await client.ask("subscribe", topics=["demo.news"]))["error"] is None
        path.write_text(BROKEN)
        process.signal(signal.SIGHUP)
        await process.line(
            "policy reload failed; keeping the previous policy: "
            rf"{re.escape(str(path))}:6: unknown key 'denies' in a rule"
        )
        assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
        path.write_text(STRICT)
        process.signal(signal.SIGHUP)
        assert (await client.event("unsubscribed"))["event"]["topics"] == ["demo.news"]
        assert await client.error_code("demo.add", {"a": 1, "b": 2}) == "permission_denied"
        await process.line(rf"{re.escape(str(path))}: policy reloaded, 3 rules are in force")
        process.signal(signal.SIGTERM)
        assert await process.wait() in (0, -signal.SIGTERM)
        assert "Traceback" not in process.output


async def test_every_worker_takes_the_policy_up_again(path: Path) -> None:
    command = ("uvicorn", "nuropb_gateway_asgi:app", "--port", "0", "--workers", "2", "--ws", "websockets-sansio")
    settings = {"JWT_KEY": SECRET, "POLICY": str(path)}
    token = issue_token(SECRET, "alice")
    async with run_module(*command, settings=settings) as process:
        url = (await process.line(r"http://127\.0\.0\.1:\d+"))[0].replace("http", "ws") + "/ws"
        await eventually(lambda: process.output.count("Application startup complete") == 2)
        async with contextlib.AsyncExitStack() as stack:
            clients = []
            instances: set[str] = set()
            while len(instances) < 2:  # until both workers have a connection
                clients.append(await stack.enter_async_context(connect(url, token)))
                instances.add(clients[-1].hello["instance_id"])
            for client in clients:
                assert (await client.ask("subscribe", topics=["demo.news"]))["error"] is None
            replace(path, STRICT)
            for client in clients:
                assert (await client.event("unsubscribed"))["event"]["topics"] == ["demo.news"]
                assert await client.error_code("demo.add", {"a": 1, "b": 2}) == "permission_denied"
            # Each worker on its own, at the same time.
            pids = {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", process.output)}
            assert len(pids) == 2
            replace(path, GENEROUS)
            before = process.output.count("rules are in force")
            for pid in pids:
                os.kill(pid, signal.SIGHUP)
            await eventually(lambda: process.output.count("2 rules are in force") >= 2)
            assert process.output.count("rules are in force") >= before + 2
            for client in clients:
                assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
        process.signal(signal.SIGTERM)
        await process.wait()
        assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BROKEN, r":6: unknown key 'denies' in a rule; expected allow, deny, methods, .*"),
        ("", ":1: the file has no rule; expected at least one \\[\\[rule\\]\\]"),
        ("[[rule]]\nallow = call\n", ":2: .*; expected TOML"),
    ],
)
async def test_a_mistake_in_the_file_stops_the_start_with_one_line(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    settings = {"POLICY": str(path)}
    async with run_forked("nuropb_gateway_asgi", "serve", "--port", "0", settings=settings) as process:
        assert await process.wait() == 2
        assert process.stdout == []
        (line,) = process.stderr
        assert re.fullmatch(f"nuropb-gateway: {re.escape(str(path))}{said}", line)


def test_settings_that_contradict_each_other_stop_the_start(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^NUROPB_GATEWAY_EXPOSE: set together with POLICY"):
        Settings(policy=str(path), expose=["demo.*"])
    with pytest.raises(SettingsError, match=r"^NUROPB_GATEWAY_POLICY: the file cannot be read"):
        Gateway(Settings(policy=f"{path}x"))


async def test_with_a_policy_file_the_demo_is_not_exposed_by_itself(path: Path) -> None:
    path.write_text('[[rule]]\nallow = "call"\nmethods = ["demo.echo"]\n')
    async with run_gateway(gateway_with(path)) as gateway, connect(gateway.url, "alice") as client:
        assert await client.result("demo.echo") == {}
        assert await client.error_code("demo.add") == "permission_denied"
        described = (await client.ask("describe"))["result"]["services"]
        assert list(described["demo"]["methods"]) == ["echo"]
        assert (await client.ask("subscribe", topics=["demo.tick"]))["error"]["code"] == "permission_denied"


# --- an authorizer, a policy ----------------------------------------------------------------------------


async def test_an_authorizer_extends_the_rules_of_the_file(path: Path) -> None:
    path.write_text('[[rule]]\nallow = "call"\nmethods = ["demo.echo", "demo.add"]\n')

    def authorizer(identity: Identity, action: str, name: str, default: Decision) -> Decision | bool:
        if identity.user_id == "mallory":
            raise RuntimeError(identity.token)
        return default or (action == "call" and name == f"demo.{identity.username.lower()}")

    gateway = make_gateway(Settings(policy=str(path)), authorizer=authorizer)
    async with (
        run_gateway(gateway) as running,
        connect(running.url, "whoami") as client,
        connect(running.url, "mallory") as mallory,
    ):
        assert await client.result("demo.echo") == {}
        assert (await client.result("demo.whoami"))["user_id"] == "whoami"
        assert await client.error_code("demo.publish") == "permission_denied"
        assert await client.error_code("demo.nuropb_describe") == "permission_denied"
        described = (await client.ask("describe", service="demo"))["result"]["services"]
        assert set(described["demo"]["methods"]) == {"echo", "add", "whoami"}
        assert await mallory.error_code("demo.echo") == "permission_denied"


async def test_a_policy_in_python_takes_the_place_of_the_file(path: Path) -> None:
    path.write_text(BROKEN)
    gateway = make_gateway(Settings(policy=str(path)), policy=ExposePolicy(["demo.echo"], []))
    async with run_gateway(gateway) as running, connect(running.url, "alice") as client:
        assert await client.result("demo.echo") == {}
        assert await client.error_code("demo.add") == "permission_denied"


# --- rates ----------------------------------------------------------------------------------------------


async def test_a_client_over_its_rate_is_told_to_wait_and_then_hung_up_on() -> None:
    async with run_gateway(rate_limit="1/h burst 5") as gateway, connect(gateway.url, "alice") as client:
        for number in range(5):
            assert await client.result("demo.echo", id=str(number)) == {}
        answer = await client.call("demo.echo", id="5")
        assert answer["error"]["code"] == "too_many_requests"
        assert answer["error"]["retryable"] is True
        assert 3_000_000 < answer["error"]["retry_after_ms"] <= 3_600_000
        for number in range(6, 200):
            with contextlib.suppress(ConnectionClosed):
                await client.request("demo.echo", id=str(number))
        closed = await client.closed()
        assert (closed.code, closed.reason) == (4029, "too many requests")
        # Every processed frame has one answer: 101 refusals, one of them awaited above.
        ids = [frame["payload"]["id"] for frame in closed.frames]
        assert ids == [str(number) for number in range(6, 106)]
        assert gateway.gateway.handler_manager.statistics.limited == {"connection": 101}
        async with httpx.AsyncClient(trust_env=False) as browser:
            metrics = (await browser.get(gateway.site.http("/metrics"))).text
        assert 'nuropb_gateway_rate_limited_total{scope="connection",transport="websocket"} 101.0' in metrics
        assert 'nuropb_gateway_connections_closed_total{code="4029",transport="websocket"} 1.0' in metrics


async def test_frames_that_are_none_count_too() -> None:
    async with run_gateway(rate_limit="1/h burst 2") as gateway, connect(gateway.url, "alice") as client:
        for text in ("nonsense", "{}", "nonsense", '{"type":"pong"}', '{"type":"cancel","payload":{"id":"1"}}'):
            await client.send_text(text)
        codes = [(await client.error())["code"] for _ in range(4)]
        assert codes == ["bad_request", "bad_request", "too_many_requests", "too_many_requests"]


async def test_the_connections_of_a_user_share_a_rate() -> None:
    async with (
        run_gateway(rate_limit_user="1/h burst 3") as gateway,
        connect(gateway.url, "alice") as one,
        connect(gateway.url, "alice") as two,
        connect(gateway.url, "bob") as bob,
    ):
        assert await one.result("demo.echo") == {}
        assert await two.result("demo.echo") == {}
        assert await one.result("demo.echo") == {}
        assert await two.error_code("demo.echo") == "too_many_requests"
        assert await bob.result("demo.echo") == {}
        async with connect(gateway.url, "alice") as three:
            assert await three.error_code("demo.echo") == "too_many_requests"


async def test_the_rate_of_a_rule_is_for_its_calls(path: Path) -> None:
    path.write_text("""\
[[rule]]
allow = "call"
methods = ["demo.*"]

[[rule]]
allow = "call"
methods = ["demo.add"]
rate = "1/h"
burst = 2

[[rule]]
allow = "call"
methods = ["demo.whoami"]
rate = "1/h"
per = "process"
""")
    async with (
        run_gateway(gateway_with(path)) as gateway,
        connect(gateway.url, "alice") as alice,
        connect(gateway.url, "bob") as bob,
    ):
        for client in (alice, bob):
            assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
            assert await client.result("demo.add", {"a": 1, "b": 2}) == 3
            assert await client.error_code("demo.add", {"a": 1, "b": 2}) == "too_many_requests"
            assert await client.result("demo.echo") == {}
        assert (await alice.result("demo.whoami"))["user_id"] == "alice"
        assert await bob.error_code("demo.whoami") == "too_many_requests"


# --- explain --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def explaining(*arguments: str, **settings: str) -> AsyncIterator[Process]:
    async with run_forked("nuropb_gateway_asgi", "explain", *arguments, settings=settings) as process:
        yield process


async def test_a_decision_is_explained_from_the_token_to_the_context(path: Path) -> None:
    path.write_text(STRICT)
    token = issue_token(SECRET, "alice", username="Alice", scope="a b")
    settings = {"JWT_KEY": SECRET, "POLICY": str(path)}
    async with explaining("demo.add", "--token", token, **settings) as process:
        assert await process.wait() == 1
        assert process.stderr == []
        assert process.stdout[0] == f"call demo.add: no, {path}:5 denies demo.add (permission_denied)"
        for line in (
            "Token     valid",
            'scope = "a b"',
            f"> {path}:5: deny call demo.add: decides",
            f"{path}:1: allow call demo.*: is weaker than {path}:5, which names the method without *",
            "it has the method; calls are not encrypted",
            "Authorization = Bearer ***",
        ):
            assert line in process.output
        assert token not in process.output
        assert token.rpartition(".")[2] not in process.output
    token_file = path.with_name("token")
    token_file.write_text(token + "\n")
    async with explaining("demo.echo", "--token-file", str(token_file), "--json", **settings) as process:
        assert await process.wait() == 0
        found = json.loads("\n".join(process.stdout))
        assert found["outcome"] == {"allowed": True, "code": "ok", "why": "the call would be sent"}
        assert found["policy"]["rule"] == f"{path}:1"
    async with explaining("--topic", "demo.#", TOKEN=token, **settings) as process:
        assert await process.wait() == 1
        assert process.stdout[0] == "subscribe demo.#: no, no rule allows it (permission_denied)"


async def test_what_cannot_be_explained_says_what_is_missing(path: Path) -> None:
    for arguments, settings, said in (
        (["demo.add"], {}, "a token is needed: --token, --token-file or NUROPB_GATEWAY_TOKEN"),
        ([], {"TOKEN": "x"}, "one of service.method and --topic is needed"),
        (["demo.add", "--topic", "a"], {"TOKEN": "x"}, "one of service.method and --topic is needed"),
        (["demo.add"], {"TOKEN": "x", "POLICY": "/missing"}, "NUROPB_GATEWAY_POLICY: the file cannot be read"),
        (["demo.add", "--token-file", "/missing"], {}, "No such file"),
    ):
        async with explaining(*arguments, **settings) as process:
            assert await process.wait() == 2
            assert process.stdout == []
            (line,) = process.stderr
            assert said in line


EXPLAINED = [
    # method, outcome, line about the mesh
    ("echo", "yes, the call would be sent", "it has the method; calls are not encrypted"),
    ("secret", "yes, the call would be sent", "it has the method; calls are encrypted"),
    ("hidden", "no, the service has no such method, or hides it (method_not_found)", "it has no such method, or hides"),
]


async def test_a_real_service_is_asked_and_nothing_is_taken_from_running_gateways(
    rabbitmq: Broker, echo_service: ServiceProcess, path: Path
) -> None:
    name = f"gateway-{secrets.token_hex(3)}"
    path.write_text('[[rule]]\nallow = "call"\nmethods = ["*.*"]\n')
    settings = {"MESH_URL": rabbitmq.url, "SERVICE_NAME": name, "JWT_KEY": SECRET, "POLICY": str(path)}
    settings["TOKEN"] = issue_token(SECRET, "alice")
    for method, said, of_the_mesh in EXPLAINED:
        async with explaining(f"{echo_service.service}.{method}", **settings) as process:
            assert await process.wait() == (0 if said.startswith("yes") else 1)
            assert process.stderr == []
            assert process.stdout[0] == f"call {echo_service.service}.{method}: {said}"
            assert of_the_mesh in process.output
    async with explaining("nobody.at_all", **settings) as process:
        assert await process.wait() == 1
        assert process.stdout[0] == "call nobody.at_all: no, Service nobody is not available (service_unavailable)"
    if rabbitmq.node is not None:
        queues = [queue["name"] for queue in rabbitmq.node.list_queues(rabbitmq.vhost)]
        assert f"nuropb-{name}-sq" not in queues


async def test_a_broker_that_is_not_there_is_part_of_the_explanation(path: Path) -> None:
    settings = {"MESH_URL": "amqp://me:hunter2@127.0.0.1:1/nuropb", "JWT_KEY": SECRET, "POLICY": str(path)}
    settings["TOKEN"] = issue_token(SECRET, "alice")
    async with explaining("demo.echo", "--timeout", "0.3", **settings) as process:
        assert await process.wait() == 1
        assert process.stdout[0].startswith("call demo.echo: no, the mesh is not reachable: publishing connection: ")
        assert f"allowed: {path}:1 allows demo.*" in process.output
        assert process.stderr == []
        assert "hunter2" not in process.output
