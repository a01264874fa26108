"""A process with many members of a fleet: the gateway's own managers and mesh, with users but without clients.

The process reads orders from standard input, one line of JSON each, and answers each with a line of JSON; see
:class:`Orders`. It ends when standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from aiormq.channel import Channel
from msgspec import Raw

from benchmarks.process import end_with_parent, run
from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.fleet import members as fleet_members
from nuropb_gateway_asgi.fleet import talk
from nuropb_gateway_asgi.fleet.messages import News, encode
from nuropb_gateway_asgi.fleet.roster import SMALL_FLEET
from nuropb_gateway_asgi.handler_manager import HandlerManager
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _link, _mesh, _parts, _self_check, _streams
from nuropb_gateway_asgi.service_mesh_manager import ServiceMeshManager
from nuropb_gateway_asgi.settings import Settings

#: What members send and get. Published and delivered messages are those between members; operations are declarations,
#: bindings and channels, which are round trips to the broker.
COUNTED: Final[Counter[str]] = Counter()
#: Members that connect at a time: a listener has a backlog, and each of them waits for the others' processors.
STARTS_AT_ONCE: Final = 10
#: Times that a busy machine may take longer than the gateway allows a broker for connecting and declaring.
PATIENT: Final = 10
#: Seconds until a burst has arrived.
BURST_TIMEOUT: Final = 60.0
#: Users of each member.
USERS: Final = 20
QUESTIONS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "count": ("count", {}),
    "is_online, 1 user": ("is_online", {"user_ids": ["user-1-0"]}),
    "send_to_users, 1 user": ("send_to_users", {"user_ids": ["user-1-0"], "topic": "t", "event": 1}),
    "send_to_users, 10 users": (
        "send_to_users",
        {"user_ids": [f"user-{each % 2}-{each}" for each in range(10)], "topic": "t", "event": 1},
    ),
    "send_to_all": ("send_to_all", {"topic": "t", "event": 1}),
    "revoke a token": ("revoke", {"token_id": "t"}),
}
QUOTE: Final = b'"'
#: Members of messages that tell more than that a process is alive.
CHANGES: Final = (b'"new":', b'"sync":', b'"joined":', b'"left":', b'"members":', b'"registrars":')
#: Seconds for anything that has to happen.
PATIENCE: Final = 2900.0


def kind_of(message: bytes) -> str:
    """Return the type of a message; "sign" for signs of life without any change."""
    kind = message[9:].partition(QUOTE)[0].decode()  # its "type" is its first member
    if kind not in ("alive", "roster") or any(change in message for change in CHANGES):
        return kind
    return "sign"


def count_messages(manager: ServiceMeshManager) -> None:
    """Count the messages of a member to others, and those that it gets, also by their types."""
    mesh: Any = manager.mesh
    receiver: Any = manager.receiver
    broadcast, tell, take, take_record = mesh.broadcast, mesh.tell, receiver.on_peer_message, receiver.on_record

    def count(what: str, message: bytes) -> None:
        COUNTED[what] += 1
        COUNTED[f"{what} bytes"] += len(message)
        COUNTED[f"{what} {kind_of(message)}"] += 1

    def counted_broadcast(message: bytes) -> None:
        count("published", message)
        broadcast(message)

    def counted_tell(address: str, message: bytes, **more: Any) -> None:
        count("published", message)
        tell(address, message, **more)

    def counted_take(message: bytes) -> None:
        count("delivered", message)
        take(message)

    def counted_record(record: bytes) -> None:
        COUNTED["records"] += 1
        take_record(record)

    mesh.broadcast, mesh.tell = counted_broadcast, counted_tell
    receiver.on_peer_message, receiver.on_record = counted_take, counted_record


def count_operations() -> None:
    """Count the operations on the broker of all channels from now on."""

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            COUNTED[name] += 1
            return method(*args, **kwargs)

        return call

    names = {"queue_bind": "binds", "queue_unbind": "unbinds", "queue_declare": "declares"}
    for method, name in {**names, "exchange_declare": "declares", "open": "channels"}.items():
        setattr(Channel, method, counted(name, getattr(Channel, method)))


class Silent:
    """A connection that drops every frame."""

    address = ""
    outbox_size = 0
    identity: Identity | None = None
    connected_at = 0.0

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id

    def on_registered(self, identity: Identity) -> None:
        """Take no note."""

    def send_frame(self, text: str) -> None:
        COUNTED["frames"] += 1

    def send_event(self, text: str, topic: str, delivery: object) -> None:
        COUNTED["frames"] += 1

    def close(self, code: int, reason: str = "") -> None:
        """Stay: only the question is measured."""

    def start_soon(self, function: Any, *args: Any) -> None:
        """Start nothing."""

    def check(self, now: float) -> None:
        """Find everything in order."""


async def authenticate(token: str) -> Identity:
    return Identity(user_id=token, username=token, token=token)


class Member:
    """One process of a gateway, as far as the other processes can tell."""

    def __init__(self, number: int, name: str, mesh: Any, presence: str) -> None:
        options: dict[str, Any] = {"targeted_topics": (), "presence_events": presence}
        settings = Settings(service_name=name, instance_id=f"member-{number}", **options)
        policy = ExposePolicy(["*.*"], ["#"])
        self.number = number
        self.handlers = HandlerManager(settings, authenticate, policy)
        self.mesh = mesh
        self.manager = ServiceMeshManager(settings, self.handlers, mesh, policy)
        count_messages(self.manager)
        self.users: list[Any] = []
        self.stop = asyncio.Event()
        #: The task that the manager lives in: its context has to end where it began.
        self.life = asyncio.create_task(self._live())

    async def _live(self) -> None:
        async with self.manager:
            await self.stop.wait()


async def until(condition: Callable[[], object], interval: float = 0.05) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(interval)


class Orders:
    """The orders; each method is one of them."""

    def __init__(self, url: str, name: str, presence: str) -> None:
        self._url = url
        self._name = name
        self._presence = presence
        self.members: list[Member] = []

    async def start(self, first: int, count: int) -> dict[str, Any]:
        """Start members, all at once but for the limit of the listener's backlog."""
        gate = asyncio.Semaphore(STARTS_AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                mesh = RabbitMQMesh(self._url, service_name=self._name, instance_id=f"member-{number}")
                member = Member(number, self._name, mesh, self._presence)
                self.members.append(member)
                await until(lambda: member.mesh.connected)

        async with asyncio.TaskGroup() as tasks:
            for number in range(first, first + count):
                tasks.create_task(one(number))
        gc.freeze()
        return {"started": len(self.members)}

    async def know(self, total: int) -> dict[str, Any]:
        """Wait until every member knows ``total`` members, itself included."""
        await until(lambda: all(len(each.manager.fleet.members) == total - 1 for each in self.members), 0.2)
        return {}

    async def settle(self) -> dict[str, Any]:
        """Wait until the registrars of a large fleet have heard every process."""
        if len(self.members[0].manager.fleet.members) >= SMALL_FLEET:
            await until(lambda: all(each.manager.whereabouts.is_settled() for each in self.members), 0.5)
        return {}

    async def counts(self) -> dict[str, Any]:
        """Return everything counted so far, with the CPU time and the memory of this process."""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {**COUNTED, "cpu": time.process_time(), "resident": resident, "time": time.monotonic()}

    async def sleep(self, seconds: float) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {}

    async def users(self, each: int) -> dict[str, Any]:
        """Connect ``each`` new users to every member."""
        for member in self.members:
            for _ in range(each):
                number = len(member.users)
                handler = Silent(f"session-{member.number}-{number}")
                await member.handlers.register(handler, f"user-{member.number}-{number}")
                member.users.append(handler)
            await asyncio.sleep(0)
        return {"users": sum(len(member.users) for member in self.members)}

    async def leave(self, each: int) -> dict[str, Any]:
        """Disconnect ``each`` users from every member."""
        for member in self.members:
            for _ in range(min(each, len(member.users))):
                member.handlers.unregister(member.users.pop())
            await asyncio.sleep(0)
        return {}

    async def ask(self, what: str, times: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """Have the first member of this process ask, one question after the other."""
        manager = self.members[0].manager
        took, answer = [], None
        for _ in range(times):
            began = time.perf_counter()
            answer = await getattr(manager, what)(**arguments)
            took.append(time.perf_counter() - began)
        processes, missing = getattr(answer, "processes", 0), len(getattr(answer, "missing", ()))
        return {"seconds": sorted(took)[len(took) // 2], "processes": processes, "missing": missing}

    async def burst(self, times: int, everybody: bool) -> dict[str, Any]:
        """Have the first member send messages that others read and drop: to all, or each to another one."""
        first, message = self.members[0], News(self.members[0].mesh.address, "nothing", Raw(b'"' + b"x" * 40 + b'"'))
        before = COUNTED["delivered news"]
        for number in range(times):
            if everybody:
                first.mesh.broadcast(encode(message))
            else:
                first.mesh.tell(self.members[number % len(self.members)].mesh.address, encode(message))
            if number % 20 == 0:
                await asyncio.sleep(0.005)
        expected = times * (len(self.members) if everybody else 1)
        with contextlib.suppress(TimeoutError):  # on a busy machine some expire
            async with asyncio.timeout(BURST_TIMEOUT):
                while COUNTED["delivered news"] - before < expected:
                    await asyncio.sleep(0.05)
        return {}

    async def die(self) -> dict[str, Any]:
        """End the last member of this process without a word to the others."""
        member = self.members.pop()
        member.manager.fleet.leave = lambda: None  # type: ignore[method-assign]
        member.stop.set()
        await member.life
        return {}


@contextlib.contextmanager
def slowed(times: float) -> Iterator[None]:
    """Slow the intervals of the fleet and of the mesh down, and their patience with each other."""
    for module, names in (
        (fleet_members, ("ALIVE_INTERVAL", "SILENCE")),
        (_self_check, ("PING_INTERVAL", "PING_TIMEOUT")),
        (_mesh, ("REASSERT_INTERVAL", "MESSAGE_EXPIRES")),
        (_streams, ("REASSERT_INTERVAL",)),
        (talk, ("ANSWER_TIMEOUT",)),
    ):
        for name in names:
            setattr(module, name, getattr(module, name) * times)
    for module, name in (
        (_link, "SET_UP_TIMEOUT"),
        (_mesh, "OWN_QUEUES_TIMEOUT"),
        (_mesh, "TOPOLOGY_TIMEOUT"),
        (_parts, "ATTEMPT_TIMEOUT"),
    ):
        setattr(module, name, getattr(module, name) * PATIENT)
    yield


async def serve(options: argparse.Namespace) -> None:
    orders = Orders(options.url, options.name, options.presence)
    count_operations()
    loop = asyncio.get_running_loop()
    with slowed(options.slow):
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            try:
                answer = await getattr(orders, order.pop("do"))(**order)
            except Exception:
                traceback.print_exc()
                os._exit(1)  # hundreds of members would take minutes to end
            print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Members of a fleet, without clients.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--presence", default="off")
    parser.add_argument("--slow", type=float, default=1.0, help="multiply the intervals by this number")
    options = parser.parse_args()
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "ERROR"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    end_with_parent()
    run(serve(options))


if __name__ == "__main__":
    main()
