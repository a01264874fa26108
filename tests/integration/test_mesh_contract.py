"""What a client sees is the same on both meshes: services in this process, and NuroPb's own behind RabbitMQ.

Everything here goes through the managers, with connections that have no socket. The same service classes stand on
both sides, and no expectation asks which mesh it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import aio_pika
import anyio
import pytest

from nuropb_gateway_asgi import CallError, Identity, ServiceMeshManagerController, Settings
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.handler_manager import HandlerManager
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from nuropb_gateway_asgi.mesh.rabbitmq._lane import LaneName
from nuropb_gateway_asgi.service_mesh_manager import ServiceMeshManager
from nuropb_gateway_asgi.wire.interface import Mesh
from tests.kit.gateways import DEADLINE, eventually
from tests.servers.processes import ServiceProcess
from tests.unit.fakes import FakeHandler

Frame = dict[str, Any]


# --- a gateway without sockets ----------------------------------------------------------------------------------


class Client(FakeHandler):
    """A connection that can be asked for its answers."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway
        self._ids = itertools.count(1)
        self._more = asyncio.Event()
        self.on_send = self._more.set

    def send(self, kind: str, **payload: Any) -> str:
        """Send a frame and return its id."""
        payload.setdefault("id", f"{kind}-{next(self._ids)}")
        self._gateway.handlers.on_handler_message(self, json.dumps({"type": kind, "payload": payload}))
        return str(payload["id"])

    def answers(self, id_: str) -> list[Frame]:
        return [frame["payload"] for frame in self.frames if frame["payload"].get("id") == id_]

    @property
    def events(self) -> list[Frame]:
        return [frame["payload"] for frame in self.frames if frame["type"] == "event"]

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(DEADLINE):
            while not condition():
                self._more.clear()
                await self._more.wait()

    async def answer(self, id_: str) -> Frame:
        await self.until(lambda: self.answers(id_))
        return self.answers(id_)[0]

    async def ask(self, kind: str, **payload: Any) -> Frame:
        return await self.answer(self.send(kind, **payload))

    async def request(self, service: str, method: str, params: Mapping[str, Any] | None = None, **more: Any) -> Frame:
        return await self.ask("request", service=service, method=method, params=params or {}, **more)

    async def result(self, service: str, method: str, params: Mapping[str, Any] | None = None, **more: Any) -> Any:
        answer = await self.request(service, method, params, **more)
        assert answer["error"] is None
        return answer["result"]

    async def error(self, service: str, method: str, params: Mapping[str, Any] | None = None, **more: Any) -> Frame:
        answer = await self.request(service, method, params, **more)
        assert answer["result"] is None
        return dict(answer["error"])


class Controller(ServiceMeshManagerController):
    """Keeps the events of the gateway's own subscriptions."""

    def __init__(self) -> None:
        super().__init__(event_topic_subscriptions=["controller.#"])
        self._events: list[tuple[str, Any, Any, dict[str, Any]]] = []

    async def _handle_event_(self, topic: str, event: Any, target: Any, context: dict[str, Any]) -> None:
        self._events.append((topic, event, target, context))


class Services(NamedTuple):
    """The names of the services, and for the embedded mesh the services themselves."""

    echo: str
    stub: str
    objects: dict[str, Any]
    #: Of the mesh that calls them.
    lane: LaneName


class Gateway(NamedTuple):
    """The managers of one gateway, running."""

    services: Services
    handlers: HandlerManager
    manager: ServiceMeshManager
    controller: Controller
    clients: list[Client]

    async def connect(self, user_id: str = "u1") -> Client:
        """A registered connection; the token is ``token of <user>``."""
        client = Client(self)
        await self.handlers.register(client, f"token-of-{user_id}")
        self.clients.append(client)
        return client


async def authenticate(token: str) -> Identity:
    user_id = token.removeprefix("token-of-")
    return Identity(user_id=user_id, username=user_id.upper(), token=token)


