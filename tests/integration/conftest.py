"""Real brokers and real services, started for the first test that needs them, and ended with the session.

All workers of a run share a broker. Each has a vhost of its own there, so that no test meets the events of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aio_pika
import pytest

from nuropb_gateway_asgi.fleet import talk
from nuropb_gateway_asgi.mesh.rabbitmq import _self_check
from nuropb_gateway_asgi.mesh.rabbitmq._peers import Peers
from tests.kit.waiting import DEADLINE
from tests.servers.processes import ServiceProcess, unavailable
from tests.servers.provision import external_url, installed
from tests.servers.rabbitmq import RabbitMQNode, answers_amqp


@dataclass(frozen=True)
class Broker:
    """The broker of the session. ``node`` is None for a broker that is not ours and only speaks AMQP with us."""

    url: str
    node: RabbitMQNode | None
    #: That of ``url``; empty for a broker that is not ours.
    vhost: str = ""


def boot(*settings: str) -> RabbitMQNode:
    """Make a node, with further lines of rabbitmq.conf."""
    if not installed():
        unavailable("rabbitmq-server is not installed")
    return RabbitMQNode(settings=settings)


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock on a file, which ends with this process at the latest. ``how`` is LOCK_SH or LOCK_EX of fcntl."""
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[RabbitMQNode]:
    """The node of all workers of a run, whose files are in ``folder``.

    The first worker that needs it boots it. At its own end, this worker waits for the others that use it.
    """
    about, users = folder / "broker.json", folder / "broker.users"
    with contextlib.ExitStack() as stack:
        with locked(folder / "broker.lock", fcntl.LOCK_EX):
            found = RabbitMQNode.at(json.loads(about.read_text())) if about.exists() else None
            if found is not None and answers_amqp(found.url(), DEADLINE):
                stack.enter_context(locked(users, fcntl.LOCK_SH))
            else:
                found = None
                own = stack.enter_context(boot())
                about.write_text(json.dumps(own.description))
        if found is not None:
            yield found
            return
        yield own
        with locked(folder / "broker.lock", fcntl.LOCK_EX):
            about.unlink(missing_ok=True)
        stack.enter_context(locked(users, fcntl.LOCK_EX))


#: What tells that a test needs a broker: a fixture of it, or the folder for those that choose theirs by a parameter.
BROKERS: Final = frozenset({"rabbitmq", "own_node", "cluster", "any_scene"})
BROKER_FOLDERS: Final = frozenset({"rabbitmq", "mesh_contract"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a broker, so that ``-m broker`` runs them alone with another version."""
    for item in items:
        if item.path.parent.name in BROKER_FOLDERS or BROKERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("broker")


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker for tests that leave it unchanged: the one at NUROPB_TEST_AMQP_URL, or a throwaway one."""
    if (url := external_url()) is not None:
        yield Broker(url, None)
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    vhost = f"nuropb-{worker}" if worker else "nuropb"
    # The workers' folders have one parent.
    with shared(tmp_path_factory.getbasetemp().parent) if worker else boot() as node:
        yield Broker(node.add_vhost(vhost), node, vhost)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_on_a_broker_of_others() -> Iterator[None]:
    """Remove the exchanges, queues and streams of peer processes, which no test removes."""
    if (url := external_url()) is None:
        yield
        return
    made: list[Peers] = []
    original = Peers.__init__

    def remember(self: Peers, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        made.append(self)

    Peers.__init__ = remember  # type: ignore[method-assign]
    yield
    Peers.__init__ = original  # type: ignore[method-assign]
    asyncio.run(remove(url, made))


async def remove(url: str, made: list[Peers]) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for peers in made:
            if peers.queue:  # a check of a broker has none
                await channel.queue_delete(peers.queue)
            await channel.queue_delete(peers.stream)
            await channel.exchange_delete(peers.exchange)


@pytest.fixture(scope="session")
def amqp_url(rabbitmq: Broker) -> str:
    """The URL of the session's broker."""
    return rabbitmq.url


@pytest.fixture(scope="session")
def own_node() -> Iterator[RabbitMQNode]:
    """A node that a test may stop, kill, freeze and block; it has to run again at the end of the test."""
    with boot() as node:
        yield node


@pytest.fixture(scope="module")
def echo_service(amqp_url: str) -> Iterator[ServiceProcess]:
    """An ``EchoService`` for every test that leaves it alive, under a name of its own."""
    with ServiceProcess(amqp_url, f"echo-{secrets.token_hex(3)}") as service:
        yield service


@pytest.fixture
def patient_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes wait long for each other: on a busy machine an answer can be late, and nobody is gone here."""
    monkeypatch.setattr(talk, "ANSWER_TIMEOUT", DEADLINE)


@pytest.fixture
def patient_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways wait long for messages to themselves: a busy machine delays them, and no connection is dead here."""
    monkeypatch.setattr(_self_check, "PING_TIMEOUT", DEADLINE)
