"""A broker with a small max_message_size: it closes the channel of a larger message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from nuropb_gateway_asgi import CallError
from nuropb_gateway_asgi.exceptions import MessageTooLarge
from nuropb_gateway_asgi.mesh import hosting
from tests.integration.conftest import boot
from tests.kit.amqp import peer_at, reconnected, running
from tests.kit.gateways import eventually

LIMIT = 20_000


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """The URL of a broker that takes messages of at most LIMIT bytes."""
    with boot(f"max_message_size = {LIMIT}") as node:
        yield node.url()


def text(size: int) -> bytes:
    return json.dumps({"text": "x" * size}).encode()


@pytest.mark.parametrize("lane", ["fast", "plain"])
@pytest.mark.parametrize("kind", ["request", "command"])
async def test_a_call_above_the_brokers_limit_is_refused_and_the_others_are_answered(
    small: str, lane: str, kind: Literal["request", "command"]
) -> None:
    async with peer_at(small) as peer, running(small, lane=lane) as gateway:
        service = await peer.service()
        before = gateway.send(service)
        request = await peer.take(service)
        large = gateway.send(service, kind=kind, params=text(LIMIT))
        await gateway.told("too large", large)
        await peer.reply(request, "before")
        await gateway.told("reply", before)
        await reconnected(gateway)
        # From now on such a call is refused at once, and costs no connection.
        with pytest.raises(MessageTooLarge, match=f"the limit is {LIMIT} bytes"):
            gateway.send(service, kind=kind, params=text(LIMIT))
        after = gateway.send(service, params=text(LIMIT // 2))
        await peer.reply(await peer.take(service), "after")
        await gateway.told("reply", after)
        assert gateway.mesh.statistics.reconnects == 1


@pytest.mark.parametrize("lane", ["fast", "plain"])
async def test_calls_that_the_broker_dropped_behind_a_large_one_are_answered_at_once(small: str, lane: str) -> None:
    async with peer_at(small) as peer, running(small, lane=lane) as gateway:
        service = await peer.service()
        first = gateway.send(service)
        large = gateway.send(service, params=text(LIMIT))
        behind = [gateway.send(service) for _ in range(3)]
        await gateway.told("too large", large)
        for message in behind:
            await gateway.told("failed", message)
        await peer.reply(await peer.take(service), "first")
        await gateway.told("reply", first)
        await reconnected(gateway)
        assert await peer.waiting(service) == 0


async def test_a_limit_is_forgotten_with_a_connection_that_was_lost_by_another_cause(small: str) -> None:
    async with peer_at(small) as peer, running(small) as gateway:
        service = await peer.service()
        await gateway.told("too large", gateway.send(service, params=text(LIMIT)))
        await reconnected(gateway)
        gateway.mesh.publishing.abort("by the test")
        await reconnected(gateway, 2)
        await gateway.told("too large", gateway.send(service, params=text(LIMIT)))


@pytest.mark.parametrize("lane", ["fast", "plain"])
async def test_a_record_above_the_brokers_limit_is_refused(small: str, lane: str) -> None:
    async with running(small, lane=lane) as gateway:
        await eventually(lambda: gateway.receiver.records_read)
        for _ in range(2):  # by the broker, and by what was learned
            with pytest.raises(MessageTooLarge, match=f"the limit is {LIMIT} bytes"):
                await gateway.mesh.record(text(LIMIT))
            await reconnected(gateway)
        assert gateway.mesh.statistics.reconnects == 1
        await gateway.mesh.record(b"small")
        await eventually(lambda: gateway.receiver.records[-1:] == [b"small"])


class Texts:
    """A service with long results."""

    def __init__(self) -> None:
        self.calls = 0

    def repeat(self, size: int) -> str:
        self.calls += 1
        return "x" * size

    def length(self, text: str) -> int:
        return len(text)


async def test_a_result_above_the_brokers_limit_is_an_error_for_its_caller(small: str) -> None:
    texts = Texts()
    async with hosting(texts, small, service_name="texts") as manager:
        await eventually(lambda: manager.connected)
        for _ in range(2):  # by the broker, and by what was learned
            with pytest.raises(CallError, match="larger than the broker takes") as caught:
                await manager.request("texts", "repeat", {"size": LIMIT})
            assert caught.value.code == "service_error"
            await eventually(lambda: manager.connected)
        assert texts.calls == 2
        assert await manager.request("texts", "repeat", {"size": 3}) == "xxx"


async def test_a_large_call_and_a_large_event_of_an_application_are_payload_too_large(small: str) -> None:
    large: dict[str, Any] = {"text": "x" * LIMIT}
    async with hosting(Texts(), small, service_name="texts") as manager:
        await eventually(lambda: manager.connected)
        assert await manager.request("texts", "length", {"text": "xxx"}) == 3
        for _ in range(2):
            with pytest.raises(CallError) as caught:
                await manager.request("texts", "length", large)
            assert caught.value.code == "payload_too_large"
            await eventually(lambda: manager.connected)
        with pytest.raises(CallError) as caught:
            await manager.publish_event("orders.made", large)
        assert caught.value.code == "payload_too_large"
