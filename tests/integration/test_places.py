"""Users who take more of a service than is theirs, and the users beside them, with services on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import aio_pika
import httpx
import pytest

from nuropb_gateway_asgi.limits.circuits import ERRORS_ALLOWED, OPEN_AFTER
from nuropb_gateway_asgi.limits.places import SLOW
from nuropb_gateway_asgi.wire import codec
from tests.integration.scene import Caller, Record, Scene, delete_queues, scene
from tests.kit.clients import connect
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.transports import http_client
from tests.servers.processes import ServiceProcess
from tests.servers.surviving_service import host

#: The attack: calls that are given up at once, with this many places.
ATTEMPTS, PLACES = 100, 4
BIG: Final = "x" * 60_000


async def cancel_at_once(set_: Scene) -> None:
    (caller,) = set_.callers
    for _ in range(ATTEMPTS):
        (id_,) = await caller.start("hold")
        await caller.client.send("cancel", id=id_)
    assert await caller.ended(list(caller.sent)) == {"ok": 1, "cancelled": PLACES, "too_many_requests": 96}


async def hang_up_at_once(set_: Scene) -> None:
    for _ in range(ATTEMPTS):
        async with connect(set_.running.url, "user-0") as client:
            await client.request(f"{set_.callers[0].service}.hold", {"id": secrets.token_hex(4)}, id="held")
            await client.send("ping")
            await client.next()  # the pong, or a refusal: the call has been taken by then


async def hang_up_over_http(set_: Scene, *, with_keys: bool = False) -> None:
    # Only the answer is not waited for: a busy machine takes its time to connect.
    soon = httpx.Timeout(DEADLINE, read=0.05)
    async with http_client(set_.running, "user-0") as client:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(httpx.ReadTimeout):
                path = f"/rpc/{set_.callers[0].service}/hold"
                headers = {"Idempotency-Key": secrets.token_hex(16)} if with_keys else {}
                response = await client.post(path, json={"id": secrets.token_hex(4)}, headers=headers, timeout=soon)
                assert response.status_code == 429


async def hang_up_over_http_with_keys(set_: Scene) -> None:
    """Such calls run on without their client, which may come again with the same key."""
    await hang_up_over_http(set_, with_keys=True)


@pytest.mark.parametrize("attack", [cancel_at_once, hang_up_at_once, hang_up_over_http, hang_up_over_http_with_keys])
async def test_who_gives_calls_up_has_no_more_of_them_at_a_service(
    amqp_url: str, attack: object, record_property: Record
) -> None:
    async with scene(amqp_url, clients=1, max_in_flight=PLACES, http="on") as set_:
        assert callable(attack)
        await attack(set_)
        kinds = set_.running.gateway.channels.values()
        orphans = set_.running.gateway.handler_manager.shared_limits.orphans
        await eventually(lambda: orphans.counts == {"user-0": PLACES})
        await eventually(lambda: set_.service.holding == PLACES)
        assert 'nuropb_gateway_orphaned_calls{transport="websocket"}' in (await set_.http.get("/metrics")).text
        async with connect(set_.running.url, "user-0") as client:
            assert await client.error_code(f"{set_.callers[0].service}.echo") == "too_many_requests"
        async with connect(set_.running.url, "another") as client:
            assert await client.result(f"{set_.callers[0].service}.echo", {"id": "1"}) == "1"
        set_.service.released.set()
        await eventually(lambda: not orphans.counts)
        async with connect(set_.running.url, "user-0") as client:
            assert await client.result(f"{set_.callers[0].service}.echo", {"id": "2"}) == "2"
        record_property("held at once", set_.service.holding)
        meshes = [each.service_mesh_manager.mesh for each in kinds]
    await delete_queues(amqp_url, *meshes[1:])  # type: ignore[arg-type]


class OneAtATime:
    """A service that answers with the id that it got, and takes a moment for each call."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.seconds = 0.03

    async def work(self, id: str = "") -> str:  # noqa: A002
        """The id itself, after a while."""
        await asyncio.sleep(self.seconds)
        self.done[id] += 1
        return id


@contextlib.asynccontextmanager
async def working(url: str, concurrency: int = 1) -> AsyncIterator[tuple[str, OneAtATime]]:
    """Host a service that handles ``concurrency`` calls at the same time."""
    name, service = f"work-{secrets.token_hex(4)}", OneAtATime()
    async with host(url, name, service, concurrency=concurrency) as mesh:
        await eventually(lambda: mesh.connected)
        yield name, service
    await delete_queues(url, mesh)


