"""The check of a broker for ``nuropb-gateway check``: every host of the URL, and the service's queue."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import urlsplit

import pytest

from nuropb_gateway_asgi.mesh.rabbitmq import probe
from tests.kit.amqp import DEAD_LETTERS, Peer


async def test_every_host_is_checked(amqp_url: str) -> None:
    host = urlsplit(amqp_url).netloc.rpartition("@")[2]
    url = amqp_url.replace(f"@{host}", f"@{host},{host}")
    assert (await probe(url, "gateway-z")).endswith(f" at {host}")
    with pytest.raises(ConnectionError, match=f"^127.0.0.1:1: .*[Cc]onne.*; all is well at {host}$") as caught:
        await probe(amqp_url.replace(f"@{host}", f"@{host},127.0.0.1:1"), "gateway-z")
    assert "guest" not in str(caught.value)


@pytest.mark.parametrize("same", [True, False])
async def test_a_service_queue_with_other_arguments_is_a_fault(amqp_url: str, peer: Peer, same: bool) -> None:
    name = f"gateway-{secrets.token_hex(3)}"
    queue = f"nuropb-{name}-sq"
    arguments: dict[str, Any] = {"x-dead-letter-exchange": DEAD_LETTERS} if same else {}
    await probe(amqp_url, name)
    await peer.channel.queue_declare(queue, durable=True, arguments=arguments)
    try:
        if same:
            assert (await probe(amqp_url, name)).startswith("RabbitMQ ")
        else:
            with pytest.raises(ConnectionError, match=queue):
                await probe(amqp_url, name)
    finally:
        await peer.channel.queue_delete(queue)
