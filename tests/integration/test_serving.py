"""Service objects that this package hosts, called by nuropb and by the gateway, during all faults of the broker."""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import logging
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aio_pika
import anyio
import pytest

from nuropb_gateway_asgi import CallError, ServiceMeshManager, SettingsError
from nuropb_gateway_asgi.mesh import hosting, serve, with_context
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _service_host
from nuropb_gateway_asgi.settings import hide_password
from nuropb_gateway_asgi.wire.errors import NuropbValidationError
from nuropb_gateway_asgi.wire.services import PublishEvent
from tests.integration.scene import delete_queues
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.processes import run_process
from tests.servers.faults import FaultProxy
from tests.servers.processes import ServiceProcess, call_with_nuropb
from tests.servers.rabbitmq import RabbitMQNode

PROGRAM: Final = """
import asyncio, sys
from nuropb_gateway_asgi.mesh import serve

class Slow:
    async def nap(self, seconds: float) -> str:
        print("napping", flush=True)
        await asyncio.sleep(seconds)
        return "rested"

asyncio.run(serve(Slow(), sys.argv[1], service_name=sys.argv[2]))
"""


class Orders:
    """The hosted service."""

    _version = "3"

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.events: list[tuple[str, Any, Any, dict[str, Any]]] = []
        self.at_once = self.most_at_once = 0
        self.released = asyncio.Event()

    def add(self, a: int, b: int) -> int:
        """The sum."""
        return a + b

    async def hold(self, id: str) -> str:  # noqa: A002
        """The id, once it is released."""
        self.calls[id] += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await self.released.wait()
        self.at_once -= 1
        return id

    def refuse(self) -> None:
        """Fail on purpose."""
        raise NuropbValidationError("number: it is missing")

    def crash(self) -> None:
        """Fail."""
        raise ZeroDivisionError("by mistake")

    @with_context
    def whoami(self, who: dict[str, Any]) -> Any:
        """The context."""
        return who

    async def _handle_event_(self, topic: str, event: Any, target: Any, context: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self.events.append((topic, event, target, context))


class Publisher:
    """A service that publishes by itself and when called, and may fail."""

    def __init__(self) -> None:
        self.fail = asyncio.Event()
        self.ended = False

    async def _run_(self, publish: PublishEvent) -> None:
        self.publish = publish
        try:
            await self.fail.wait()
        finally:
            self.ended = True
        raise ZeroDivisionError("by mistake")

    async def tell(self, topic: Any, event: Any = None, target: Any = None) -> None:
        self.publish(topic, event, target)


@contextlib.asynccontextmanager
async def running(
    url: str, service: object, name: str | None = None, *, clean: str | None = None, **options: Any
) -> AsyncIterator[tuple[ServiceMeshManager, str]]:
    """A hosted service, connected, under a name of its own."""
    name = name or f"orders-{secrets.token_hex(4)}"
    async with hosting(service, url, service_name=name, **options) as manager:
        await eventually(lambda: manager.connected)
        yield manager, name
    assert isinstance(manager.mesh, RabbitMQMesh)
    await delete_queues(clean or url, manager.mesh)


async def is_there(caller: ServiceMeshManager, name: str) -> bool:
    """Return whether the service exists, even without the method."""
    with pytest.raises(CallError) as caught:
        await caller.request(name, "no_such_method")
    return caught.value.code == "method_not_found"


async def nuropb(url: str, name: str, method: str, params: dict[str, Any] | None = None, **more: Any) -> Any:
    return await anyio.to_thread.run_sync(lambda: call_with_nuropb(url, name, method, params, **more))


async def test_nuropbs_client_calls_a_hosted_service(amqp_url: str) -> None:
    async with running(amqp_url, Orders()) as (_, name):
        assert (await nuropb(amqp_url, name, "add", {"a": 2, "b": 3}))["result"] == 5
        assert (await nuropb(amqp_url, name, "whoami", context={"user_id": "u"}))["result"]["user_id"] == "u"
        refused = (await nuropb(amqp_url, name, "refuse"))["error"]
        assert refused == {"error": "NuropbValidationError", "description": "number: it is missing"}
        crashed = (await nuropb(amqp_url, name, "crash"))["error"]
        assert crashed["error"] == "NuropbException"
        assert "ZeroDivisionError" in crashed["description"]
        assert (await nuropb(amqp_url, name, "_private"))["error"]["error"] == "NuropbHandlingError"
        described = (await nuropb(amqp_url, name, "nuropb_describe"))["result"]
        assert described["service_version"] == "3"
        assert set(described["methods"]) == {"add", "hold", "refuse", "crash", "whoami"}


async def test_a_service_says_at_its_start_what_it_hosts_and_where(
    amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Orders:
        def create(self) -> None: ...
        def ship(self) -> None: ...

    caplog.set_level(logging.INFO)
    async with hosting(Orders(), amqp_url, service_name="orders-said", event_topics=["payments.*"]):
        pass
    (said,) = [record.message for record in caplog.records if "is hosted" in record.message]
    assert said == (
        f"service orders-said is hosted at {hide_password(amqp_url)}; methods: create, ship; events: payments.*"
    )


async def test_a_hosted_service_calls_others_and_publishes_events(amqp_url: str, echo_service: ServiceProcess) -> None:
    orders, topic = Orders(), f"t{secrets.token_hex(4)}"
    async with running(amqp_url, orders, event_topics=[f"{topic}.#"]) as (manager, name):
        assert await manager.request(name, "add", {"a": 1, "b": 2}) == 3
        assert await manager.request(echo_service.service, "echo", {"text": "hello"}) is not None
        with pytest.raises(CallError, match="service_unavailable"):
            await manager.request(f"no-{name}", "add", {})
        await manager.publish_event(f"{topic}.made", {"number": 1}, target=["alice"])
        await nuropb(amqp_url, name, "", {"number": 2}, event=f"{topic}.shipped")
        await eventually(lambda: len(orders.events) == 2)
        assert [(each[0], each[1], each[2]) for each in orders.events] == [
            (f"{topic}.made", {"number": 1}, ["alice"]),
            (f"{topic}.shipped", {"number": 2}, None),
        ]


async def test_several_calls_run_at_a_time_and_no_more(amqp_url: str) -> None:
    orders = Orders()
    async with running(amqp_url, orders, concurrency=3) as (manager, name):
        calls = [asyncio.create_task(manager.request(name, "hold", {"id": str(number)})) for number in range(5)]
        await eventually(lambda: orders.at_once == 3)
        orders.released.set()
        await asyncio.gather(*calls)
    assert orders.most_at_once == 3


async def test_two_processes_share_the_calls_and_the_events(amqp_url: str) -> None:
    one, two, topic = Orders(), Orders(), f"t{secrets.token_hex(4)}"
    options: dict[str, Any] = {"event_topics": [topic], "concurrency": 5}
    async with running(amqp_url, one, **options) as (manager, name), running(amqp_url, two, name, **options):
        calls = [asyncio.create_task(manager.request(name, "hold", {"id": str(number)})) for number in range(10)]
        await eventually(lambda: (one.at_once, two.at_once) == (5, 5))
        for service in (one, two):
            service.released.set()
        await asyncio.gather(*calls)
        for number in range(20):
            await manager.publish_event(topic, number)
        await eventually(lambda: len(one.events) + len(two.events) == 20)
        assert sorted(event[1] for event in one.events + two.events) == list(range(20))


async def test_a_hosted_service_publishes_events_of_its_own(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    orders, topic, made = Orders(), f"t{secrets.token_hex(4)}", decimal.Decimal("1.50")
    publisher = Publisher()
    async with (
        FaultProxy(amqp_url) as proxy,
        running(amqp_url, orders, event_topics=[f"{topic}.#"]) as (caller, _),
        running(proxy.url, publisher, clean=amqp_url) as (manager, name),
    ):
        await caller.request(name, "tell", {"topic": f"{topic}.made", "event": {"number": 1}, "target": ["alice"]})
        publisher.publish(f"{topic}.made", {"total": made})  # as a failure in a task of its own would
        await eventually(lambda: len(orders.events) == 2)
        assert [each[:3] for each in orders.events] == [
            (f"{topic}.made", {"number": 1}, ["alice"]),
            (f"{topic}.made", {"total": "1.50"}, None),
        ]
        for wrong in ({"topic": f"{topic}.*"}, {"topic": 7}, {"topic": topic, "target": "alice"}):
            with pytest.raises(CallError, match="service_error"):
                await caller.request(name, "tell", wrong)
        proxy.refuse()
        proxy.cut()
        assert isinstance(manager.mesh, RabbitMQMesh)
        await eventually(lambda: not manager.mesh.streams.can_publish)  # type: ignore[attr-defined]
        publisher.publish(f"{topic}.lost", 1)  # which fails no call
        proxy.accept()
        await eventually(lambda: manager.mesh.streams.can_publish)  # type: ignore[attr-defined]
        publisher.publish(f"{topic}.made", 2)
        await eventually(lambda: len(orders.events) == 3)
        assert orders.events[2][1] == 2
    assert publisher.ended
    assert f"service {name}: an event of {topic}.lost is lost" in caplog.text


async def test_what_a_service_does_by_itself_is_not_swallowed_when_it_fails(amqp_url: str) -> None:
    publisher = Publisher()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with running(amqp_url, publisher):
            publisher.fail.set()
            await asyncio.Event().wait()
    assert caught.group_contains(ZeroDivisionError)


# --- faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", [None, "consume", "publish", "stream"])
async def test_a_call_that_runs_while_the_connection_is_lost_runs_once_and_is_answered(
    amqp_url: str, purpose: Any
) -> None:
    orders = Orders()
    async with (
        FaultProxy(amqp_url) as proxy,
        running(amqp_url, object()) as (caller, _),
        running(proxy.url, orders, clean=amqp_url) as (hosted, name),
    ):
        calls = [asyncio.create_task(caller.request(name, "hold", {"id": str(number)})) for number in range(5)]
        await eventually(lambda: orders.at_once == 5)
        assert isinstance(hosted.mesh, RabbitMQMesh)
        before = hosted.mesh.statistics.reconnects
        proxy.cut(purpose)
        await eventually(lambda: hosted.mesh.statistics.reconnects > before and hosted.connected)  # type: ignore[attr-defined]
        orders.released.set()
        assert sorted(await asyncio.gather(*calls)) == ["0", "1", "2", "3", "4"]
        # Acknowledged: the next message is a new one.
        assert await caller.request(name, "add", {"a": 1, "b": 1}) == 2
        assert set(orders.calls.values()) == {1}


async def test_a_call_that_ends_while_there_is_no_connection_runs_once_and_is_answered(amqp_url: str) -> None:
    orders = Orders()
    async with (
        FaultProxy(amqp_url) as proxy,
        running(amqp_url, object()) as (caller, _),
        running(proxy.url, orders, clean=amqp_url) as (hosted, name),
    ):
        call = asyncio.create_task(caller.request(name, "hold", {"id": "1"}))
        await eventually(lambda: orders.at_once == 1)
        proxy.refuse()
        proxy.cut()
        await eventually(lambda: not hosted.connected)
        orders.released.set()
        await eventually(lambda: orders.at_once == 0)
        proxy.accept()
        assert await call == "1"
        assert orders.calls == {"1": 1}


async def test_a_reply_waits_for_the_publishing_connection_alone(amqp_url: str) -> None:
    orders = Orders()
    async with (
        FaultProxy(amqp_url) as proxy,
        running(amqp_url, object()) as (caller, _),
        running(proxy.url, orders, clean=amqp_url) as (hosted, name),
    ):
        calls = [asyncio.create_task(caller.request(name, "hold", {"id": str(number)})) for number in range(3)]
        await eventually(lambda: orders.at_once == 3)
        proxy.refuse()
        proxy.cut("publish")
        await eventually(lambda: not hosted.connected)
        orders.released.set()
        await eventually(lambda: orders.at_once == 0)
        assert isinstance(hosted.mesh, RabbitMQMesh)
        assert hosted.mesh.service_host.running == 3  # they are not acknowledged yet
        proxy.accept()
        assert await asyncio.gather(*calls) == ["0", "1", "2"]
        await eventually(lambda: hosted.mesh.service_host.running == 0)  # type: ignore[attr-defined]
        assert orders.calls == {"0": 1, "1": 1, "2": 1}


async def test_a_reply_on_a_dead_connection_is_sent_again_by_the_next_one(amqp_url: str) -> None:
    orders = Orders()
    async with (
        FaultProxy(amqp_url) as proxy,
        running(amqp_url, object()) as (caller, _),
        running(proxy.url, orders, clean=amqp_url) as (_, name),
    ):
        call = asyncio.create_task(caller.request(name, "hold", {"id": "1"}))
        await eventually(lambda: orders.at_once == 1)
        proxy.stall("publish", direction="up")  # the reply is written, and arrives nowhere
        orders.released.set()
        await eventually(lambda: orders.at_once == 0)
        proxy.cut("publish")
        assert await call == "1"
        assert orders.calls == {"1": 1}


async def test_a_request_whose_reply_cannot_be_sent_before_the_end_is_another_process_s(amqp_url: str) -> None:
    orders, other = Orders(), Orders()
    other.released.set()
    name = f"orders-{secrets.token_hex(4)}"
    async with FaultProxy(amqp_url) as proxy, running(amqp_url, object()) as (caller, _):
        async with hosting(orders, proxy.url, service_name=name, drain_timeout=0.1) as hosted:
            await eventually(lambda: hosted.connected)
            call = asyncio.create_task(caller.request(name, "hold", {"id": "1"}))
            await eventually(lambda: orders.at_once == 1)
            proxy.refuse()
            proxy.cut("publish")
            await eventually(lambda: not hosted.connected)
            orders.released.set()
            await eventually(lambda: orders.at_once == 0)
        assert not call.done()
        async with running(amqp_url, other, name):
            assert await call == "1"
        assert (orders.calls, other.calls) == ({"1": 1}, {"1": 1})


async def test_a_service_comes_back_after_an_outage_of_the_broker(own_node: RabbitMQNode) -> None:
    url = own_node.url()
    async with running(url, Orders()) as (manager, name):
        assert await manager.request(name, "add", {"a": 1, "b": 1}) == 2
        await anyio.to_thread.run_sync(own_node.kill)
        await eventually(lambda: not manager.connected)
        await anyio.to_thread.run_sync(own_node.start)
        await eventually(lambda: manager.connected)
        with anyio.fail_after(DEADLINE):
            assert await manager.request(name, "add", {"a": 1, "b": 2}) == 3


async def test_only_so_many_messages_are_remembered(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_service_host, "REMEMBERED", 5)
    async with running(amqp_url, Orders()) as (manager, name):
        for number in range(11):
            await manager.request(name, "add", {"a": number, "b": 0})
        assert isinstance(manager.mesh, RabbitMQMesh)
        assert 5 <= manager.mesh.service_host.remembered <= 10
        assert manager.mesh.service_host.running == 0


async def test_a_property_of_a_service_that_fails_is_an_error_of_its_call_alone(amqp_url: str) -> None:
    class Broken(Orders):
        @property
        def total(self) -> int:
            raise ZeroDivisionError("by mistake")

    async with running(amqp_url, Broken()) as (manager, name):
        for method in ("total", "nuropb_describe", "total"):
            with pytest.raises(CallError) as caught:
                await manager.request(name, method)
            assert caught.value.code == "service_error"
        assert isinstance(manager.mesh, RabbitMQMesh)
        assert (manager.connected, manager.mesh.service_host.running) == (True, 0)


async def test_messages_that_are_none_are_refused_once(amqp_url: str) -> None:
    async with running(amqp_url, Orders()) as (manager, name):
        async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
            for body in (b"{", b'{"tag":"request"}', b"\xff"):
                message = aio_pika.Message(body, correlation_id="same")
                await channel.default_exchange.publish(message, f"nuropb-{name}-sq")
        assert await manager.request(name, "add", {"a": 1, "b": 2}) == 3
        assert isinstance(manager.mesh, RabbitMQMesh)
        assert manager.mesh.statistics.reconnects == 0


# --- stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_calls_end_and_takes_no_more(amqp_url: str, tmp_path: Path, number: signal.Signals) -> None:
    name = f"slow-{secrets.token_hex(4)}"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    async with running(amqp_url, object()) as (caller, _):
        async with run_process(sys.executable, str(program), amqp_url, name) as process:
            with anyio.fail_after(DEADLINE):
                while not await is_there(caller, name):
                    await anyio.sleep(0.05)
            call = asyncio.create_task(caller.request(name, "nap", {"seconds": 0.5}, timeout=20.0))
            await process.line("napping")
            process.signal(number)
            assert await call == "rested"
            assert await process.wait() == 0
        assert "Traceback" not in process.output
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.queue_delete(f"nuropb-{name}-sq")


async def test_calls_that_do_not_end_hold_nothing_up_and_are_somebody_elses_then(amqp_url: str) -> None:
    stuck, other = Orders(), Orders()
    other.released.set()
    async with running(amqp_url, object()) as (caller, _):
        name = f"orders-{secrets.token_hex(4)}"
        async with hosting(stuck, amqp_url, service_name=name, drain_timeout=0.1) as manager:
            await eventually(lambda: manager.connected)
            call = asyncio.create_task(caller.request(name, "hold", {"id": "1"}))
            await eventually(lambda: stuck.at_once == 1)
        assert not call.done()
        async with running(amqp_url, other, name):
            assert await call == "1"


@pytest.mark.parametrize(
    ("service", "url", "options", "reason"),
    [
        (object(), "amqp://mq", {}, "no name"),
        (Orders(), "amqp://mq", {"service_name": "a b"}, "SERVICE_NAME"),
        (Orders(), "http://mq", {"service_name": "a"}, "MESH_URL"),
        (Orders(), "embedded://demo", {"service_name": "a"}, "hosted on RabbitMQ"),
        (Orders(), "amqp://mq", {"service_name": "a", "concurrency": 0}, "concurrency"),
    ],
)
async def test_what_cannot_be_hosted_is_said(service: object, url: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        await serve(service, url, **options)