class EmbeddedTransport:
    """What a service publishes by when it is not NuroPb that hosts it: the part of nuropb's RMQAPI that it uses."""

    def __init__(self) -> None:
        self.transport = self
        self.mesh: EmbeddedMesh | None = None

    def publish_event(self, *, topic: str, event: Any, context: Any) -> None:
        self.send_message(payload={"topic": topic, "event": event, "context": context, "target": None})

    def send_message(self, *, payload: dict[str, Any]) -> None:
        assert self.mesh is not None
        context = json.dumps(payload["context"]).encode()
        event = json.dumps(payload["event"]).encode()
        self.mesh.publish(payload["topic"], event, context=context, trace_id=uuid4().hex, target=payload["target"])


@pytest.fixture(scope="module", params=["embedded", "rabbitmq, fast lane", "rabbitmq, plain lane"])
def services(request: pytest.FixtureRequest) -> Iterator[Services]:
    echo, stub = (f"{kind}-{secrets.token_hex(4)}" for kind in ("echo", "stub"))
    if request.param == "embedded":
        pytest.importorskip("nuropb", reason="the service classes are written with nuropb: it needs Python 3.11")
        classes = importlib.import_module("tests.servers.nuropb_service")
        objects = {echo: classes.EchoService(echo, "1"), stub: classes.ServiceExample(stub, "1")}
        objects[echo]._api = EmbeddedTransport()
        yield Services(echo, stub, objects, "fast")
        return
    url: str = request.getfixturevalue("amqp_url")
    with (
        ServiceProcess(url, echo, prefetch=100) as one,
        ServiceProcess(url, stub, kind="stub", prefetch=100, events=()) as other,
    ):
        yield Services(one.service, other.service, {}, "plain" if "plain" in request.param else "fast")
    asyncio.run(delete_queues(url, *(f"nuropb-{name}-{kind}" for name in (echo, stub) for kind in ("sq", "dl"))))


async def delete_queues(url: str, *names: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for name in names:
            await channel.queue_delete(name)


@contextlib.asynccontextmanager
async def running(request: pytest.FixtureRequest, services: Services, settings: Settings) -> AsyncIterator[Gateway]:
    mesh: Mesh
    url: str | None = None
    if services.objects:
        mesh = services.objects[services.echo]._api.mesh = EmbeddedMesh(
            services.objects, service_name=settings.service_name
        )
    else:
        url = request.getfixturevalue("amqp_url")
        mesh = RabbitMQMesh(
            url, service_name=settings.service_name, instance_id=settings.instance_id, lane=services.lane
        )
    policy = ExposePolicy(["*.*"], ["#"])
    handlers = HandlerManager(settings, authenticate, policy)
    controller = Controller()
    async with ServiceMeshManager(settings, handlers, mesh, policy, controller) as manager:
        gateway = Gateway(services, handlers, manager, controller, [])
        await eventually(lambda: manager.connected)
        yield gateway
        # Whatever is still on its way to a client comes before the answer to a later call.
        barrier = await gateway.connect("barrier")
        await barrier.result(services.echo, "echo")
        for client in gateway.clients:
            ids = [frame["payload"]["id"] for frame in client.frames if frame["type"] == "response"]
            assert len(ids) == len(set(ids)), "something was answered twice"
            assert client.closes == []
            gateway.handlers.unregister(client)
        assert manager.in_flight == 0
    if isinstance(mesh, RabbitMQMesh) and url is not None:
        await delete_queues(url, mesh.reply_queue, mesh.event_queue, mesh.service_queue)


def settings_for_tests(**values: Any) -> Settings:
    return Settings(service_name=f"gateway-{secrets.token_hex(4)}", **values)


@pytest.fixture
async def gateway(request: pytest.FixtureRequest, services: Services) -> AsyncIterator[Gateway]:
    async with running(request, services, settings_for_tests()) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Gateway) -> Client:
    return await gateway.connect()


@pytest.fixture
def echo(services: Services) -> str:
    return services.echo


