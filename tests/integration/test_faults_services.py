"""Services that misbehave, messages that are poison, and clients that attack services."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import aio_pika
import anyio
import pytest

from nuropb_gateway_asgi.fleet import members
from nuropb_gateway_asgi.limits.circuits import PAUSE
from nuropb_gateway_asgi.mesh.rabbitmq import _self_check
from nuropb_gateway_asgi.wire import codec
from tests.integration.scene import Caller, Record, Scene, scene
from tests.kit.gateways import DEADLINE, eventually
from tests.servers.processes import ServiceProcess

#: Seconds.
FAST = 1.0
MEGABYTE: Final = 1024 * 1024
PUBLISHED: Final = {"nuropb_protocol": "0.1.1", "nuropb_version": "0.1.8", "encrypted": "", "trace_id": "t"}

Request = aio_pika.abc.AbstractIncomingMessage


class RawService:
    """A service on the wire, with replies made by the test."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self.channel = channel
        #: Requests in the order of their arrival. Descriptions are refused, so that no call is checked first.
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], Awaitable[None]] | None = None

    async def take(self, message: Request) -> None:
        if json.loads(message.body)["method"] == "nuropb_describe":
            await self.answer(message, None, error={"error": "ValueError", "description": "string annotations"})
            return
        self.requests.append(message)
        if self.on_request is not None:
            await self.on_request(message)

    async def answer(self, request: Request, result: Any, error: dict[str, str] | None = None) -> None:
        await self.send(request, json.dumps({"tag": "response", "result": result, "error": error}).encode())

    async def send(self, request: Request, body: bytes) -> None:
        """Answer ``request`` with ``body``, which may be anything."""
        headers = PUBLISHED | {"nuropb_type": "response"}
        message = aio_pika.Message(body, headers=headers, correlation_id=request.correlation_id)  # type: ignore[arg-type]
        await self.channel.default_exchange.publish(message, request.reply_to or "", mandatory=False)


@contextlib.asynccontextmanager
async def raw_service(url: str, name: str) -> AsyncIterator[RawService]:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(f"nuropb-{name}-sq", durable=True, auto_delete=True)
        await queue.bind(codec.RPC_EXCHANGE, routing_key=name)
        service = RawService(channel)
        await queue.consume(service.take, no_ack=True)
        yield service


@contextlib.asynccontextmanager
async def unreliable(url: str, **settings: Any) -> AsyncIterator[tuple[Scene, RawService, str]]:
    """A scene with a raw service beside the good one, after a first call, which asks for a description."""
    name = f"raw-{secrets.token_hex(4)}"
    # By its full name, as the service has no description.
    expose = ["*.*", f"{name}.echo"]
    async with scene(url, expose=expose, **settings) as set_, raw_service(url, name) as service:
        service.on_request = lambda request: service.answer(request, "first")
        for caller in set_.callers:
            (id_,) = ids = await caller.start(service=name, params={})
            assert await caller.ended(ids) == {"ok": 1}
            del caller.answers[id_], caller.sent[id_]
        service.requests.clear()
        service.on_request = None
        yield set_, service, name


def request_id(request: Request) -> str:
    """Return the id in a request's params, which its caller put there."""
    id_: str = json.loads(request.body)["params"]["id"]
    return id_


# --- poison -----------------------------------------------------------------------------------------------------


