"""The gateway among NuroPb's own programs: its client calls the gateway, its services publish, old clients connect."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import aio_pika
import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from nuropb_gateway_asgi import ServiceMeshManagerController
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.kit.clients import connect
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, make_gateway, run_gateway
from tests.servers.processes import ServiceProcess, call_with_nuropb

Method = TypeVar("Method", bound=Callable[..., Any])


# nuropb is not installed on every Python that the gateway runs on. Its exceptions are recognised by these names, and
# its decorators by these attributes:


class NuropbException(Exception):
    """The base of nuropb's exceptions."""


class NuropbValidationError(NuropbException):
    """The parameters are not acceptable."""


class NuropbCallAgain(NuropbException):
    """The method is to be called once more."""


class NuropbSuccess(NuropbException):
    """The method has ended well."""

    def __init__(self, result: Any, events: list[dict[str, Any]]) -> None:
        super().__init__("success")
        self.result = result
        self.events = events


def marked(**attributes: Any) -> Callable[[Method], Method]:
    """Set the attributes that nuropb's decorators set."""

    def mark(method: Method) -> Method:
        for name, value in attributes.items():
            setattr(method, f"__nuropb_{name}__", value)
        return method

    return mark


class Controller(ServiceMeshManagerController):
    """The methods that other services may call on this gateway."""

    _version = "2.0"

    def __init__(self, topic: str) -> None:
        super().__init__(event_topic_subscriptions=[f"{topic}.#"])
        self._topic = topic
        self._private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.calls: Counter[str] = Counter()
        self.events: list[tuple[str, Any, Any, dict[str, Any]]] = []

    async def _handle_event_(self, topic: str, event: Any, target: Any, context: dict[str, Any]) -> None:
        self.events.append((topic, event, target, context))

    def add(self, a: int, b: int = 2) -> int:
        """The sum of two numbers."""
        self.calls["add"] += 1
        return a + b

    async def echo(self, **params: Any) -> dict[str, Any]:
        """The parameters, from a coroutine."""
        await asyncio.sleep(0)
        return params

    @marked(context=True, context_arg="ctx")
    def whoami(self, ctx: dict[str, Any]) -> dict[str, Any]:
        """The context of the call."""
        return ctx

    async def tell(self, user_id: str, text: str) -> int:
        """Send a message to a user, and say to how many connections it went."""
        assert self._handler_manager is not None
        return await self._handler_manager.send_message_to_user_ids([user_id], {"type": "told", "text": text})

    async def relay(self, service: str) -> Any:
        """Call another service in turn."""
        assert self._service_mesh_manager is not None
        return await self._service_mesh_manager.request(service, "add", {"a": 20, "b": 22})

    def fail(self) -> None:
        """Fail by a bug."""
        raise ValueError("the reason")

    async def fail_later(self) -> None:
        """Fail by a bug, in a coroutine."""
        await asyncio.sleep(0)
        raise ValueError("the reason")

    def refuse(self) -> None:
        """Fail on purpose."""
        raise NuropbValidationError("must be positive")

    def nan(self) -> float:
        """What only Python calls JSON."""
        return float("nan")

    def again(self) -> str:
        """Asks to be called again the first time."""
        self.calls["again"] += 1
        if self.calls["again"] % 2:
            raise NuropbCallAgain("not yet")
        return "at last"

    def again_for_ever(self) -> None:
        """Asks to be called again every time."""
        self.calls["again_for_ever"] += 1
        raise NuropbCallAgain("not yet")

    def succeed(self) -> None:
        """Raise the result, and publish an event with it."""
        raise NuropbSuccess({"raised": True}, [{"topic": f"{self._topic}.success", "payload": [1], "target": None}])

    @marked(requires_encryption=True)
    def secret(self, value: str) -> str:
        """To be called encrypted."""
        return f"kept {value}"

    @marked(mesh_hidden=True)
    def hidden(self) -> str:
        """Not in the description, and callable, as nuropb has it."""
        return "found"


