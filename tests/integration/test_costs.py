"""The cost of a request, a connection and a delivery, in calls and system calls, not time; see docs/development.md."""

from __future__ import annotations

import http.client
import json
import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeAlias

import pytest

from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.scene import delete_queues
from tests.kit.costs import REPEATS, WARM_UP, BlockingClient, BlockingStream, Cost, Measured, Repeat, measure
from tests.kit.gateways import RunningGateway, Server, eventually, run_gateway
from tests.servers.processes import ServiceProcess

MeshName: TypeAlias = Literal["embedded", "rabbitmq"]

#: For counts that depend on how the broker happens to bundle replies.
VARIES: Final = math.inf

#: The measured costs. Lower a number when its cost has fallen: with ``-rP``, a test that passes prints the line that
#: belongs here.
COSTS: Final[dict[tuple[str, MeshName], Cost]] = {
    ("request", "embedded"): Cost(own_calls=73, all_calls=257, callbacks=3, tasks=1, writes=1),
    ("request", "rabbitmq"): Cost(own_calls=94, all_calls=269, callbacks=3, tasks=0, writes=2),
    # One write for each answer, and for all requests together two or three to the broker, more if it is slow.
    ("request of many", "rabbitmq"): Cost(own_calls=91, all_calls=VARIES, callbacks=VARIES, tasks=0, writes=1.25),
    # In an overload: the answer of one that comes alone, and of one among sixteen that come together.
    ("refusal", "embedded"): Cost(own_calls=13, all_calls=48, callbacks=1, tasks=0, writes=1),
    ("refusal of many", "embedded"): Cost(own_calls=0.81, all_calls=15.2, callbacks=0.06, tasks=0, writes=0.06),
    ("call over HTTP", "embedded"): Cost(own_calls=159, all_calls=1445, callbacks=6, tasks=2, writes=2),
    # From its handshake to its end. uvicorn itself has compression, so the websockets library reads the handshake.
    ("connection", "embedded"): Cost(own_calls=164, all_calls=1110, callbacks=12, tasks=2, writes=2),
    ("negotiated connection", "embedded"): Cost(own_calls=182, all_calls=1647, callbacks=12, tasks=2, writes=2),
    ("delivery", "embedded"): Cost(own_calls=4, all_calls=12, callbacks=0.2, tasks=0, writes=1),
    ("delivery", "rabbitmq"): Cost(own_calls=4, all_calls=12, callbacks=0.2, tasks=0, writes=1),
    # Of Server-Sent Events, with a session, which keeps the event until the client may have it.
    ("delivery to a stream", "embedded"): Cost(own_calls=16.5, all_calls=32, callbacks=0.2, tasks=0, writes=1),
}
#: A cost above this multiple is a regression. Versions of Python and of libraries differ by less.
MARGIN: Final = 1.2

#: ``nuropb-gateway serve``, and a uvicorn that another program starts.
SAME_COST: Final[tuple[Server, ...]] = ("nuropb-gateway", "uvicorn")

#: Requests that are sent at once.
MANY: Final = 32
#: Refusals that are made together.
TOGETHER: Final = 16
#: Connections that receive an event. The difference is the cost of deliveries, without the cost of the event itself.
FEW_SUBSCRIBERS, SUBSCRIBERS = 5, 25
TOPIC: Final = "costs.counted"


@asynccontextmanager
async def a_gateway(
    mesh: MeshName, url: str, server: Server = "nuropb-gateway", **more: Any
) -> AsyncIterator[RunningGateway]:
    """Run a gateway with default settings, on the default lane even if the tests run on the other one."""
    options: dict[str, Any] = {"expose": ["*.*"], "expose_topics": ["#"], "targeted_topics": [], "mesh_lane": "fast"}
    options |= more
    if mesh == "rabbitmq":
        options |= {"mesh_url": url, "service_name": f"gateway-{secrets.token_hex(4)}"}
    async with run_gateway(server=server, **options) as running:
        await eventually(lambda: not running.gateway.not_ready())
        yield running
    served_by = running.gateway.service_mesh_manager.mesh
    if isinstance(served_by, RabbitMQMesh):
        await delete_queues(url, served_by)