# --- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"text": "üñí ☃ 𝄞 \u0000 \u2028", "quote": '"\\/'},
        {"null": None, "yes": True, "no": False, "list": [1, [2, [3, {}]]], "": "no name"},
        {"int": 2**53, "negative": -(2**53), "float": 0.1, "exponent": 1e300, "tiny": 5e-324},
        {"deep": json.loads("[" * 25 + "]" * 25)},
    ],
    ids=["nothing", "text", "nested", "numbers", "deep"],
)
async def test_a_request_comes_back_as_it_was_sent(client: Client, echo: str, params: dict[str, Any]) -> None:
    assert await client.result(echo, "echo", params) == params


async def test_ids_are_echoed_and_a_trace_id_is_made_where_none_was_given(client: Client, echo: str) -> None:
    answer = await client.request(echo, "add", {"a": 1, "b": 2}, id="7", trace_id="t ü")
    assert answer == {"id": "7", "trace_id": "t ü", "result": 3, "error": None}
    answer = await client.request(echo, "add", {"a": 1, "b": 2})
    assert set(answer) == {"id", "trace_id", "result", "error"}
    assert answer["trace_id"]


async def test_a_frame_with_only_a_trace_id_is_answered_with_it(client: Client, echo: str) -> None:
    client.send("request", id=None, trace_id="only", service=echo, method="add", params={"a": 1, "b": 2})
    await client.until(lambda: any(frame["payload"].get("trace_id") == "only" for frame in client.frames))
    (frame,) = client.frames
    assert frame == {"type": "response", "payload": {"trace_id": "only", "result": 3, "error": None}}
    client.frames.clear()


async def test_the_service_sees_who_calls_and_nothing_that_the_client_made_up(gateway: Gateway, echo: str) -> None:
    client = await gateway.connect("müller")
    lies: dict[str, Any] = {
        "context": {"user_id": "root"},
        "user_id": "root",
        "reply_to": "x",
        "correlation_id": "y",
        "encrypted": "yes",
    }
    assert await client.result(echo, "whoami", trace_id="t1", **lies) == {
        "user_id": "müller",
        "Authorization": "Bearer token-of-müller",
        "trace_id": "t1",
        "session_id": client.session_id,
    }


async def test_a_big_result_arrives_whole(client: Client, echo: str) -> None:
    assert await client.result(echo, "big", {"size": 900_000}) == "x" * 900_000


async def test_a_result_that_does_not_fit_is_an_error(client: Client, echo: str) -> None:
    error = await client.error(echo, "big", {"size": 1_100_000})
    assert (error["code"], error["retryable"]) == ("payload_too_large", False)
    assert await client.result(echo, "add", {"a": 1, "b": 2}) == 3


async def test_a_result_that_is_raised_is_a_result(client: Client, gateway: Gateway, services: Services) -> None:
    assert await client.result(services.echo, "success") == {"raised": True}
    stub = services.stub
    assert await client.result(stub, "test_success_error") == f"response from {stub}.test_success_error"


async def test_five_hundred_calls_at_once_are_each_answered_with_their_own_result(
    request: pytest.FixtureRequest, services: Services
) -> None:
    async with running(request, services, settings_for_tests(max_in_flight=500, rate_limit="off")) as gateway:
        client = await gateway.connect()
        ids = {
            n: client.send("request", service=services.echo, method="echo", params={"n": n, "half": n / 2})
            for n in range(500)
        }
        await client.until(lambda: len(client.frames) >= 500)
        for n, id_ in ids.items():
            (answer,) = client.answers(id_)
            assert answer["result"] == {"n": n, "half": n / 2}
        assert gateway.manager.in_flight == 0


async def test_a_slow_call_delays_no_other(client: Client, echo: str) -> None:
    slow = client.send("request", service=echo, method="slow", params={"seconds": 3600})
    assert await client.result(echo, "slow", {"seconds": 0}) == 0
    assert not client.answers(slow)
    client.send("cancel", id=slow)
    assert (await client.answer(slow))["error"]["code"] == "cancelled"


async def test_an_id_can_be_used_again_when_its_answer_is_there_and_not_before(client: Client, echo: str) -> None:
    client.send("request", id="same", service=echo, method="slow", params={"seconds": 0.2})
    client.send("request", id="same", service=echo, method="add", params={"a": 1, "b": 2})
    await client.until(lambda: len(client.answers("same")) == 2)
    refused, done = client.answers("same")
    assert refused["error"]["code"] == "duplicate_id"
    assert done["result"] == 0.2
    assert (await client.request(echo, "add", {"a": 1, "b": 2}, id="other"))["result"] == 3
    client.frames.clear()


