"""One set of services and one gateway for each mesh: embedded, and RabbitMQ on both lanes.

The tests of this folder expect the same of every mesh. The service classes are the same, too: in this process for the
embedded mesh, and hosted by nuropb itself behind RabbitMQ.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.kit.managers import (
    Client,
    EmbeddedTransport,
    Gateway,
    Services,
    delete_queues,
    running,
    settings_for_tests,
)
from tests.servers.processes import ServiceProcess


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
