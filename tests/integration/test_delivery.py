"""Events under load, by a real broker and a gateway in a process of its own: to many clients, and to slow readers."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import pytest

from nuropb_gateway_asgi import CloseCode
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.scene import delete_queues, delete_shared
from tests.kit.crowd import Listener, crowd
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.processes import GatewayProcess, run_gateway_process, token_of
from tests.servers.surviving_service import SurvivingService, host

#: The same topics for all users; the claim ``mode`` chooses the rule for events that do not fit.
POLICY: Final = """\
[[rule]]
allow = "subscribe"
topics = ["prices.#", "news.#"]

[[rule]]
allow = "subscribe"
topics = ["prices.#", "news.#"]
when = { mode = { equals = "drop_oldest" } }
delivery = "drop_oldest"

[[rule]]
allow = "subscribe"
topics = ["prices.#"]
when = { mode = { equals = "latest" } }
delivery = "latest"

[[rule]]
allow = "call"
methods = ["*.*"]
"""
#: Bytes that a connection takes although its client does not read: the two buffers of the kernel, that of the server
#: (64 KiB), and the outbox.
KERNEL: Final = 4096
OUTBOX: Final = 32_768
SIZE: Final = 4_000
#: So many events of that size do not fit.
TOO_MANY: Final = 60
#: Seconds; longer than any test takes, on any machine: a client that does not read for longer is cut off.
PATIENT: Final = {"write_timeout": "3600", "ping_timeout": "3600"}
#: All of a crowd come from one address, and at once.
UNLIMITED: Final = {"handshake_rate": "off", "handshake_rate_per_address": "off"}


@dataclass
class Stage:
    """A gateway in a process, a publisher, and a service."""

    gateway: GatewayProcess
    mesh: RabbitMQMesh
    service: str

    def publish(self, topic: str, serial: int, size: int = SIZE, **more: Any) -> None:
        event = msgspec.json.encode({"serial": serial, "text": "x" * size})
        self.mesh.publish(topic, event, context=b"{}", trace_id="t", target=more.get("target"))

    def listeners(self, *users: str, topics: list[str], receive_buffer: int | None = None) -> Any:
        """Connections; the part of a user's name before the hyphen is the mode."""
        return crowd(self.gateway.url, users, _token, topics, receive_buffer=receive_buffer)


def _token(user: str) -> str:
    return token_of(user, mode=user.partition("-")[0])


def serials(listener: Listener, topic: str | None = None) -> list[int]:
    """Return the received events, of one topic or of all."""
    return [payload["serial"] for name, payload in listener.events if topic in (None, name)]


@asynccontextmanager
async def stage(url: str, policy: Path, *options: str, **settings: str) -> AsyncIterator[Stage]:
    policy.write_text(POLICY)
    unique = secrets.token_hex(4)
    name, service = f"gateway-{unique}", f"echo-{unique}"
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(host(url, service, SurvivingService()))
        gateway = await stack.enter_async_context(
            run_gateway_process(
                url,
                *options,
                service_name=name,
                policy=str(policy),
                targeted_topics="",
                **PATIENT | UNLIMITED | settings,
            )
        )
        await eventually(lambda: mesh.connected)
        yield Stage(gateway, mesh, service)
        await gateway.stop()
    await delete_queues(url, mesh)
    await delete_shared(url, name)