async def test_more_calls_than_allowed_are_refused_and_the_rest_is_answered(
    request: pytest.FixtureRequest, services: Services
) -> None:
    async with running(request, services, settings_for_tests(max_in_flight=3)) as gateway:
        client = await gateway.connect()
        ids = [client.send("request", service=services.echo, method="slow", params={"seconds": 0.1}) for _ in range(5)]
        answers = [await client.answer(id_) for id_ in ids]
        assert [answer["result"] for answer in answers] == [0.1, 0.1, 0.1, None, None]
        assert [answer["error"]["code"] for answer in answers[3:]] == ["too_many_requests"] * 2


# --- what fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "code", "name", "description"),
    [
        ("fail_validation", "invalid_params", "NuropbValidationError", "the quantity must be positive"),
        ("fail_authorization", "permission_denied", "NuropbAuthorizationError", "only managers may do that"),
        ("fail_authentication", "unauthenticated", "NuropbAuthenticationError", "the token has been revoked"),
        ("fail_deprecated", "deprecated", "NuropbDeprecatedError", "use add"),
    ],
)
async def test_what_a_service_says_on_purpose_reaches_the_client(
    client: Client, echo: str, method: str, code: str, name: str, description: str
) -> None:
    error = await client.error(echo, method)
    assert (error["code"], error["error"], error["retryable"]) == (code, name, False)
    assert description in error["description"]


@pytest.mark.parametrize("method", ["fail_value", "fail_async"])
async def test_what_a_service_says_by_accident_does_not(client: Client, echo: str, method: str) -> None:
    answer = await client.request(echo, method, trace_id="look for me")
    error = answer["error"]
    assert answer["result"] is None
    assert (error["code"], error["retryable"]) == ("service_error", False)
    assert error["description"] == f"{echo}.{method} failed; look for trace_id look for me"
    assert error["error"].startswith("Nuropb")
    assert "hunter2" not in json.dumps(client.frames)


@pytest.mark.parametrize("params", [{}, {"a": 1}, {"a": 1, "b": 2, "c": 3}, {"self": 1, "a": 1, "b": 1}])
async def test_parameters_that_the_method_does_not_have_are_an_error(
    client: Client, echo: str, params: dict[str, Any]
) -> None:
    assert (await client.error(echo, "add", params))["code"] == "service_error"


async def test_a_result_that_only_python_calls_json_is_an_error(client: Client, echo: str) -> None:
    error = await client.error(echo, "nan")
    assert (error["code"], error["retryable"]) == ("service_error", False)
    assert "JSON" in error["description"]


async def test_every_failure_is_answered_once(client: Client, gateway: Gateway, echo: str) -> None:
    methods = ["fail_value", "fail_async", "fail_validation", "fail_deprecated", "nan", "call_again_forever"] * 3
    ids = [client.send("request", service=echo, method=method) for method in methods]
    for id_ in ids:
        assert (await client.answer(id_))["error"]["code"] != "internal"
    # The second of nuropb's two replies is behind us when a later call is answered.
    assert await client.result(echo, "add", {"a": 1, "b": 2}) == 3
    assert all(len(client.answers(id_)) == 1 for id_ in ids)


async def test_a_method_that_wants_to_be_called_again_is_called_once_more(client: Client, services: Services) -> None:
    before = await client.result(services.echo, "count", {"method": "call_again"})
    assert await client.result(services.echo, "call_again", {"key": uuid4().hex}) == "at last"
    assert await client.result(services.echo, "count", {"method": "call_again"}) == before + 2


async def test_a_method_that_always_wants_to_be_called_again_fails(client: Client, echo: str) -> None:
    before = await client.result(echo, "count", {"method": "call_again_forever"})
    error = await client.error(echo, "call_again_forever")
    assert (error["code"], error["error"]) == ("service_error", "NuropbCallAgainReject")
    assert await client.result(echo, "count", {"method": "call_again_forever"}) == before + 2