@dataclass(frozen=True)
class Site:
    """A gateway with a controller, and a NuroPb service, on one broker."""

    running: RunningGateway
    controller: Controller
    topic: str
    echo: str

    @property
    def name(self) -> str:
        return self.running.gateway.settings.service_name


def gateway_at(url: str, controller: Controller, name: str) -> Any:
    return make_gateway(
        mesh_url=url, service_name=name, service_controller=controller, expose=["*.*"], expose_topics=["#"]
    )


@pytest.fixture(scope="module")
async def site(amqp_url: str, echo_service: ServiceProcess) -> AsyncIterator[Site]:
    topic = f"t{secrets.token_hex(4)}"
    controller = Controller(topic)
    gateway = gateway_at(amqp_url, controller, f"gateway-{secrets.token_hex(4)}")
    async with run_gateway(gateway) as running:
        await eventually(lambda: gateway.service_mesh_manager.connected)
        yield Site(running, controller, topic, echo_service.service)
    await delete_queues(amqp_url, *queues_of(running))


def queues_of(running: RunningGateway) -> list[str]:
    mesh = running.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    return [mesh.reply_queue, mesh.event_queue, mesh.service_queue]


async def delete_queues(url: str, *names: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for name in names:
            await channel.queue_delete(name)


class Call(Protocol):
    """Call with nuropb's own client; return NuroPb's response."""

    def __call__(self, method: str = "", /, **options: Any) -> Coroutine[Any, Any, dict[str, Any]]: ...


@pytest.fixture
def call(amqp_url: str, site: Site) -> Call:
    """Call a method of the controller."""

    async def call_controller(method: str = "", /, **options: Any) -> dict[str, Any]:
        # In a thread, as the gateway has to answer meanwhile.
        return await anyio.to_thread.run_sync(lambda: call_with_nuropb(amqp_url, site.name, method, **options))

    return call_controller


# --- nuropb's client calls the gateway --------------------------------------------------------------------------


async def test_the_response_is_the_one_of_a_nuropb_service(amqp_url: str, site: Site, call: Call) -> None:
    context = {"user_id": "u1", "Authorization": "Bearer x", "nested": [1, None]}
    response = await call("add", params={"a": 1}, context=context)
    assert response["result"] == 3
    theirs = await anyio.to_thread.run_sync(
        lambda: call_with_nuropb(amqp_url, site.echo, "add", {"a": 1, "b": 2}, context=context)
    )
    for each in (response, theirs):
        for varying in ("correlation_id", "trace_id", "reply_to"):
            assert isinstance(each.pop(varying), str)
    assert response == theirs


async def test_coroutines_contexts_and_other_services_may_be_used(site: Site, call: Call) -> None:
    params = {"text": "\u00fc", "list": [1, {"a": None}]}
    assert (await call("echo", params=params))["result"] == params
    context = {"user_id": "u1", "Authorization": "Bearer x"}
    assert (await call("whoami", context=context))["result"] == context
    assert (await call("relay", params={"service": site.echo}))["result"] == 42


async def test_a_method_reaches_the_clients_of_the_gateway(site: Site, call: Call) -> None:
    async with connect(site.running.url, "told:1") as one, connect(site.running.url, "told:2") as two:
        assert (await call("tell", params={"user_id": "told", "text": "\u00fc"}))["result"] == 2
        for client in (one, two):
            assert await client.wait_for(lambda frame: frame["type"] == "told") == {"type": "told", "text": "\u00fc"}


@pytest.mark.parametrize(
    ("method", "params", "error", "description"),
    [
        ("fail", {}, "NuropbException", "Runtime exception calling {name}.fail:ValueError: the reason"),
        ("fail_later", {}, "ValueError", "the reason"),
        ("refuse", {}, "NuropbValidationError", "must be positive"),
        ("no_such_method", {}, "NuropbHandlingError", "Unknown method no_such_method"),
        ("_bind", {}, "NuropbHandlingError", "Unknown method _bind"),
        ("service_name", {}, "NuropbHandlingError", "Unknown method service_name"),
        ("add", {"c": 1}, "NuropbValidationError", "{name}.add: parameters missing: a; unknown: c"),
        ("secret", {"value": "s"}, "NuropbAuthorizationError", "secret has to be called encrypted"),
    ],
)
async def test_failures_are_those_of_a_nuropb_service(
    site: Site, call: Call, method: str, params: dict[str, Any], error: str, description: str
) -> None:
    response = await call(method, params=params)
    assert response["result"] is None
    assert response["error"]["error"] == error
    assert response["error"]["description"].startswith(description.format(name=site.name))


async def test_what_is_raised_by_nuropbs_names_means_what_it_does_there(site: Site, call: Call) -> None:
    assert (await call("again"))["result"] == "at last"
    assert site.controller.calls["again"] == 2
    assert (await call("again_for_ever"))["error"]["error"] == "NuropbCallAgainReject"
    assert site.controller.calls["again_for_ever"] == 2
    async with connect(site.running.url, "alice") as client:
        await client.ask("subscribe", topics=[f"{site.topic}.success"])
        response = await call("succeed")
        assert (response["result"], response["error"]) == ({"raised": True}, None)
        assert (await client.event(f"{site.topic}.success"))["event"] == [1]


async def test_the_description_is_understood_and_encrypted_calls_are_answered(site: Site, call: Call) -> None:
    description = (await call("nuropb_describe"))["result"]
    assert description["service_name"] == site.name
    assert description["service_version"] == "2.0"
    assert description["encrypted_methods"] is True
    assert description["public_key"].startswith("-----BEGIN PUBLIC KEY-----")
    inherited = {name for name in vars(ServiceMeshManagerController) if not name.startswith("_")}
    public = {name for name in vars(Controller) if not name.startswith("_")}
    properties = {"service_name", "instance_id", "event_topic_subscriptions"}
    assert set(description["methods"]) == (public | inherited) - properties - {"hidden"}
    assert description["methods"]["add"] == {
        "description": "The sum of two numbers.",
        "requires_encryption": False,
        "parameters": {
            "type": "object",
            "properties": [
                ["a", {"type": "int", "description": "", "default": ""}],
                ["b", {"type": "int", "description": "", "default": 2}],
            ],
            "required": ["a"],
        },
    }
    assert description["methods"]["whoami"]["parameters"]["properties"] == []
    assert (await call("secret", params={"value": "s"}, encrypted=True))["result"] == "kept s"
    assert (await call("add", params={"a": 1}, encrypted=True))["result"] == 3
    failed = await call("secret", params={}, encrypted=True)
    assert failed["error"]["error"] == "NuropbValidationError"


async def test_a_command_is_executed(site: Site, call: Call) -> None:
    before = site.controller.calls["add"]
    assert await call("add", params={"a": 1}, command=True) == {"sent": True}
    await eventually(lambda: site.controller.calls["add"] == before + 1)


async def test_a_gateway_that_is_called_a_lot_answers_everybody(amqp_url: str, site: Site) -> None:
    """By hand, as nuropb's client takes a process for each call."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        replies = await channel.declare_queue(exclusive=True)
        rpc = await channel.get_exchange("nuropb-rpc-exchange")
        for number in range(200):
            body = {"tag": "request", "method": "echo", "params": {"n": number}, "context": {}, "trace_id": None}
            headers: dict[str, Any] = {"nuropb_protocol": "0.1.1", "nuropb_type": "request", "trace_id": None}
            message = aio_pika.Message(
                json.dumps(body).encode(), headers=headers, correlation_id=str(number), reply_to=replies.name
            )
            await rpc.publish(message, site.name)
        results: dict[str | None, Any] = {}
        async with replies.iterator(timeout=DEADLINE) as messages:
            async for reply in messages:
                async with reply.process():
                    assert reply.correlation_id not in results
                    results[reply.correlation_id] = json.loads(reply.body)["result"]
                if len(results) == 200:
                    break
    assert results == {str(number): {"n": number} for number in range(200)}


# --- events -----------------------------------------------------------------------------------------------------


async def test_events_of_services_and_clients_reach_subscribers_and_the_controller(
    amqp_url: str, site: Site, call: Call
) -> None:
    site.controller.events.clear()
    url = site.running.url
    async with connect(url, "alice") as alice, connect(url, "bob") as bob:
        answer = await alice.ask("subscribe", topics=[f"{site.topic}.orders.*"])
        assert answer["result"] == {"topics": [f"{site.topic}.orders.*"]}
        created, private = f"{site.topic}.orders.created", f"{site.topic}.orders.private"
        await call(event=created, params={"id": 1}, context={"user_id": "somebody"})
        seen = await alice.event(created)
        assert isinstance(seen.pop("trace_id"), str)
        assert seen == {"topic": created, "event": {"id": 1}}
        for target in (None, ["bob"]):
            await alice.result(f"{site.echo}.emit", {"topic": private, "event": [target], "target": target})
        assert (await alice.event(private))["event"] == [None]
        assert (await bob.event(private))["event"] == [["bob"]]
        assert await bob.settled() == []
        assert await alice.settled() == []
    await eventually(lambda: len(site.controller.events) == 3)
    assert site.controller.events == [
        (created, {"id": 1}, None, {"user_id": "somebody"}),
        (private, [None], None, {"service": site.echo}),
        (private, [["bob"]], ["bob"], {"service": site.echo}),
    ]


async def test_every_process_of_a_gateway_has_the_events_and_one_has_the_call(
    amqp_url: str, site: Site, call: Call
) -> None:
    site.controller.events.clear()
    other = Controller(site.topic)
    async with run_gateway(gateway_at(amqp_url, other, site.name)) as running:
        await eventually(lambda: running.gateway.service_mesh_manager.connected)
        async with connect(site.running.url, "alice") as here, connect(running.url, "alice") as there:
            for client in (here, there):
                await client.ask("subscribe", topics=[f"{site.topic}.x"])
            await here.result(f"{site.echo}.emit", {"topic": f"{site.topic}.x", "event": 1})
            await there.result(f"{site.echo}.emit", {"topic": f"{site.topic}.y", "event": 2, "target": ["alice"]})
            for client in (here, there):
                assert (await client.event(f"{site.topic}.x"))["event"] == 1
                assert (await client.event(f"{site.topic}.y"))["event"] == 2
        await eventually(lambda: len(site.controller.events) == len(other.events) == 2)
        before = site.controller.calls["add"] + other.calls["add"]
        for _ in range(3):
            assert (await call("add", params={"a": 1}))["result"] == 3
        assert site.controller.calls["add"] + other.calls["add"] == before + 3
    own = set(queues_of(running)) - set(queues_of(site.running))
    await delete_queues(amqp_url, *own)


# --- the clients of nuropb_gw -----------------------------------------------------------------------------------


async def test_a_client_of_nuropb_gw_works_unchanged(site: Site) -> None:
    """As in nuropb_gw's own tests: Tornado's client, ``Bearer :token``, trace ids only, one message at a time."""
    websocket = pytest.importorskip("tornado.websocket")
    httpclient = pytest.importorskip("tornado.httpclient")
    request = httpclient.HTTPRequest(site.running.url, headers={"Authorization": "Bearer :alice"})
    with anyio.fail_after(DEADLINE):
        connection = await websocket.websocket_connect(request)
        try:
            hello = json.loads(await connection.read_message())
            assert (hello["type"], hello["payload"]["topic"]) == ("event", "hello")
            assert hello["payload"]["event"]["user_id"] == "alice"
            assert hello["payload"]["event"]["username"] == "Alice"
            assert hello["payload"]["event"]["session_id"]

            for number in range(3):
                trace_id = uuid4().hex
                payload = {
                    "trace_id": trace_id,
                    "service": site.echo,
                    "method": "add",
                    "params": {"a": number, "b": 1},
                }
                await connection.write_message(json.dumps({"type": "request", "payload": payload}))
                assert json.loads(await connection.read_message()) == {
                    "type": "response",
                    "payload": {"trace_id": trace_id, "result": number + 1, "error": None},
                }

            payload = {"trace_id": "t", "service": "nobody-at-all", "method": "add", "params": {}}
            await connection.write_message(json.dumps({"type": "request", "payload": payload}))
            answer = json.loads(await connection.read_message())
            assert set(answer["payload"]) == {"trace_id", "result", "error"}
            assert answer["payload"]["result"] is None
            assert answer["payload"]["error"]["error"] == "NuropbNotDeliveredError"
            assert answer["payload"]["error"]["description"]

            await connection.write_message("not json")
            assert json.loads(await connection.read_message())["type"] == "error"

            # Frames that nuropb_gw's handlers sent unasked.
            site.running.gateway.handler_manager.send_message_to_all({"type": "any", "payload": [1]})
            assert json.loads(await connection.read_message()) == {"type": "any", "payload": [1]}
        finally:
            connection.close()
    await site.running.is_empty()


# --- a service that dies ----------------------------------------------------------------------------------------


async def test_a_call_of_a_service_that_was_killed_is_answered_once_by_its_sibling(amqp_url: str, site: Site) -> None:
    name = f"twins-{secrets.token_hex(4)}"
    first, second = (ServiceProcess(amqp_url, name) for _ in range(2))
    with contextlib.ExitStack() as stack:
        for service in (first, second):
            stack.push(service)
        await anyio.to_thread.run_sync(first.start)
        async with connect(site.running.url, "alice") as client:
            await client.result(f"{name}.echo")  # from here on the gateway knows the service
            first.freeze()
            await client.request(f"{name}.whoami", {}, id="unacknowledged", trace_id="t1")
            await client.request(f"{name}.add", {"a": 1, "b": 2}, id="waiting")
            # One message is with the frozen process, which has a prefetch of 1; the other is in the queue.
            await messages_in(amqp_url, f"nuropb-{name}-sq", 1)
            await anyio.to_thread.run_sync(second.start)
            assert (await client.answer("waiting"))["result"] == 3
            first.kill()
            answer = await client.answer("unacknowledged")
            assert answer["result"]["trace_id"] == "t1"
            # Every earlier frame has come once a later call is answered.
            assert await client.result(f"{name}.count", {"method": "whoami"}) == 1
            assert await client.settled() == []
    await delete_queues(amqp_url, f"nuropb-{name}-sq", f"nuropb-{name}-dl")


async def messages_in(url: str, queue: str, count: int) -> None:
    """Wait until a queue has that many messages."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        with anyio.fail_after(DEADLINE):
            while (await channel.declare_queue(queue, passive=True)).declaration_result.message_count != count:
                await asyncio.sleep(0.01)


async def test_a_call_that_nobody_answers_ends_and_the_service_is_told_nothing_twice(amqp_url: str, site: Site) -> None:
    name = f"frozen-{secrets.token_hex(4)}"
    with ServiceProcess(amqp_url, name) as service:
        async with connect(site.running.url, "alice") as client:
            await client.result(f"{name}.echo")
            service.freeze()
            mesh = site.running.gateway.service_mesh_manager.mesh
            assert isinstance(mesh, RabbitMQMesh)
            sent: list[int] = []
            numbers = itertools.count()
            while len(sent) < 3:
                number, unsent = next(numbers), mesh.statistics.expired_unsent
                answer = await client.call(f"{name}.record", {"n": number}, timeout=0.5)
                assert answer["error"]["code"] == "timeout"
                # On a busy machine this process may be late, and a call's time over before it is sent.
                if mesh.statistics.expired_unsent == unsent:
                    sent.append(number)
            await messages_in(amqp_url, service.queue, 0)
            service.thaw()
            # The first was with the service already; the others expired in the queue.
            recorded = await client.result(f"{name}.recorded")
            assert recorded == [{"n": sent[0]}]
    await delete_queues(amqp_url, f"nuropb-{name}-sq", f"nuropb-{name}-dl")
