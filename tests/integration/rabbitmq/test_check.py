"""The check of a broker for ``nuropb-gateway check``: every host of the URL, and the service's queue."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from nuropb_gateway_asgi.mesh.rabbitmq import probe
from nuropb_gateway_asgi.wire.history import parse_kept_topics
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


async def test_a_history_that_was_made_with_other_arguments_is_told(amqp_url: str, peer: Peer) -> None:
    name = f"gateway-{secrets.token_hex(3)}"
    stream = f"nuropb-{name}-history-orders.#"
    kept = parse_kept_topics(["orders.#:1h"])
    assert "but" not in await probe(amqp_url, name, kept_topics=kept)
    with pytest.raises(ChannelNotFoundEntity):  # the check leaves nothing behind
        await (await peer.connection.channel()).queue_declare(stream, passive=True)
    others: list[tuple[dict[str, Any], str]] = [
        (
            {"x-queue-type": "stream", "x-max-age": "5m"},
            f"the stream {stream} was made with other arguments than HISTORY",
        ),
        ({}, f"events of orders.# have no history, as the stream {stream} cannot be used"),
    ]
    for arguments, said in others:
        await peer.channel.queue_declare(stream, durable=True, arguments=arguments)
        try:
            assert f"; but {said}" in await probe(amqp_url, name, kept_topics=kept)
        finally:
            await peer.channel.queue_delete(stream)