async def test_poison_comes_to_no_client(amqp_url: str, record_property: Record) -> None:
    """Big messages, and many, on both queues of the gateway, while calls run."""
    async with unreliable(amqp_url, expose_topics=["#"]) as (set_, raw, name):
        caller, other = set_.callers
        await caller.client.send("subscribe", topics=["news.#"], id=(asked := "subscribe"))
        caller.sent[asked] = 0.0
        await caller.ended([asked])
        reconnected = set_.reconnected()

        async def publish(queue: str, body: bytes, kind: str = "response", **properties: Any) -> None:
            message = aio_pika.Message(body, headers=PUBLISHED | {"nuropb_type": kind}, **properties)  # type: ignore[arg-type]
            await raw.channel.default_exchange.publish(message, queue)

        big = b"x" * (8 * MEGABYTE)
        big_json = json.dumps({"result": "x" * (8 * MEGABYTE), "error": None}).encode()
        big_event = json.dumps({"topic": "news.big", "event": "x" * (8 * MEGABYTE), "target": None}).encode()
        good_event = json.dumps({"topic": "news.good", "event": {}, "target": None}).encode()
        # The service holds them until all of the poison is read, which takes long on a busy machine.
        in_flight = await set_.hold(10, timeout=60.0)
        for body in (big, big_json):
            await publish(set_.mesh.reply_queue, body, correlation_id=secrets.token_hex(16))
            await publish(set_.mesh.event_queue, body, "event")
        await publish(set_.mesh.event_queue, big_event, "event")
        for number in range(1000):
            await publish(set_.mesh.reply_queue, big_json[:10], correlation_id=secrets.token_hex(16))
            await publish(set_.mesh.reply_queue, b'{"result": %d}' % number, correlation_id=secrets.token_hex(16))
            await publish(set_.mesh.event_queue, b'{"topic": 5, "event": %d}' % number, "event")
        await publish(set_.mesh.event_queue, good_event, "event")

        asked_big = await caller.start(service=name, timeout=60.0)
        await eventually(lambda: raw.requests)
        await raw.send(raw.requests[0], big_json)
        assert await caller.ended(asked_big) == {"payload_too_large": 1}
        set_.service.released.set()
        for each, ids in in_flight:
            assert await each.ended(ids) == {"ok": 10}
        await eventually(lambda: caller.client.inbox)
        assert [frame["payload"]["topic"] for frame in caller.client.inbox] == ["news.good"]
        assert other.client.inbox == []
        assert not reconnected()
        await set_.recovers(3)
        set_.check(record_property, "poison, 8 MB and 3 000 small ones", in_flight)


async def test_a_thousand_answers_to_one_call(amqp_url: str, record_property: Record) -> None:
    async with unreliable(amqp_url, max_in_flight_per_service=20) as (set_, raw, name):
        calls = [(caller, await caller.start(count=20, service=name)) for caller in set_.callers]
        await eventually(lambda: len(raw.requests) == 40)
        for number in range(1000):
            request = raw.requests[number % 40]
            await raw.answer(request, request_id(request) if number < 40 else "another's")
        for caller, ids in calls:
            assert await caller.ended(ids) == {"ok": 20}
        await eventually(lambda: set_.running.gateway.service_mesh_manager.statistics.double_replies == 960)
        set_.check(record_property, "1 000 answers to 40 calls", calls)


# --- services ---------------------------------------------------------------------------------------------------


async def test_services_that_are_silent_late_or_die_cost_one_answer_each(
    amqp_url: str, record_property: Record
) -> None:
    async with unreliable(amqp_url) as (set_, raw, name):
        caller = set_.callers[0]
        statistics = set_.running.gateway.service_mesh_manager.statistics
        silent = await caller.start(service=name, timeout=0.5)
        assert await caller.ended(silent) == {"timeout": 1}
        await raw.answer(raw.requests[0], silent[0])  # late
        await eventually(lambda: statistics.late_replies == 1)
        await raw.answer(raw.requests[0], silent[0])
        await eventually(lambda: statistics.late_replies + statistics.double_replies == 2)

        failing = await caller.start("fail")  # answered twice, as nuropb does
        assert await caller.ended(failing) == {"service_error": 1}
        set_.check(record_property, "silence, and answers that come late", [(caller, silent)])


async def test_a_call_of_a_service_that_died_is_given_to_its_sibling(amqp_url: str, record_property: Record) -> None:
    name = f"mortal-{secrets.token_hex(4)}"
    async with scene(amqp_url) as set_:
        caller = set_.callers[0]
        with ServiceProcess(amqp_url, name, events=()) as first:
            assert await caller.call(service=name) == "ok"
            ids = await caller.start("slow", service=name, params={"seconds": 2}, timeout=20.0)
            async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
                await eventually_taken(channel, first.queue)
            first.kill()
            await anyio.to_thread.run_sync(first.start)
            assert await caller.ended(ids) == {"ok": 1}
            assert await caller.call("count", service=name, params={"method": "slow"}) == "ok"
        set_.check(record_property, "a service killed with a call", [(caller, ids)])