@pytest.fixture(scope="module")
async def set_(amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A gateway with small buffers, which are soon full for a client that does not read."""
    policy = tmp_path_factory.mktemp("delivery") / "policy.toml"
    async with stage(amqp_url, policy, "--send-buffer", str(KERNEL), outbox_size=str(OUTBOX)) as set_:
        yield set_


# --- to many ------------------------------------------------------------------------------------------------------


async def test_twenty_events_to_a_thousand_connections_arrive_complete_and_in_order(set_: Stage) -> None:
    async with set_.listeners(*(f"user-{number}" for number in range(1000)), topics=["news.*"]) as everybody:
        for serial in range(20):
            set_.publish("news.today", serial, 200)
        await eventually(lambda: all(len(each.events) >= 20 for each in everybody))
        assert all(serials(each) == list(range(20)) for each in everybody)
        assert all([name for _, name, _ in each.notices] == ["hello"] for each in everybody)


async def test_slow_readers_among_a_thousand_cost_the_others_nothing(set_: Stage) -> None:
    modes = ("close", "drop_oldest", "latest")
    before = await set_.gateway.metric("dropped_total", reason="slow_client_event")
    async with (
        set_.listeners(*(f"user-{number}" for number in range(997)), topics=["prices.*"]) as others,
        set_.listeners(*modes, topics=["prices.*"], receive_buffer=KERNEL) as slow,
    ):
        for each in slow:
            each.stall()
        for serial in range(TOO_MANY):
            set_.publish("prices.gold", serial)
            # The publisher does not wait for clients that have not begun to read.
            await eventually(lambda: all(len(each.events) > serial for each in others))  # noqa: B023
        assert all(serials(each) == list(range(TOO_MANY)) for each in others)
        assert [len(each.events) for each in slow] == [0, 0, 0]
        for each in slow:
            each.resume()
        closing, dropping, latest = slow
        await eventually(lambda: closing.closed)
        assert closing.closed == CloseCode.SLOW_CONSUMER
        assert serials(closing) == list(range(len(closing.events)))
        await eventually(lambda: all(serials(each)[-1:] == [TOO_MANY - 1] for each in (dropping, latest)))
        told = sum(notice["count"] for notice in dropping.told("dropped"))
        assert told
        assert len(dropping.events) + told == TOO_MANY
        assert latest.told("dropped") == []
        assert 1 < len(latest.events) < TOO_MANY
        for each in (dropping, latest):
            assert serials(each) == sorted(set(serials(each)))
        lost = told + TOO_MANY - len(latest.events)
        assert await set_.gateway.metric("dropped_total", reason="slow_client_event") - before == lost
        # They go on undisturbed.
        set_.publish("prices.gold", TOO_MANY)
        await eventually(lambda: all(serials(each)[-1] == TOO_MANY for each in (*others, dropping, latest)))
        assert {each.closed for each in (*others, dropping, latest)} == {None}


async def test_events_of_each_publisher_come_in_order_and_those_with_a_target_to_their_users_alone(
    amqp_url: str,
) -> None:
    count, topic, name = 300, f"t{secrets.token_hex(4)}", f"gateway-{secrets.token_hex(4)}"
    settings = {"service_name": name, "expose_topics": "#"}
    async with (
        host(amqp_url, f"{name}-one", object()) as one,
        host(amqp_url, f"{name}-two", object()) as two,
        run_gateway_process(amqp_url, **settings) as here,
        run_gateway_process(amqp_url, **settings) as there,
        crowd(here.url, ["alice", "bob"], token_of, [topic]) as (alice_here, bob_here),
        crowd(there.url, ["alice", "bob", "carol"], token_of, [topic]) as (alice_there, bob_there, carol),
    ):
        await eventually(lambda: one.connected and two.connected)

        async def publish(mesh: RabbitMQMesh, publisher: str) -> None:
            for serial in range(count):
                # Every other event is for alice, of a topic without subscribers.
                target, event = (["alice", "nobody"], ".mine") if serial % 2 else (None, "")
                body = msgspec.json.encode([publisher, serial])
                mesh.publish(topic + event, body, context=b"{}", trace_id="t", target=target)
                await anyio.sleep(0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish, one, "one")
            tasks.start_soon(publish, two, "two")
        for listeners, serials_for in (
            ((alice_here, alice_there), range(count)),
            ((bob_here, bob_there, carol), range(0, count, 2)),
        ):
            await eventually(lambda: all(len(each.events) >= 2 * len(serials_for) for each in listeners))  # noqa: B023
            for each in listeners:
                for publisher in ("one", "two"):
                    came = [serial for _, (who, serial) in each.events if who == publisher]
                    assert came == list(serials_for), (each.user, publisher)
        await here.stop()
        await there.stop()
        await delete_queues(amqp_url, one, two)
    await delete_shared(amqp_url, name)


# --- to one that does not read --------------------------------------------------------------------------------------


async def test_what_was_dropped_is_counted_by_topic_and_told_when_the_client_reads_again(set_: Stage) -> None:
    async with (
        set_.listeners("drop_oldest", topics=["prices.*"], receive_buffer=KERNEL) as (slow,),
        set_.listeners("drop_oldest", topics=["prices.*"]) as (quick,),
    ):
        slow.stall()
        for serial in range(2 * TOO_MANY):
            set_.publish("prices.gold" if serial % 3 else "prices.tin", serial)
            await eventually(lambda: len(quick.events) > serial)  # noqa: B023
        slow.resume()
        await eventually(lambda: serials(slow)[-1:] == [2 * TOO_MANY - 1])
        told = {notice["topic"]: 0 for notice in slow.told("dropped")}
        for notice in slow.told("dropped"):
            told[notice["topic"]] += notice["count"]
        for topic in ("prices.gold", "prices.tin"):
            assert told[topic] + len(serials(slow, topic)) == len(serials(quick, topic))
        assert serials(slow) == sorted(set(serials(slow)))
        # The oldest are dropped: the client got a beginning, which was on its way already, and an end.
        holes = [(one, other) for one, other in pairwise(serials(slow)) if other != one + 1]
        assert len(holes) == 1
        assert quick.told("dropped") == []


async def test_of_prices_the_latest_of_each_waits(set_: Stage) -> None:
    symbols = ["prices.gold", "prices.tin", "prices.zinc"]
    async with (
        set_.listeners("latest", topics=["prices.*"], receive_buffer=KERNEL) as (slow,),
        set_.listeners("latest", topics=["prices.*"]) as (quick,),
    ):
        slow.stall()
        for serial in range(3 * TOO_MANY):
            set_.publish(symbols[serial % 3], serial, SIZE // 2)
            await eventually(lambda: len(quick.events) > serial)  # noqa: B023
        slow.resume()
        ends = range(3 * TOO_MANY - 3, 3 * TOO_MANY)
        await eventually(lambda: set(ends) <= set(serials(slow)))
        for symbol, end in zip(symbols, ends, strict=True):
            assert serials(slow, symbol)[-1] == end
            assert serials(slow, symbol) == sorted(set(serials(slow, symbol)))
        assert len(slow.events) < 2 * TOO_MANY
        assert serials(quick) == list(range(3 * TOO_MANY))
        assert (slow.told("dropped"), quick.told("dropped")) == ([], [])


async def test_answers_are_not_dropped_and_neither_is_the_connection(set_: Stage) -> None:
    ids = [f"call-{number}" for number in range(20)]
    async with (
        set_.listeners("drop_oldest", topics=["news.*"], receive_buffer=KERNEL) as (slow,),
        set_.listeners("drop_oldest", topics=["news.*"]) as (quick,),
    ):
        slow.stall()
        for serial in range(TOO_MANY):
            set_.publish("news.today", serial)
            await eventually(lambda: len(quick.events) > serial)  # noqa: B023
        for id_ in ids:
            params = {"id": id_, "text": "x" * 1000}
            slow.send("request", service=set_.service, method="echo", params=params, id=id_)
        for serial in range(TOO_MANY, 2 * TOO_MANY):
            set_.publish("news.today", serial)
            await eventually(lambda: len(quick.events) > serial)  # noqa: B023
        slow.resume()
        await eventually(lambda: serials(slow)[-1:] == [2 * TOO_MANY - 1] and set(ids) <= set(slow.answers))
        assert [slow.answers[id_]["result"] for id_ in ids] == ids
        assert len(slow.events) + sum(notice["count"] for notice in slow.told("dropped")) == 2 * TOO_MANY


async def test_whoever_takes_nothing_at_all_is_hung_up_on_whatever_the_rule_says(amqp_url: str, tmp_path: Path) -> None:
    """The connection may be dead without a sign."""
    modes = ("close", "drop_oldest", "latest")
    options = ("--send-buffer", str(KERNEL))
    async with (
        stage(amqp_url, tmp_path / "policy.toml", *options, write_timeout="0.5") as set_,
        set_.listeners(*modes, topics=["prices.*"], receive_buffer=KERNEL) as slow,
        set_.listeners("user", topics=["prices.*"]) as (quick,),
    ):
        for each in slow:
            each.stall()
        for serial in range(TOO_MANY):  # which fit into the outbox
            set_.publish("prices.gold", serial)
            await eventually(lambda: len(quick.events) > serial)  # noqa: B023
        closed = str(int(CloseCode.SLOW_CONSUMER))
        with anyio.fail_after(DEADLINE):
            while await set_.gateway.metric("connections_closed_total", code=closed) < len(modes):
                await anyio.sleep(0.05)
        assert quick.closed is None


# --- what the broker dropped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("published", "missed"), [(1500, False), (4000, True)])
async def test_a_process_that_stood_still_tells_its_clients_what_the_broker_has_dropped_meanwhile(
    amqp_url: str, tmp_path: Path, published: int, missed: bool
) -> None:
    # Beside those that wait in the queue, 1000 are on their way to the process.
    async with (
        stage(amqp_url, tmp_path / "policy.toml", "--queue-length", "2000") as set_,
        set_.listeners("user-1", topics=["news.*"]) as (subscribed,),
        set_.listeners("user-2", topics=[]) as (other,),
    ):
        set_.gateway.freeze()
        frozen = time.monotonic()
        for serial in range(published):
            set_.publish("news.today", serial, 10)
        set_.mesh.round_trips.clear()
        await eventually(lambda: set_.mesh.round_trips and time.monotonic() - frozen > 2.5)
        set_.gateway.thaw()
        await eventually(lambda: serials(subscribed)[-1:] == [published - 1])
        if missed:
            await eventually(lambda: subscribed.told("gap"))
            assert len(subscribed.events) < published
        else:
            assert len(subscribed.events) == published
        set_.publish("news.today", published, 10)
        await eventually(lambda: serials(subscribed)[-1:] == [published])
        gap = {"reason": "overflow", "topics": ["news.*"]}
        assert subscribed.told("gap") == [gap] * missed
        assert other.told("gap") == []
        assert serials(subscribed) == sorted(set(serials(subscribed)))