def check(what: str, mesh: MeshName, measured: Cost, details: Measured) -> None:
    """Fail if the measured cost exceeds the written cost by more than the margin."""
    written = COSTS[what, mesh]
    line = ", ".join(f"{name}={value:g}" for name, value in measured.rounded().items())
    print(f'    ("{what}", "{mesh}"): Cost({line}),')
    excesses = measured.above(written, MARGIN)
    assert not excesses, (
        f"A {what} costs the gateway more than it may, on {mesh}:\n\n{excesses}\n\n"
        f"What is called most often meanwhile, for each time:\n\n{details.most_called()}\n\n"
        "If nobody meant to add that, take it away again: it is done for every frame of every client. If it has to be, "
        "say why in the commit, and write down in COSTS of this file what it costs now:\n\n"
        f'    ("{what}", "{mesh}"): Cost({line}),'
    )


def requests(service: str, count: int) -> Callable[[Sequence[BlockingClient]], Repeat]:
    """Make ``count`` requests at once, and wait for their answers."""

    def prepare(clients: Sequence[BlockingClient]) -> Repeat:
        (client,) = clients

        def ask(time: int) -> None:
            ids = [f"{time}-{number}" for number in range(count)]
            client.send(*(request(f"{service}.echo", {"text": "x" * 64}, id_) for id_ in ids))
            assert {client.answer() for _ in ids} == set(ids)

        return ask

    return prepare


def refused(count: int) -> Callable[[Sequence[BlockingClient]], Repeat]:
    """Make ``count`` requests at once that are refused."""

    def prepare(clients: Sequence[BlockingClient]) -> Repeat:
        (client,) = clients

        def ask(time: int) -> None:
            ids = [f"{time}-{number}" for number in range(count)]
            client.send(*(request("demo.echo", {"text": "x" * 64}, id_) for id_ in ids))
            payloads = [client.read()["payload"] for _ in ids]
            assert [each["id"] for each in payloads] == ids
            assert {each["error"]["code"] for each in payloads} == {"too_many_requests"}

        return ask

    return prepare


def calls_over_http(url: str) -> Callable[[Sequence[BlockingClient]], Repeat]:
    """Make a call by POST on a kept connection."""

    def prepare(clients: Sequence[BlockingClient]) -> Repeat:
        connection = http.client.HTTPConnection(url.removeprefix("ws://").partition("/")[0])
        headers = {"Authorization": "Bearer user-0", "Content-Type": "application/json"}

        def call(time: int) -> None:
            connection.request("POST", "/rpc/demo/echo", json.dumps({"text": "x" * 64}), headers)
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())) == (200, {"text": "x" * 64})
            if time == WARM_UP + REPEATS:
                connection.close()

        return call

    return prepare


def handshakes(url: str) -> Callable[[Sequence[BlockingClient]], Repeat]:
    """Open a connection, wait for its hello, and close it."""

    def prepare(clients: Sequence[BlockingClient]) -> Repeat:
        def connect(time: int) -> None:
            BlockingClient(url, f"another-{time}").close()

        return connect

    return prepare


def events(publish: str) -> Callable[[Sequence[BlockingClient]], Repeat]:
    """Have the first connection publish an event that all other connections receive."""

    def prepare(clients: Sequence[BlockingClient]) -> Repeat:
        publisher, *subscribers = clients
        for subscriber in subscribers:
            subscriber.send({"type": "subscribe", "payload": {"topics": [TOPIC], "id": "subscribe"}})
            assert subscriber.answer() == "subscribe"

        def have_published(time: int) -> None:
            publisher.send(request(publish, {"topic": TOPIC, "event": {"text": "x" * 64}}, str(time)))
            assert publisher.answer() == str(time)
            for subscriber in subscribers:
                assert subscriber.read()["payload"]["topic"] == TOPIC

        return have_published

    return prepare


