"""Fleets without a broker, in a time of their own: the gateway's fleet code, whose messages are counted exactly.

Every message is delivered at once and in order, so a count depends on no processor. That of a start is the highest one:
all members have their queues before the first one greets the others.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from benchmarks.fleet.members import QUESTIONS, USERS, Silent, authenticate
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.fleet import Fleet, FleetUsers, LocalUsers, Whereabouts, talk
from nuropb_gateway_asgi.fleet.members import ALIVE_INTERVAL
from nuropb_gateway_asgi.handler_manager import HandlerManager
from nuropb_gateway_asgi.settings import Settings

__all__ = ["simulate"]

#: Seconds between two signs of life, with the jitter of ``Fleet.run``.
INTERVAL: Final = 0.9 * ALIVE_INTERVAL
#: Intervals until a fleet is at rest, and those that are counted.
SETTLE, COUNTED = 8, 10


class Network:
    """The messages on their way, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self.members: dict[str, SimulatedMember] = {}
        self._messages: deque[tuple[str, bytes]] = deque()

    def post(self, address: str, message: bytes) -> None:
        self.counts["published"] += 1
        self._messages.append((address, message))

    def pump(self) -> None:
        """Deliver all messages, and those that are sent meanwhile."""
        while self._messages:
            address, message = self._messages.popleft()
            receivers = self.members.values() if not address else [self.members[address]]
            self.counts["delivered"] += len(receivers)
            self.counts["delivered bytes"] += len(message) * len(receivers)
            for member in receivers:
                member.fleet.on_message(message)


class SimulatedMesh:
    """The part of a mesh that a fleet needs."""

    connected = True

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self.address = address

    def broadcast(self, message: bytes) -> None:
        self._network.post("", message)

    def tell(self, address: str, message: bytes, *, expires: float | None = None) -> None:
        self._network.post(address, message)


class SimulatedMember:
    """The parts of a process that talk to other processes."""

    def __init__(self, network: Network, number: int) -> None:
        settings = Settings(targeted_topics=(), instance_id=f"member-{number}")
        mesh: Any = SimulatedMesh(network, f"nuropb-fleet-{random.getrandbits(128):032x}-fq")
        self.number = number
        self.handlers = HandlerManager(settings, authenticate, ExposePolicy([], []))
        local = LocalUsers(self.handlers, settings.instance_id)
        self.fleet = Fleet(mesh, settings.instance_id, lambda: network.now, local.answer)
        self.whereabouts = Whereabouts(self.fleet, self.handlers, lambda: network.now)
        self.users = FleetUsers(local, self.fleet, self.whereabouts, 1 << 20)
        network.members[mesh.address] = self

    async def connect(self, number: int) -> None:
        await self.handlers.register(Silent(f"session-{self.number}-{number}"), f"user-{self.number}-{number}")
        self.whereabouts.look_at(f"user-{self.number}-{number}")


async def _rest(network: Network, intervals: int) -> None:
    """Let all members give their signs of life, one after the other."""
    for _ in range(intervals):
        members = list(network.members.values())
        random.shuffle(members)
        for member in members:
            network.now += INTERVAL / len(members)
            member.fleet.sweep()
            member.fleet._give_sign()
            network.pump()
        for member in members:
            member.whereabouts.sweep(network.now)
        network.pump()
        await asyncio.sleep(0)


async def _counted(network: Network, do: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    before = network.counts.copy()
    task = asyncio.ensure_future(do())
    while not task.done():
        await asyncio.sleep(0)
        network.pump()
    await asyncio.sleep(0)
    network.pump()
    counts: dict[str, Any] = {name: network.counts[name] - before[name] for name in network.counts}
    return {**counts, "processes": getattr(task.result(), "processes", 0)}


async def _simulate(size: int) -> dict[str, Any]:
    network = Network()
    members = [SimulatedMember(network, number) for number in range(size)]

    async def start() -> None:
        for member in members:
            member.fleet.on_connection_change(connected=True)
        network.pump()
        await _rest(network, SETTLE)

    async def arrive() -> None:
        for member in members:
            for number in range(USERS):
                await member.connect(number)

    found: dict[str, Any] = {"members": size, "slow": 1.0, "broker": False}
    found["start"] = await _counted(network, start)
    assert all(len(member.fleet.members) == size - 1 for member in members)
    arrived = await _counted(network, arrive)
    found["change of a user"] = {name: arrived[name] / size / USERS for name in ("published", "delivered")}
    before = network.counts.copy()
    await _rest(network, COUNTED)
    found["rest"] = {
        name: (network.counts[name] - before[name]) / COUNTED / INTERVAL for name in ("delivered", "delivered bytes")
    }
    found["start"]["delivered"] -= found["rest"]["delivered"] * SETTLE * INTERVAL
    found["questions"] = {}
    for name, (what, arguments) in QUESTIONS.items():
        if hasattr(FleetUsers, what):
            ask = getattr(members[0].users, what)
            found["questions"][name] = await _counted(network, partial(ask, **arguments))
    return found


def simulate(size: int) -> dict[str, Any]:
    """Count the messages of a fleet."""
    random.seed(size)
    timeout, talk.ANSWER_TIMEOUT = talk.ANSWER_TIMEOUT, 600.0  # type: ignore[misc]
    try:
        return asyncio.run(_simulate(size))
    finally:
        talk.ANSWER_TIMEOUT = timeout  # type: ignore[misc]
