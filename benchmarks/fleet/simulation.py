"""Fleets without a broker, in a time of their own: the gateway's fleet code, whose messages are counted exactly.

Every message takes LATENCY, so a count depends on no processor. A start of all is one at the same moment: all members
have their queues before the first one greets the others.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from benchmarks.fleet.members import QUESTIONS, USERS, Silent, authenticate, kind_of
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.fleet import Fleet, FleetUsers, LocalUsers, Whereabouts
from nuropb_gateway_asgi.fleet.members import ALIVE_INTERVAL
from nuropb_gateway_asgi.handler_manager import HandlerManager
from nuropb_gateway_asgi.settings import Settings

__all__ = ["Network", "SimulatedMember", "VirtualLoop", "simulate"]

#: Seconds between two signs of life, with the jitter of ``Fleet.run``.
INTERVAL: Final = 0.9 * ALIVE_INTERVAL
#: Intervals until a fleet is at rest, and those that are counted.
SETTLE, COUNTED = 8, 10
#: Seconds that a message takes.
LATENCY: Final = 0.01
#: Members that start in a second, where they do not start at the same moment.
A_SECOND: Final = 50
#: The largest fleet for which that is simulated, too.
LARGEST_SPREAD: Final = 500


class _Jump(selectors.DefaultSelector):
    """A selector that does not wait: it moves the time of its loop."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when all callbacks have run."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class Network:
    """The messages on their way, and the time."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, latency: float = LATENCY) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._latency = latency
        self.counts: Counter[str] = Counter()
        self.members: dict[str, SimulatedMember] = {}

    def time(self) -> float:
        return self._loop.time()

    def post(self, address: str, message: bytes) -> None:
        self.counts["published"] += 1
        self._loop.call_later(self._latency, self._deliver, address, message)

    def hears(self, member: SimulatedMember, message: bytes) -> bool:
        """Return whether a message reaches a member."""
        return True

    def _deliver(self, address: str, message: bytes) -> None:
        kind = kind_of(message)
        receivers = self.members.values() if not address else filter(None, [self.members.get(address)])
        for member in [each for each in receivers if self.hears(each, message)]:
            self.counts["delivered"] += 1
            self.counts[f"delivered {kind}"] += 1
            self.counts["delivered bytes"] += len(message)
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

    def __init__(self, network: Network, number: int, fleet: type[Fleet] = Fleet) -> None:
        settings = Settings(targeted_topics=(), instance_id=f"member-{number}")
        mesh: Any = SimulatedMesh(network, f"nuropb-fleet-{random.getrandbits(128):032x}-fq")
        self.mesh: SimulatedMesh = mesh
        self.number = number
        self.handlers = HandlerManager(settings, authenticate, ExposePolicy([], []))
        local = LocalUsers(self.handlers, settings.instance_id)
        self.fleet = fleet(mesh, settings.instance_id, network.time, local.answer)
        self.whereabouts = Whereabouts(self.fleet, self.handlers, network.time)
        self.users = FleetUsers(local, self.fleet, self.whereabouts, 1 << 20)
        self._network = network
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to talk."""
        self._network.members[self.mesh.address] = self
        self._tasks = [asyncio.create_task(self.fleet.run()), asyncio.create_task(self._sweep())]
        self.fleet.on_connection_change(connected=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.whereabouts.sweep(self._network.time())

    def die(self) -> None:
        """End without a word."""
        self.fleet.on_connection_change(connected=False)
        self.mesh.connected = False
        self._network.members.pop(self.mesh.address, None)
        for task in self._tasks:
            task.cancel()

    async def connect(self, number: int) -> None:
        await self.handlers.register(Silent(f"session-{self.number}-{number}"), f"user-{self.number}-{number}")
        self.whereabouts.look_at(f"user-{self.number}-{number}")


async def _counted(network: Network, do: Callable[[], Awaitable[Any]], wait: float) -> Counter[str]:
    before = network.counts.copy()
    result = await do()
    await asyncio.sleep(wait)
    network.counts["processes"] = before["processes"] + getattr(result, "processes", 0)
    return network.counts - before


def _know(members: list[SimulatedMember]) -> bool:
    return all(len(member.fleet.members) == len(members) - 1 for member in members)


async def _simulate(size: int, a_second: float) -> dict[str, Any]:
    network = Network()
    members = [SimulatedMember(network, number) for number in range(size)]
    known: list[float] = []

    async def start() -> None:
        for member in members:
            member.start()
            if a_second:
                await asyncio.sleep(random.expovariate(a_second))
        began = network.time()
        while not _know(members):
            await asyncio.sleep(0.1)
        known.append(network.time() - began)

    async def arrive() -> None:
        for member in members:
            for number in range(USERS):
                await member.connect(number)

    found: dict[str, Any] = {"members": size, "slow": 1.0, "broker": False}
    found["start"] = dict(await _counted(network, start, SETTLE * INTERVAL))
    assert _know(members)
    before = network.counts.copy()
    await asyncio.sleep(COUNTED * INTERVAL)
    found["rest"] = {
        name: (network.counts[name] - before[name]) / COUNTED / INTERVAL for name in ("delivered", "delivered bytes")
    }
    found["start"]["delivered"] -= found["start"].pop("delivered sign", 0)
    found["start"]["seconds"] = known[0]
    if a_second:
        return found
    arrived = await _counted(network, arrive, 0.1)
    found["change of a user"] = {"delivered": arrived["delivered news"] / size / USERS}
    found["questions"] = {}
    for name, (what, arguments) in QUESTIONS.items():
        if hasattr(FleetUsers, what):
            asked = await _counted(network, partial(getattr(members[0].users, what), **arguments), 0.1)
            counts = {"delivered": asked["delivered ask"] + asked["delivered answer"], "processes": asked["processes"]}
            found["questions"][name] = counts
    return found


def simulate(size: int) -> dict[str, Any]:
    """Count the messages of a fleet."""

    def run(a_second: float) -> dict[str, Any]:
        random.seed(size)
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(_simulate(size, a_second))

    found = run(0.0)
    if size <= LARGEST_SPREAD:
        found["start, some a second"] = run(A_SECOND)["start"]
    return found
