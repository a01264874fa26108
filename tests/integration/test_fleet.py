"""Several processes of one gateway on a real broker: messages to users, presence, and revocations in all of them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import aio_pika
import aiormq.exceptions
import anyio
import pytest

from nuropb_gateway_asgi import JWTAuthenticator
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.exceptions import CallError
from nuropb_gateway_asgi.fleet import members as fleet_members
from nuropb_gateway_asgi.fleet import presence as fleet_presence
from nuropb_gateway_asgi.fleet import roster as fleet_roster
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _mesh
from tests.integration.conftest import Broker
from tests.integration.scene import delete_queues
from tests.kit.clients import Client, connect, refusal
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.processes import run_forked
from tests.kit.waiting import in_time
from tests.servers.faults import FaultProxy
from tests.servers.processes import ServiceProcess, call_with_nuropb
from tests.servers.rabbitmq import RabbitMQNode

SECRET: Final = secrets.token_urlsafe(48)
#: Seconds within which a message or a revocation has to reach every process.
REACH: Final = 2.0


def mesh_of(running: RunningGateway) -> RabbitMQMesh:
    mesh = running.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    return mesh


def members(running: RunningGateway) -> int:
    return len(running.gateway.service_mesh_manager.fleet.members)


@contextlib.asynccontextmanager
async def process(url: str, name: str, **settings: Any) -> AsyncIterator[RunningGateway]:
    """Run one process of the gateway ``name``, with JSON web tokens."""
    options: dict[str, Any] = {"expose": ["*.*"], "jwt_key": SECRET, "mesh_url": url, "service_name": name} | settings
    gateway = make_gateway(authenticator=JWTAuthenticator(SECRET), **options)
    async with run_gateway(gateway) as running:
        await eventually(lambda: not gateway.not_ready())
        yield running
    await delete_queues(url, mesh_of(running))
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.queue_delete(mesh_of(running).peers.queue)


@contextlib.asynccontextmanager
async def fleet(url: str, count: int, **settings: Any) -> AsyncIterator[list[RunningGateway]]:
    """Run ``count`` processes that know each other."""
    name = f"gateway-{secrets.token_hex(4)}"
    try:
        async with contextlib.AsyncExitStack() as stack:
            found = [
                await stack.enter_async_context(process(url, name, instance_id=f"process-{number}", **settings))
                for number in range(count)
            ]
            await eventually(lambda: all(members(running) == count - 1 for running in found))
            yield found
    finally:
        await delete_fleet(url, name)


async def delete_fleet(url: str, name: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.queue_delete(f"nuropb-{name}-records")
        await channel.exchange_delete(f"nuropb-{name}-fx")


def token_of(user_id: str, **claims: Any) -> str:
    return issue_token(SECRET, user_id, **claims)


async def closed_within(client: Client, seconds: float) -> int:
    async with in_time(seconds):
        return (await client.closed()).code


async def test_users_are_reached_in_all_processes(amqp_url: str) -> None:
    async with fleet(amqp_url, 3) as (one, two, three), contextlib.AsyncExitStack() as stack:

        async def connected(running: RunningGateway, user_id: str) -> Client:
            return await stack.enter_async_context(connect(running.url, token_of(user_id)))

        alices = [await connected(one, "alice"), await connected(two, "alice")]
        bob = await connected(three, "bob")
        manager = three.gateway.service_mesh_manager
        async with in_time(REACH):
            reached = await manager.send_to_users(["alice"], "private", {"n": 1})
            assert (reached.count, reached.processes, reached.missing) == (2, 3, [])
            for alice in alices:
                assert (await alice.event("private"))["event"] == {"n": 1}
        assert (await manager.send_to_all("news", None)).count == 3
        assert (await manager.send_to_session(alices[0].hello["session_id"], "mine", 1)).count == 1
        assert (await alices[0].event("mine"))["event"] == 1
        assert (await bob.event("news"))["event"] is None
        sessions = (await one.gateway.service_mesh_manager.list_sessions("alice")).sessions
        assert {each.session_id for each in sessions} == {alice.hello["session_id"] for alice in alices}
        assert (await manager.count()).by_process == {"process-0": 1, "process-1": 1, "process-2": 1}
        assert (await manager.is_online(["alice", "carol"])).online == {"alice": True, "carol": False}
        assert (await manager.disconnect_users(["alice"], 4321, "bye")).count == 2
        for alice in alices:
            assert await closed_within(alice, REACH) == 4321
        assert await bob.settled() == []


async def test_in_a_large_fleet_only_those_are_asked_that_have_the_users(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_roster, "SMALL_FLEET", 3)
    monkeypatch.setattr(fleet_members, "ALIVE_INTERVAL", 0.3)
    async with fleet(amqp_url, 5) as processes, contextlib.AsyncExitStack() as stack:
        managers = [running.gateway.service_mesh_manager for running in processes]
        await eventually(lambda: all(manager.whereabouts.is_settled() for manager in managers))
        clients = [
            await stack.enter_async_context(connect(running.url, token_of(f"user-{number}")))
            for number, running in enumerate(processes)
        ]
        for number, client in enumerate(clients):
            manager = managers[number - 1]
            reached = await manager.send_to_users([f"user-{number}"], "private", number)
            assert (reached.count, reached.processes, reached.missing) == (1, 2, [])
            assert (await client.event("private"))["event"] == number
        assert (await managers[0].count()).processes == 5
        leader = next(manager for manager in managers if manager.fleet.roster.leads)
        assert all(manager.fleet.roster.leader == leader.mesh.address for manager in managers)


async def test_a_nuropb_service_reaches_users_by_the_controller(amqp_url: str, echo_service: ServiceProcess) -> None:
    async with fleet(amqp_url, 2) as (one, two):
        name = one.gateway.settings.service_name
        async with connect(one.url, token_of("alice")) as here, connect(two.url, token_of("alice")) as there:

            async def call(method: str, **params: Any) -> Any:
                return await anyio.to_thread.run_sync(call_with_nuropb, amqp_url, name, method, params)

            answer = await call("send_to_users", user_ids=["alice"], topic="mail", event=["new"])
            assert answer["result"] == {"count": 2, "processes": 2, "missing": []}
            for client in (here, there):
                assert (await client.event("mail"))["event"] == ["new"]
            answer = await call("send_to_users", user_ids="alice", topic="mail")
            assert answer["error"]["error"] == "NuropbValidationError"
            answer = await call("revoke", user_id="alice")
            assert answer["error"] is None
            for client in (here, there):
                assert await closed_within(client, REACH) == 4511


async def test_no_wildcard_includes_another_gateway(amqp_url: str) -> None:
    inner, outer = f"inner-{secrets.token_hex(4)}", f"outer-{secrets.token_hex(4)}"
    async with (
        process(amqp_url, inner) as inside,
        process(amqp_url, outer, expose=["*.*", f"{inner}.count"]) as outside,
        connect(inside.url, token_of("alice")),
        connect(outside.url, token_of("mallory")) as mallory,
    ):
        for method, params in (
            ("list_sessions", {"user_id": "alice"}),
            ("send_to_users", {"user_ids": ["alice"], "topic": "t", "event": 1}),
            ("revoke", {"user_id": "alice"}),
        ):
            assert await mallory.error_code(f"{inner}.{method}", params) == "permission_denied"
        # What a rule names is as ever.
        assert (await mallory.result(f"{inner}.count", {}))["count"] == 1


async def test_a_process_that_hangs_or_dies_is_named_and_then_forgotten(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_members, "SILENCE", 3.5)
    name = f"gateway-{secrets.token_hex(4)}"
    settings = {"MESH_URL": amqp_url, "JWT_KEY": SECRET, "SERVICE_NAME": name, "INSTANCE_ID": "mortal"}
    async with process(amqp_url, name, instance_id="witness") as witness:
        async with run_forked("uvicorn", "nuropb_gateway_asgi:app", "--port", "0", settings=settings) as mortal:
            site = (await mortal.line(r"running on http://([0-9.:]+)"))[1]
            await mortal.line("mesh: revocations are read")
            await eventually(lambda: members(witness) == 1)
            async with connect(f"ws://{site}/ws", token_of("alice")):
                manager = witness.gateway.service_mesh_manager
                assert (await manager.count()).by_process == {"witness": 0, "mortal": 1}
                mortal.signal(signal.SIGKILL)
                async with in_time(REACH):
                    counted = await manager.count()
                assert (counted.count, counted.missing) == (0, ["mortal"])
        await eventually(lambda: members(witness) == 0)
        assert (await manager.count()).missing == []
    await delete_fleet(amqp_url, name)


async def test_a_process_that_is_gone_leaves_no_queue(
    rabbitmq: Broker, own_node: RabbitMQNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mesh, "QUEUE_EXPIRES", 1)
    name = f"gateway-{secrets.token_hex(4)}"
    url = own_node.url()
    mesh = RabbitMQMesh(url, service_name=name)
    gateway = make_gateway(mesh=mesh, mesh_url=url, service_name=name)
    async with run_gateway(gateway):
        await eventually(lambda: mesh.connected)

    async def queues() -> list[str]:
        found = await anyio.to_thread.run_sync(own_node.list_queues)
        return sorted(each["name"] for each in found if name in each["name"])

    with anyio.fail_after(DEADLINE):
        while await queues() != [f"nuropb-{name}-records", f"nuropb-{name}-sq"]:
            await anyio.sleep(0.2)
    await delete_queues(url, mesh)
    await delete_fleet(url, name)


# --- presence ---------------------------------------------------------------------------------------------------


async def test_the_mesh_is_told_once_when_users_come_and_go(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_presence, "DEBOUNCE", 0.5)
    news: list[tuple[str, Any]] = []
    async with (
        fleet(amqp_url, 3, presence_events="on") as (one, two, three),
        await aio_pika.connect(amqp_url) as connection,
        connection.channel() as channel,
    ):
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("nuropb-events-exchange", "gateway.user.*")

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            news.append((message.routing_key or "", message.body))

        await queue.consume(take, no_ack=True)
        user = secrets.token_hex(4)
        topics: Callable[[], list[str]] = lambda: [topic for topic, body in news if user.encode() in body]  # noqa: E731
        async with connect(one.url, token_of(user)), connect(two.url, token_of(user)):
            await eventually(lambda: topics() == ["gateway.user.online"])
        await eventually(lambda: len(topics()) == 2)
        async with connect(three.url, token_of(user)):
            await eventually(lambda: len(topics()) == 3)
        await eventually(lambda: len(topics()) == 4)
        assert topics() == ["gateway.user.online", "gateway.user.offline"] * 2


# --- revocation -------------------------------------------------------------------------------------------------


async def test_a_revoked_token_is_refused_by_every_process_and_by_later_ones(amqp_url: str) -> None:
    async with fleet(amqp_url, 2) as (one, two), contextlib.AsyncExitStack() as stack:
        name = one.gateway.settings.service_name
        old = {who: token_of(who, jti=f"{who}-1", iat=int(time.time()) - 10) for who in ("alice", "bob", "carol")}
        clients = {
            (who, number): await stack.enter_async_context(connect(running.url, token))
            for who, token in old.items()
            for number, running in enumerate((one, two))
        }
        manager = one.gateway.service_mesh_manager
        await manager.revoke(user_id="alice", issued_before=time.time() - 5)
        await manager.revoke(token_id="bob-1")
        await manager.revoke(session_id=clients["carol", 1].hello["session_id"])
        for client in clients.values():
            assert await closed_within(client, REACH) == 4511
        async with process(amqp_url, name) as late:
            for running in (one, two, late):
                await eventually(lambda: len(running.gateway.handler_manager.revocations) == 3)  # noqa: B023
                for token in old.values():
                    assert (await refusal(running.url, token)).status == 401
                for who in old:
                    async with connect(running.url, token_of(who, jti=f"{who}-2")):
                        pass


async def test_a_revocation_reaches_a_process_that_was_cut_off(amqp_url: str) -> None:
    name = f"gateway-{secrets.token_hex(4)}"
    async with FaultProxy(amqp_url) as proxy, process(amqp_url, name) as one, process(proxy.url, name) as two:
        token = token_of("alice", iat=int(time.time()) - 10)
        async with connect(two.url, token) as client:
            proxy.refuse()
            proxy.cut()
            await eventually(lambda: not mesh_of(two).consuming.up)
            await one.gateway.service_mesh_manager.revoke(user_id="alice")
            assert await client.settled() == []
            proxy.accept()
            with anyio.fail_after(DEADLINE):
                assert (await client.closed()).code == 4511
        for running in (one, two):
            assert (await refusal(running.url, token)).status == 401
    await delete_fleet(amqp_url, name)


async def test_a_stream_that_was_deleted_is_made_again(amqp_url: str) -> None:
    async with fleet(amqp_url, 1) as (one,):
        manager, stream = one.gateway.service_mesh_manager, mesh_of(one).peers.stream
        await manager.revoke(token_id="a")
        await eventually(lambda: mesh_of(one).peers.offset == 1)  # after the marker
        async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
            await channel.queue_delete(stream)
            await eventually(lambda: mesh_of(one).peers.offset is None)
            for _ in range(100):  # until it is declared
                with contextlib.suppress(aiormq.exceptions.ChannelNotFoundEntity):
                    async with connection.channel() as another:
                        await another.get_queue(stream)
                        break
        taken = False
        while not taken:  # the broker may still have the former one in its routes, and close the connection
            with contextlib.suppress(CallError):
                await manager.revoke(token_id="b")
                taken = True
            await asyncio.sleep(0.05)
        async with process(amqp_url, one.gateway.settings.service_name) as late:
            await eventually(lambda: len(late.gateway.handler_manager.revocations) == 1)
        assert len(one.gateway.handler_manager.revocations) == 2


async def test_a_user_who_may_declare_neither_serves_its_own_connections(
    own_node: RabbitMQNode, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker's user has the permissions from before fleets existed: for the queues by name, and nothing else."""
    name, user = f"gateway-{secrets.token_hex(4)}", secrets.token_hex(4)
    await anyio.to_thread.run_sync(own_node.ctl, "add_user", user, "pw")
    queues, exchanges = rf"nuropb-{name}-.*(rq|eq|sq)", r"nuropb-(rpc|events|dl)-exchange"
    await anyio.to_thread.run_sync(
        own_node.ctl, "set_permissions", user, f"^{queues}$", f"^(amq.default|{queues}|{exchanges})$", ".*"
    )
    # Declare the exchanges as a user with all permissions.
    async with process(own_node.url(), f"{name}-first"):
        pass
    url = own_node.url().replace("guest:guest", f"{user}:pw")
    mesh = RabbitMQMesh(url, service_name=name)
    gateway = make_gateway(mesh=mesh, mesh_url=url, service_name=name)
    async with run_gateway(gateway) as running, connect(running.url, "alice") as client:
        await eventually(lambda: mesh.connected)
        manager = gateway.service_mesh_manager
        assert (await manager.send_to_users(["alice"], "t", 1)).count == 1
        assert (await client.event("t"))["event"] == 1
        with pytest.raises(Exception, match="mesh_unavailable"):
            await manager.revoke(user_id="alice")
        assert (await client.closed()).code == 4511
    for what in ("messages to users reach this process only", "revocations reach this process only"):
        assert sum(what in record.getMessage() for record in caplog.records) == 1
    await delete_queues(own_node.url(), mesh)
    await delete_fleet(own_node.url(), f"{name}-first")


async def test_the_exchange_is_made_again(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mesh, "REASSERT_INTERVAL", 0.2)
    async with fleet(amqp_url, 2) as (two, one):  # the process that reconnects has to end first
        async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
            await channel.exchange_delete(mesh_of(one).peers.exchange)
        with anyio.fail_after(DEADLINE):
            while (await one.gateway.service_mesh_manager.count()).processes < 2:
                await asyncio.sleep(0.05)
        assert two.gateway.service_mesh_manager.connected