async def eventually_taken(channel: aio_pika.abc.AbstractChannel, queue: str) -> None:
    """Wait until a service has taken all messages of its queue."""
    with anyio.fail_after(DEADLINE):
        while (await channel.declare_queue(queue, passive=True)).declaration_result.message_count:
            await anyio.sleep(0.05)


async def test_the_circuit_of_a_service_that_hangs(amqp_url: str, record_property: Record) -> None:
    name = f"hanging-{secrets.token_hex(4)}"
    async with scene(amqp_url, users=1) as set_:
        caller, other = set_.callers
        with ServiceProcess(amqp_url, name, events=()) as service:
            assert await caller.call(service=name) == "ok"
            service.freeze()
            manager = set_.running.gateway.service_mesh_manager
            for _ in range(20):  # those of the first second after its last answer prove nothing
                if manager.open_circuits:
                    break
                # The last timeout may count only after this look at the circuits.
                assert await caller.call(service=name, timeout=0.2) in {"timeout", "service_unavailable"}
            assert manager.open_circuits == [name]
            set_.begin()
            (refused,) = ids = await other.start(service=name)
            assert await other.ended(ids, within=FAST) == {"service_unavailable": 1}
            await anyio.sleep(other.error(refused)["retry_after_ms"] / 1000)
            probe = await caller.start(service=name, timeout=2.0)
            await eventually(lambda: set_.running.gateway.service_mesh_manager.in_flight)
            (refused,) = ids = await other.start(service=name)
            assert await other.ended(ids, within=FAST) == {"service_unavailable": 1}
            assert other.error(refused)["retry_after_ms"] > 0
            assert await other.call() == "ok"  # the circuit is this service's alone
            assert await caller.ended(probe) == {"timeout": 1}
            await anyio.sleep(PAUSE)
            probe = await other.start(service=name, timeout=15.0)
            service.thaw()
            # Its first reply is to a call that timed out long ago, which is enough to close the circuit.
            await eventually(lambda: set_.running.gateway.service_mesh_manager.open_circuits == [])
            assert await other.ended(probe) == {"ok": 1}
            calls = await caller.start(count=5, service=name)
            assert await caller.ended(calls) == {"ok": 5}
        set_.check(record_property, "a service that hangs", [(other, probe)])


# --- clients ----------------------------------------------------------------------------------------------------


def frame(params: str = "{}", **more: str) -> str:
    """Make a request as text, with raw JSON values that no library would write."""
    members = {"service": '"SERVICE"', "method": '"echo"', "params": params, "id": '"odd"'} | more
    payload = ",".join(f'"{name}":{value}' for name, value in members.items())
    return f'{{"type":"request","payload":{{{payload}}}}}'