@pytest.mark.parametrize("known", ["as slow", "not at all"])
async def test_the_many_calls_of_one_user_delay_another_by_that_users_share(amqp_url: str, known: str) -> None:
    async with working(amqp_url) as (name, service), scene(amqp_url) as set_:
        greedy, other = set_.callers
        if known == "as slow":
            service.seconds = SLOW
            assert await greedy.call("work", service=name) == "ok"
            service.seconds = 0.03
            assert await greedy.call("work", service=name) == "ok"
        before = service.done.total()
        many = await greedy.start("work", 64, service=name)
        places = set_.running.gateway.service_mesh_manager.calls.places
        await eventually(lambda: places.waiting)
        one = await other.start("work", service=name)
        assert await other.ended(one) == {"ok": 1}
        # Its share, the call of the other user, and those that it sent while the latter came.
        assert service.done.total() - before <= 64 // 2
        assert await greedy.ended(many) == {"ok": 64}
        assert (greedy.doubled, greedy.mixed_up, places.waiting) == (0, 0, 0)


async def test_commands_without_end_delay_another_user_by_the_senders_share(amqp_url: str) -> None:
    async with working(amqp_url) as (name, service), scene(amqp_url) as set_:
        greedy, other = set_.callers
        assert await other.call("work", service=name) == "ok"
        before = service.done.total()
        for number in range(64):
            greedy.sent[f"c{number}"] = 0.0
            await greedy.client.send("command", service=name, method="work", params={"id": "c"}, id=f"c{number}")
        places = set_.running.gateway.service_mesh_manager.calls.places
        await eventually(lambda: places.waiting)
        assert await other.call("work", service=name) == "ok"
        assert service.done.total() - before <= 64 // 2
        assert await greedy.ended([f"c{number}" for number in range(64)]) == {"ok": 64}
        await eventually(lambda: service.done["c"] == 64)


async def test_commands_that_fail_are_stopped_by_the_error_budget(amqp_url: str, record_property: Record) -> None:
    """Each of them is copied into every dead-letter queue of the vhost."""
    name = f"failing-{secrets.token_hex(4)}"
    async with (
        await aio_pika.connect(amqp_url) as connection,
        connection.channel() as channel,
        scene(amqp_url) as set_,
    ):
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(codec.DEAD_LETTER_EXCHANGE)
        attacker, other = set_.callers
        with ServiceProcess(amqp_url, name, events=()):
            assert await other.call(service=name) == "ok"
            with contextlib.suppress(Exception):  # the connection is closed meanwhile
                for number in range(2000):
                    payload = {"service": name, "method": "fail_value", "params": {"text": BIG}, "id": str(number)}
                    attacker.sent[str(number)] = 0.0
                    await attacker.client.send("command", **payload)
            await eventually(lambda: attacker.closed is not None)
            assert attacker.closed is not None
            assert attacker.closed.rcvd is not None
            assert attacker.closed.rcvd.code == 4509
            assert await other.call(service=name) == "ok"  # and so the commands before it have failed by now
        dead = (await channel.declare_queue(queue.name, passive=True)).declaration_result.message_count or 0
        record_property("dead letters", dead)
        assert ERRORS_ALLOWED <= dead <= 4 * ERRORS_ALLOWED


async def test_short_timeouts_of_some_users_do_not_close_a_healthy_service_for_others(
    amqp_url: str, record_property: Record
) -> None:
    async with working(amqp_url, concurrency=100) as (name, service), scene(amqp_url, clients=7) as set_:
        service.seconds = 0.2
        *attackers, other = set_.callers
        codes: Counter[str] = Counter()

        async def attack(caller: Caller) -> None:
            while True:
                codes.update(await caller.ended(await caller.start("work", 2, service=name, timeout=0.11)))

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(attack(caller)) for caller in attackers]
            await eventually(lambda: codes["timeout"] >= 6 * OPEN_AFTER)
            for _ in range(10):
                assert await other.ended(await other.start("work", 4, service=name)) == {"ok": 4}
            for task in running:
                task.cancel()
        record_property("answers to the attackers", dict(codes))


async def test_the_circuit_of_a_dead_service_opens_for_all_users_and_heals(amqp_url: str) -> None:
    name = f"dead-{secrets.token_hex(4)}"
    async with scene(amqp_url, clients=4) as set_:
        *callers, other = set_.callers
        with ServiceProcess(amqp_url, name, events=()) as service:
            assert await other.call(service=name) == "ok"
            service.freeze()
            # No circuit opens while the mesh has not proven itself, so a slow machine may need another round.
            outcomes: Counter[str] = Counter()
            while not set_.running.gateway.service_mesh_manager.open_circuits:
                assert set(outcomes) <= {"timeout"}
                calls = [(caller, await caller.start(count=2, service=name, timeout=1.5)) for caller in callers]
                for caller, ids in calls:
                    outcomes += await caller.ended(ids)
            # Five timeouts open it. On a slow machine the last calls of the round come only then, and are refused.
            assert set(outcomes) <= {"timeout", "service_unavailable"}
            assert outcomes["timeout"] >= 5
            # The first one may be late enough to be the probe of the open circuit.
            _, refused = ids = await other.start(count=2, service=name, timeout=1.5)
            assert (await other.ended(ids))["service_unavailable"] >= 1
            assert other.error(refused)["retry_after_ms"] > 0
            service.thaw()

            async def answered() -> None:
                while await other.call(service=name) != "ok":
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(answered(), DEADLINE)
            assert set_.running.gateway.service_mesh_manager.open_circuits == []