@pytest.mark.parametrize("kind", ["request", "command", "describe"])
async def test_a_service_that_is_not_there_is_unavailable(client: Client, kind: str) -> None:
    call = {} if kind == "describe" else {"method": "anything", "params": {}}
    answer = await client.ask(kind, service="nobody-at-all", **call)
    assert answer["result"] is None
    assert answer["error"] == {
        "error": "NuropbNotDeliveredError",
        "description": "Service nobody-at-all is not available",
        "code": "service_unavailable",
        "retryable": True,
        "retry_after_ms": None,
    }


@pytest.mark.parametrize("kind", ["request", "command"])
@pytest.mark.parametrize("method", ["no_such_method", "hidden", "hunter2", "service_name"])
async def test_a_method_that_is_not_described_is_not_found(
    client: Client, services: Services, kind: str, method: str
) -> None:
    before = await client.result(services.echo, "count")
    answer = await client.ask(kind, service=services.echo, method=method, params={})
    assert answer["error"]["code"] == "method_not_found"
    assert await client.result(services.echo, "count") == before


@pytest.mark.parametrize("kind", ["request", "command"])
@pytest.mark.parametrize("method", ["nuropb_describe", "_handle_event_", "__init__", "a.b", ""])
async def test_what_is_no_public_method_is_refused_before_the_service_sees_it(
    client: Client, services: Services, kind: str, method: str
) -> None:
    before = await client.result(services.echo, "count")
    answer = await client.ask(kind, service=services.echo, method=method, params={})
    assert answer["error"]["code"] in ("bad_request", "permission_denied")
    assert await client.result(services.echo, "count") == before


# --- commands ---------------------------------------------------------------------------------------------------


async def test_a_command_is_answered_and_executed(client: Client, echo: str) -> None:
    token = uuid4().hex
    answer = await client.ask("command", service=echo, method="record", params={"token": token}, trace_id="t")
    assert answer == {"id": answer["id"], "trace_id": "t", "result": None, "error": None}
    assert {"token": token} in await client.result(echo, "recorded")


async def test_a_command_that_fails_was_taken_all_the_same(client: Client, echo: str) -> None:
    before = await client.result(echo, "count", {"method": "fail_value"})
    answer = await client.ask("command", service=echo, method="fail_value", params={})
    assert (answer["result"], answer["error"]) == (None, None)
    assert await client.result(echo, "count", {"method": "fail_value"}) == before + 1


async def test_commands_are_executed_in_their_order(client: Client, echo: str) -> None:
    token = uuid4().hex
    params = [{"token": token, "n": n} for n in range(50)]
    ids = [client.send("command", service=echo, method="record", params=each) for each in params]
    for id_ in ids:
        assert (await client.answer(id_))["error"] is None
    recorded = await client.result(echo, "recorded")
    assert [each for each in recorded if each.get("token") == token] == params


# --- describe ---------------------------------------------------------------------------------------------------


async def test_a_description_names_what_can_be_called(client: Client, echo: str) -> None:
    answer = await client.ask("describe", service=echo)
    assert answer["result"]["unavailable"] == []
    description = answer["result"]["services"][echo]
    assert description["version"] == "1.2.3"
    assert description["description"].startswith("Answers with what it was given")
    assert set(description["methods"]) == {
        *("echo", "add", "slow", "big", "nan", "whoami", "secret", "success", "call_again", "call_again_forever"),
        *("fail_value", "fail_async", "fail_validation", "fail_authorization", "fail_authentication"),
        *("fail_deprecated", "exit_hard", "emit", "record", "recorded", "events", "count"),
    }
    assert {name for name, method in description["methods"].items() if method["requires_encryption"]} == {"secret"}


@pytest.mark.parametrize(
    ("method", "properties", "required"),
    [
        ("add", {"a": {"type": "int"}, "b": {"type": "int"}}, ["a", "b"]),
        ("count", {"method": {"type": "str", "default": ""}}, []),
        ("whoami", {}, []),
    ],
)
async def test_a_description_names_the_parameters(
    client: Client, echo: str, method: str, properties: dict[str, Any], required: list[str]
) -> None:
    answer = await client.ask("describe", service=echo)
    parameters = answer["result"]["services"][echo]["methods"][method]["parameters"]
    assert parameters == {"type": "object", "properties": properties, "required": required}