ODD_FRAMES: Final = {
    "lists nested 33 deep": frame('{"a":%s}' % ("[" * 33 + "]" * 33)),
    "lists nested 980 deep": frame('{"a":%s}' % ("[" * 980 + "]" * 980)),
    "lists nested 20 000 deep": frame('{"a":%s}' % ("[" * 20_000 + "]" * 20_000)),
    "objects nested 980 deep": frame('{"a":' * 980 + "1" + "}" * 980),
    "NaN": frame('{"a":NaN}'),
    "Infinity": frame('{"a":-Infinity}'),
    "a number that becomes Infinity": frame('{"a":1e999}'),
    "an integer of 5 000 digits": frame('{"a":%s}' % ("9" * 5000)),
    "an integer of 65 bits": frame('{"a":18446744073709551616}'),
    "a lone surrogate": frame('{"a":"\\ud800"}'),
    "a long trace id": frame(trace_id='"%s"' % ("t" * 129)),
    "a very long trace id": frame(trace_id='"%s"' % ("t" * 60_000)),
    "a trace id with a line break": frame(trace_id='"a\\nb"'),
    "a trace id that is none": frame(trace_id="{}"),
    "no time": frame(timeout="0"),
    "less than no time": frame(timeout="-1"),
    "a time that is text": frame(timeout='"5"'),
    "a time that is NaN": frame(timeout="NaN"),
    "a time that becomes Infinity": frame(timeout="1e999"),
    "a long service name": frame(service='"%s"' % ("s" * 256)),
    "a very long service name": frame(service='"%s"' % ("s" * 60_000)),
    "an empty service name": frame(service='""'),
    "a service name with a space": frame(service='"a b"'),
    "a service name with a zero": frame(service='"a\\u0000"'),
    "a service name that is not ASCII": frame(service='"\u00fc"'),
    "a private method": frame(method='"__class__"'),
    "a method within a method": frame(method='"echo.__call__"'),
    "a long method name": frame(method='"%s"' % ("m" * 256)),
    "params that are a list": frame("[]"),
    "params that are null": frame("null"),
    "a reply of one's own": '{"type":"response","payload":{"id":"odd","result":1,"error":null}}',
}


async def test_no_frame_of_a_client_hurts_a_service(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """Frames that would kill a NuroPb service, or make RabbitMQ close a connection, are refused before a publish."""
    for module, name in ((_self_check, "PING_INTERVAL"), (members, "ALIVE_INTERVAL")):
        monkeypatch.setattr(module, name, 3600.0)  # no message but calls is published
    name = f"fragile-{secrets.token_hex(4)}"
    with ServiceProcess(amqp_url, name, events=()) as service:
        async with scene(amqp_url) as set_:
            caller, other = set_.callers
            assert await caller.call(service=name) == "ok"
            links, pid = set_.proxy.connections(), service.pid
            published = set_.mesh.statistics.published
            for number, (what, text) in enumerate(ODD_FRAMES.items(), 1):
                await caller.client.send_text(text.replace("SERVICE", name))
                await eventually(lambda: len(refusals(caller)) == number)  # noqa: B023
                assert refusals(caller)[-1] in ("bad_request", "permission_denied"), what
                await caller.client.send("ping")  # ten refusals one after the other would end the connection
            assert set_.mesh.statistics.published == published
            for timeout in (1e-9, 1e300):  # the shortest, and the longest that the gateway allows
                assert await other.call(service=name, timeout=timeout) in ("ok", "timeout")
            assert set_.proxy.connections() == links
            assert service.pid == pid
            assert await other.call("count", service=name, params={"method": "add"}) == "ok"
            caller.answers.pop("odd")
            set_.check(record_property, f"{len(ODD_FRAMES)} odd frames")


def refusals(caller: Caller) -> list[str]:
    """Return the codes of the errors so far, from responses and error frames."""
    answers = [payload["error"]["code"] for _, payload in caller.answers.get("odd", ())]
    return answers + [frame["code"] for frame in caller.client.inbox if frame["type"] == "error"]


async def test_who_fails_all_the_time_is_sent_away(amqp_url: str, record_property: Record) -> None:
    """Every failed call is dead-lettered, into queues without a consumer."""
    async with scene(amqp_url, clients=3, users=2) as set_:
        first, innocent, second = set_.callers  # of two users
        for _ in range(5):
            assert await first.ended(await first.start("fail", 10)) == {"service_error": 10}
        for caller in (first, second):
            (refused,) = ids = await caller.start()
            assert await caller.ended(ids, within=FAST) == {"too_many_requests": 1}
            error = caller.error(refused)
            assert error["retryable"] is True
            assert 0 < error["retry_after_ms"] <= 60_000
        assert set_.service.calls.total() == 3 + 50
        assert await innocent.call() == "ok"
        await first.start(count=60)
        await eventually(lambda: first.closed is not None)
        assert first.closed is not None
        assert first.closed.rcvd is not None
        assert first.closed.rcvd.code == 4509
        assert await innocent.call() == "ok"