def streamed_events(url: str, count: int) -> Callable[[Sequence[BlockingClient]], Repeat]:
    """Have a connection publish an event that ``count`` streams of Server-Sent Events receive."""

    def prepare(clients: Sequence[BlockingClient]) -> Repeat:
        (publisher,) = clients
        streams = [BlockingStream(url, TOPIC, f"listener-{number}") for number in range(count)]

        def have_published(time: int) -> None:
            publisher.send(request("demo.publish", {"topic": TOPIC, "event": {"text": "x" * 64}}, str(time)))
            assert publisher.answer() == str(time)
            for stream in streams:
                assert stream.read()["topic"] == TOPIC
                if time == WARM_UP + REPEATS:
                    stream.close()

        return have_published

    return prepare


def request(name: str, params: object, id_: str) -> object:
    service, _, method = name.rpartition(".")
    return {"type": "request", "payload": {"service": service, "method": method, "params": params, "id": id_}}


@pytest.mark.parametrize("server", SAME_COST)
@pytest.mark.parametrize("mesh", ["embedded", "rabbitmq"])
async def test_a_request_costs_what_it_may(
    mesh: MeshName, server: Server, amqp_url: str, echo_service: ServiceProcess
) -> None:
    service = "demo" if mesh == "embedded" else echo_service.service
    async with a_gateway(mesh, amqp_url, server) as running:
        measured = await measure(running, 1, requests(service, 1))
    check("request", mesh, measured.cost, measured)


async def test_requests_that_come_together_share_the_writes_to_the_broker(
    amqp_url: str, echo_service: ServiceProcess
) -> None:
    async with a_gateway("rabbitmq", amqp_url) as running:
        measured = await measure(running, 1, requests(echo_service.service, MANY))
    check("request of many", "rabbitmq", measured.cost / MANY, measured / MANY)


@pytest.mark.parametrize("count", [1, TOGETHER])
async def test_a_refusal_in_an_overload_costs_what_it_may(count: int, amqp_url: str) -> None:
    async with a_gateway("embedded", amqp_url) as running:
        overload = running.gateway.handler_manager.shared_limits.overload
        overload.active = overload.late = True
        measured = await measure(running, 1, refused(count))
    check("refusal" if count == 1 else "refusal of many", "embedded", measured.cost / count, measured / count)


async def test_a_call_over_http_costs_what_it_may(amqp_url: str) -> None:
    async with a_gateway("embedded", amqp_url, http="on") as running:
        measured = await measure(running, 0, calls_over_http(running.url))
    check("call over HTTP", "embedded", measured.cost, measured)


@pytest.mark.parametrize("server", SAME_COST)
async def test_a_connection_costs_what_it_may(server: Server, amqp_url: str) -> None:
    async with a_gateway("embedded", amqp_url, server) as running:
        measured = await measure(running, 0, handshakes(running.url))
    what = "connection" if server == "nuropb-gateway" else "negotiated connection"
    check(what, "embedded", measured.cost, measured)


@pytest.mark.parametrize("server", SAME_COST)
@pytest.mark.parametrize("mesh", ["embedded", "rabbitmq"])
async def test_a_delivery_costs_what_it_may(
    mesh: MeshName, server: Server, amqp_url: str, echo_service: ServiceProcess
) -> None:
    publish = "demo.publish" if mesh == "embedded" else f"{echo_service.service}.emit"
    async with a_gateway(mesh, amqp_url, server) as running:
        few = await measure(running, 1 + FEW_SUBSCRIBERS, events(publish))
        all_ = await measure(running, 1 + SUBSCRIBERS, events(publish))
    more = SUBSCRIBERS - FEW_SUBSCRIBERS
    check("delivery", mesh, (all_.cost - few.cost) / more, all_ / SUBSCRIBERS)


@pytest.mark.parametrize("server", SAME_COST)
async def test_a_delivery_to_a_stream_of_server_sent_events_costs_what_it_may(server: Server, amqp_url: str) -> None:
    async with a_gateway("embedded", amqp_url, server, http="on") as running:
        few = await measure(running, 1, streamed_events(running.url, FEW_SUBSCRIBERS))
        all_ = await measure(running, 1, streamed_events(running.url, SUBSCRIBERS))
    more = SUBSCRIBERS - FEW_SUBSCRIBERS
    check("delivery to a stream", "embedded", (all_.cost - few.cost) / more, all_ / SUBSCRIBERS)