async def test_a_description_of_everything_has_what_was_called(client: Client, services: Services) -> None:
    assert (await client.ask("describe"))["result"] == {"services": {}, "unavailable": []}
    await client.result(services.echo, "echo")
    assert set((await client.ask("describe"))["result"]["services"]) == {services.echo}
    await client.result(services.stub, "test_method")
    assert set((await client.ask("describe"))["result"]["services"]) == {services.echo, services.stub}


# --- encryption -------------------------------------------------------------------------------------------------


async def test_a_method_that_requires_encryption_is_called(client: Client, services: Services) -> None:
    assert await client.result(services.echo, "secret", {"value": "ü"}) == "kept ü"
    result = await client.result(services.stub, "test_requires_encryption")
    assert result == "Result that's to be encrypted in transit"


async def test_an_encrypted_call_can_fail_and_be_a_command(client: Client, echo: str) -> None:
    assert (await client.error(echo, "secret", {"valu": "s"}))["code"] == "service_error"
    before = await client.result(echo, "count", {"method": "secret"})
    assert (await client.ask("command", service=echo, method="secret", params={"value": "s"}))["error"] is None
    assert await client.result(echo, "count", {"method": "secret"}) == before + 1
    assert await client.result(echo, "secret", {"value": "s"}) == "kept s"


# --- the example of nuropb itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["test_method", "test_async_method"])
async def test_nuropbs_own_example_answers(client: Client, services: Services, method: str) -> None:
    result = await client.result(services.stub, method, {"a": 1})
    assert result == f"response from {services.stub}.{method}"


async def test_nuropbs_own_example_authorises_by_the_token(client: Client, services: Services) -> None:
    claims = await client.result(services.stub, "test_requires_user_claims")
    assert claims["user_id"] == "test_user"


async def test_nuropbs_own_example_is_called_again(client: Client, services: Services) -> None:
    error = await client.error(services.stub, "test_call_again_loop")
    assert error["error"] == "NuropbCallAgainReject"


# --- time -------------------------------------------------------------------------------------------------------


async def test_a_request_without_an_answer_in_time_ends_with_timeout(
    client: Client, gateway: Gateway, echo: str
) -> None:
    await client.result(echo, "echo")
    error = await client.error(echo, "slow", {"seconds": 2}, timeout=1)
    assert (error["code"], error["error"], error["retryable"]) == ("timeout", "NuropbTimeoutError", False)
    await eventually(lambda: gateway.manager.statistics.late_replies == 1)
    assert len(client.frames) == 2


async def test_a_cancelled_request_is_answered_once_with_cancelled(client: Client, gateway: Gateway, echo: str) -> None:
    await client.result(echo, "echo")
    id_ = client.send("request", service=echo, method="slow", params={"seconds": 0.3})
    client.send("cancel", id=id_)
    assert (await client.answer(id_))["error"]["code"] == "cancelled"
    client.send("cancel", id=id_)
    client.send("cancel", id="never heard of")
    await eventually(lambda: gateway.manager.statistics.late_replies == 1)
    assert len(client.answers(id_)) == 1
    assert not client.answers("never heard of")


async def test_a_request_that_is_cancelled_before_the_service_is_known_is_never_sent(client: Client, echo: str) -> None:
    token = uuid4().hex
    id_ = client.send("request", service=echo, method="record", params={"token": token})
    client.send("cancel", id=id_)
    assert (await client.answer(id_))["error"]["code"] == "cancelled"
    assert {"token": token} not in await client.result(echo, "recorded")


async def test_the_answer_to_a_client_that_has_left_is_dropped(gateway: Gateway, echo: str) -> None:
    client = await gateway.connect()
    await client.result(echo, "echo")
    id_ = client.send("request", service=echo, method="slow", params={"seconds": 0.2})
    gateway.handlers.unregister(client)
    assert gateway.manager.in_flight == 0
    await eventually(lambda: gateway.manager.statistics.late_replies == 1)
    assert gateway.manager.statistics.abandoned == 1
    assert not client.answers(id_)


