"""A mesh with a receiver that keeps everything, and a peer at the other end of the wire, played by the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.conftest import Broker
from tests.kit.amqp import (
    Gateway,
    Peer,
    peer_at,
    queues_of,
    running,
)
from tests.kit.gate_proxy import Proxy
from tests.servers.rabbitmq import RabbitMQNode


@pytest.fixture
async def peer(amqp_url: str) -> AsyncIterator[Peer]:
    async with peer_at(amqp_url) as peer:
        yield peer


@pytest.fixture
async def remover(amqp_url: str) -> AsyncIterator[list[str]]:
    """A list of queues, which are deleted from the broker at the end."""
    queues: list[str] = []
    yield queues
    async with peer_at(amqp_url) as peer:
        for queue in queues:
            await peer.channel.queue_delete(queue)


@pytest.fixture
def lane() -> str | None:
    """The lane of the mesh; None for the default. Tests parametrize it."""
    return None


@pytest.fixture
async def gateway(amqp_url: str, remover: list[str], lane: str | None) -> AsyncIterator[Gateway]:
    more: dict[str, Any] = {} if lane is None else {"lane": lane}
    async with running(amqp_url, **more) as gateway:
        remover += queues_of(gateway)
        yield gateway


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(amqp_url) as proxy:
        yield proxy


@pytest.fixture
async def proxied(proxy: Proxy, remover: list[str]) -> AsyncIterator[Gateway]:
    """A mesh that is connected through ``proxy``."""
    async with running(proxy.url()) as gateway:
        remover += queues_of(gateway)
        yield gateway


@pytest.fixture
def node(rabbitmq: Broker) -> RabbitMQNode:
    if rabbitmq.node is None:
        pytest.skip("the broker is not ours: rabbitmqctl cannot be used")
    return rabbitmq.node
