from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nuropb_gateway_asgi.mesh.rabbitmq import _addresses
from nuropb_gateway_asgi.mesh.rabbitmq._addresses import Address, Addresses

THREE = "amqp://me:secret@10.0.0.1:1,10.0.0.2:2,10.0.0.3/vhost"


class Broker:
    """Connects to the addresses in ``well``; those in ``silent`` never answer, and the others refuse."""

    def __init__(self, *well: str, silent: tuple[str, ...] = ()) -> None:
        self.well = set(well)
        self.silent = silent
        self.tried: list[str] = []

    async def connect(self, address: Address) -> str:
        self.tried.append(address.ip)
        if address.ip in self.silent:
            await asyncio.Event().wait()
        if address.ip not in self.well:
            raise ConnectionRefusedError("refused")
        return address.ip


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the addresses of host names."""

    def resolve(**known: list[str]) -> None:
        async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
            if host not in known:
                raise OSError("no such name")
            return [(None, None, None, "", (ip, port)) for ip in known[host]]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

    return resolve


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_addresses, "EACH_CONNECT_TIMEOUT", 0.01)


@pytest.mark.parametrize("well", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
async def test_the_host_that_answers_is_found(well: str) -> None:
    broker = Broker(well)
    assert await Addresses(THREE).connect("publish", broker.connect) == well
    assert len(set(broker.tried)) == len(broker.tried) <= 3


@pytest.mark.usefixtures("at_once")
async def test_an_address_that_is_silent_holds_up_no_other() -> None:
    broker = Broker("10.0.0.3", silent=("10.0.0.1", "10.0.0.2"))
    for _ in range(5):
        assert await Addresses(THREE).connect("publish", broker.connect) == "10.0.0.3"


async def test_every_address_of_a_name_is_tried(names: Callable[..., None]) -> None:
    names(mq=["10.0.0.1", "10.0.0.2", "10.0.0.1"])
    broker = Broker()
    with pytest.raises(ConnectionError, match=r"none of 2 addresses can be used: mq:5672 \(10.0.0.1\): .*refused; mq"):
        await Addresses("amqp://mq/").connect("publish", broker.connect)
    assert sorted(broker.tried) == ["10.0.0.1", "10.0.0.2"]


async def test_a_name_without_an_address_leaves_the_other_hosts(names: Callable[..., None]) -> None:
    names(two=["10.0.0.2"])
    broker = Broker("10.0.0.2")
    assert await Addresses("amqp://one,two/").connect("publish", broker.connect) == "10.0.0.2"
    with pytest.raises(ConnectionError, match=r"one:5672: .*no such name; two:5672 \(10.0.0.2\): .*refused"):
        await Addresses("amqp://one,two/").connect("publish", Broker().connect)


async def test_the_error_of_the_only_address_is_not_changed(names: Callable[..., None]) -> None:
    with pytest.raises(ConnectionRefusedError, match=r"^refused$"):
        await Addresses("amqp://10.0.0.1/").connect("publish", Broker().connect)
    names()
    with pytest.raises(OSError, match=r"^no such name$"):
        await Addresses("amqp://mq/").connect("publish", Broker().connect)


async def test_errors_name_every_address_and_no_password() -> None:
    texts = set()
    for _ in range(10):
        with pytest.raises(ConnectionError) as caught:
            await Addresses(THREE).connect("publish", Broker().connect)
        texts.add(str(caught.value))
    (text,) = texts  # in any order of the attempts, so that an operator reads it once
    assert text == (
        "none of 3 addresses can be used: 10.0.0.1:1: ConnectionRefusedError: refused; 10.0.0.2:2: "
        "ConnectionRefusedError: refused; 10.0.0.3:5672: ConnectionRefusedError: refused"
    )


async def test_both_connections_of_a_process_use_one_node() -> None:
    for _ in range(20):
        addresses, broker = Addresses(THREE), Broker("10.0.0.1", "10.0.0.2", "10.0.0.3")
        first = await addresses.connect("publish", broker.connect)
        assert await addresses.connect("consume", broker.connect) == first


async def test_processes_are_spread_over_the_nodes() -> None:
    broker = Broker("10.0.0.1", "10.0.0.2", "10.0.0.3")
    assert {await Addresses(THREE).connect("publish", broker.connect) for _ in range(200)} == broker.well


async def test_an_address_that_was_lost_is_tried_last() -> None:
    for _ in range(20):
        addresses, broker = Addresses(THREE), Broker("10.0.0.1", "10.0.0.2", "10.0.0.3")
        lost = await addresses.connect("publish", broker.connect)
        assert await addresses.connect("publish", broker.connect) != lost
        broker.well = {lost}
        broker.tried.clear()
        assert await addresses.connect("publish", broker.connect) == lost


async def test_addresses_of_a_name_are_looked_up_anew(names: Callable[..., None]) -> None:
    addresses, broker = Addresses("amqp://mq/"), Broker("10.0.0.1", "10.0.0.2")
    names(mq=["10.0.0.1"])
    assert await addresses.connect("publish", broker.connect) == "10.0.0.1"
    names(mq=["10.0.0.2"])
    assert await addresses.connect("publish", broker.connect) == "10.0.0.2"


async def test_a_cancelled_attempt_is_the_last() -> None:
    broker = Broker(silent=("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    task = asyncio.create_task(Addresses(THREE).connect("publish", broker.connect))
    while not broker.tried:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(broker.tried) == 1