# --- events -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [{"id": 1, "text": "ü"}, [1, [None]], "text", 0.5, None])
async def test_an_event_reaches_those_who_subscribed_to_its_topic(gateway: Gateway, echo: str, event: Any) -> None:
    topic = f"t{secrets.token_hex(4)}"
    exact, star, rest, other = [await gateway.connect(name) for name in ("exact", "star", "rest", "other")]
    await exact.ask("subscribe", topics=[f"{topic}.orders.created"])
    await star.ask("subscribe", topics=[f"{topic}.*.created", f"{topic}.orders.*"])
    await rest.ask("subscribe", topics=[f"{topic}.#"])
    await other.ask("subscribe", topics=[f"{topic}.orders", f"{topic}.*"])

    await exact.result(echo, "emit", {"topic": f"{topic}.orders.created", "event": event})
    await rest.result(echo, "emit", {"topic": f"{topic}.last", "event": 0})
    await rest.until(lambda: len(rest.events) == 2)
    await other.until(lambda: other.events)
    for client in (exact, star):
        (seen,) = client.events
        assert (seen["topic"], seen["event"]) == (f"{topic}.orders.created", event)
        assert set(seen) <= {"topic", "event", "trace_id"}
    assert [seen["topic"] for seen in rest.events] == [f"{topic}.orders.created", f"{topic}.last"]
    assert [seen["topic"] for seen in other.events] == [f"{topic}.last"]


async def test_an_event_with_a_target_reaches_those_users_alone(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    one, one_too, two, three = [await gateway.connect(name) for name in ("one", "one", "two", "three")]
    for client in (two, three):
        await client.ask("subscribe", topics=[f"{topic}.#"])
    await two.result(echo, "emit", {"topic": f"{topic}.private", "event": "s", "target": ["one", "two", "nobody"]})
    await two.result(echo, "emit", {"topic": f"{topic}.public", "event": "p"})
    await three.until(lambda: three.events)
    await two.until(lambda: len(two.events) == 2)
    for client in (one, one_too):
        assert [(seen["topic"], seen["event"]) for seen in client.events] == [(f"{topic}.private", "s")]
    assert [seen["topic"] for seen in two.events] == [f"{topic}.private", f"{topic}.public"]
    assert [seen["topic"] for seen in three.events] == [f"{topic}.public"]


async def test_an_event_with_an_empty_target_reaches_nobody(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    client = await gateway.connect()
    await client.ask("subscribe", topics=[f"{topic}.#"])
    await client.result(echo, "emit", {"topic": f"{topic}.nobody", "event": 1, "target": []})
    await client.result(echo, "emit", {"topic": f"{topic}.all", "event": 2})
    await client.until(lambda: client.events)
    assert [seen["event"] for seen in client.events] == [2]


async def test_subscriptions_are_listed_and_end(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    client = await gateway.connect()
    a, b = f"{topic}.a", f"{topic}.b"
    assert (await client.ask("subscribe", topics=[a, b, a]))["result"] == {"topics": [a, b]}
    assert (await client.ask("subscribe", topics=[b]))["result"] == {"topics": [a, b]}
    assert (await client.ask("unsubscribe", topics=[a, "never"]))["result"] == {"topics": [b]}
    for each in (a, b):
        await client.result(echo, "emit", {"topic": each, "event": each})
    await client.until(lambda: client.events)
    assert (await client.ask("subscribe", topics=[a]))["result"] == {"topics": [b, a]}
    await client.result(echo, "emit", {"topic": a, "event": "again"})
    await client.until(lambda: len(client.events) == 2)
    assert [seen["event"] for seen in client.events] == [b, "again"]


async def test_what_one_connection_unsubscribes_another_keeps(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    stays, goes, leaves = [await gateway.connect() for _ in range(3)]
    for client in (stays, goes, leaves):
        await client.ask("subscribe", topics=[f"{topic}.#"])
    await goes.ask("unsubscribe", topics=[f"{topic}.#"])
    gateway.handlers.unregister(leaves)
    await stays.result(echo, "emit", {"topic": f"{topic}.x", "event": 1})
    await stays.until(lambda: stays.events)
    assert not goes.events
    assert not leaves.events


async def test_events_keep_their_order(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    client = await gateway.connect()
    await client.ask("subscribe", topics=[f"{topic}.#"])
    for n in range(60):
        client.send("command", service=echo, method="emit", params={"topic": f"{topic}.{n}", "event": n})
    await client.until(lambda: len(client.events) == 60)
    assert [seen["event"] for seen in client.events] == list(range(60))


async def test_an_event_of_its_own_topics_reaches_the_controller(gateway: Gateway, echo: str) -> None:
    client = await gateway.connect()
    await client.result(echo, "emit", {"topic": "controller.test", "event": {"n": 1}, "target": ["u"]})
    await client.result(echo, "emit", {"topic": "controllers.test", "event": {"n": 2}})
    await client.result(echo, "emit", {"topic": "controller", "event": [3]})
    await eventually(lambda: len(gateway.controller._events) == 2)
    assert gateway.controller._events == [
        ("controller.test", {"n": 1}, ["u"], {"service": echo}),
        ("controller", [3], None, {"service": echo}),
    ]


# --- for the host application -----------------------------------------------------------------------------------


async def test_the_host_application_calls_services_itself(gateway: Gateway, echo: str) -> None:
    manager = gateway.manager
    assert await manager.request(echo, "add", {"a": 1, "b": 2}) == 3
    assert await manager.request(echo, "secret", {"value": "s"}) == "kept s"
    identity = await authenticate("token-of-u1")
    seen = await manager.request(echo, "whoami", identity=identity, trace_id="t")
    assert seen == {"user_id": "u1", "Authorization": "Bearer token-of-u1", "trace_id": "t", "session_id": None}
    token = uuid4().hex
    await manager.command(echo, "record", {"token": token})
    assert {"token": token} in await manager.request(echo, "recorded")


@pytest.mark.parametrize(
    ("method", "code", "retryable"),
    [("fail_validation", "invalid_params", False), ("fail_value", "service_error", False)],
)
async def test_the_host_applications_calls_fail_with_the_same_codes(
    gateway: Gateway, echo: str, method: str, code: str, retryable: bool
) -> None:
    with pytest.raises(CallError) as caught:
        await gateway.manager.request(echo, method)
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    with pytest.raises(CallError) as caught:
        await gateway.manager.command("nobody-at-all", method)
    assert (caught.value.code, caught.value.retryable) == ("service_unavailable", True)
    with pytest.raises(CallError) as caught:
        await gateway.manager.request(echo, "slow", {"seconds": 3600}, timeout=0.1)
    assert (caught.value.code, caught.value.retryable) == ("timeout", False)


async def test_the_host_application_publishes_to_clients_and_services(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    one, two = await gateway.connect("one"), await gateway.connect("two")
    for client in (one, two):
        await client.ask("subscribe", topics=[f"{topic}.#"])
    identity = await authenticate("token-of-one")
    await gateway.manager.publish_event(f"{topic}.private", {"n": 1}, target=["one"], trace_id="t", identity=identity)
    await gateway.manager.publish_event(f"{topic}.public", [2])
    await two.until(lambda: two.events)
    await one.until(lambda: len(one.events) == 2)
    assert one.events[0] == {"topic": f"{topic}.private", "event": {"n": 1}, "trace_id": "t"}
    assert [seen["event"] for seen in two.events] == [[2]]

    async def received() -> list[Any]:
        return [event for event in await one.result(echo, "events") if event["topic"].startswith(topic)]

    with anyio.fail_after(DEADLINE):
        while len(events := await received()) < 2:
            pass
    private, public = events
    assert (private["event"], private["target"]) == ({"n": 1}, ["one"])
    assert private["context"]["Authorization"] == "Bearer token-of-one"
    assert (public["event"], public["target"]) == ([2], None)
    assert public["context"]["user_id"] is None
