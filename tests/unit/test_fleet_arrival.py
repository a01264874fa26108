"""Processes that start, in a time of their own: whom they greet, who leads them, and who hears of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from benchmarks.fleet.simulation import LATENCY, Network, SimulatedMember, VirtualLoop
from nuropb_gateway_asgi.fleet import Fleet
from nuropb_gateway_asgi.fleet.arrival import CROWDED, FEW, LISTEN, POSTPONED, listening_time
from nuropb_gateway_asgi.fleet.members import ALIVE_INTERVAL, ANSWER_TIMEOUT, SILENCE
from nuropb_gateway_asgi.fleet.messages import Alive
from nuropb_gateway_asgi.fleet.messages import Roster as RosterMessage

#: Seconds after which a fleet of processes that start at the same moment has a leader.
LED = LISTEN + ANSWER_TIMEOUT + 10 * LATENCY


class World(Network):
    """A network that notes the broadcasts, and loses messages."""

    def __init__(self, latency: float = LATENCY) -> None:
        super().__init__(latency=latency)
        self.greetings = 0
        self.claims = 0
        #: Addresses of processes that hear nothing of another one.
        self.deaf: set[str] = set()
        self.unheard = b"nobody"
        self.started: list[SimulatedMember] = []

    def post(self, address: str, message: bytes) -> None:
        if not address:
            self.greetings += b'"alive"' in message and b'"new":true' in message
            self.claims += b'"members":' in message
        super().post(address, message)

    def hears(self, member: SimulatedMember, message: bytes) -> bool:
        return member.mesh.address not in self.deaf or self.unheard not in message

    def start(self, count: int, fleet: type[Fleet] = Fleet) -> list[SimulatedMember]:
        """Start members at the same moment."""
        members = [SimulatedMember(self, len(self.started) + each, fleet) for each in range(count)]
        self.started += members
        for member in members:
            member.start()
        return members

    @property
    def alive(self) -> list[SimulatedMember]:
        return list(self.members.values())

    @property
    def leaders(self) -> list[SimulatedMember]:
        return [each for each in self.alive if each.fleet.roster.leads]

    def know_each_other(self) -> bool:
        addresses = set(self.members)
        return all({each.mesh.address, *each.fleet.members} == addresses for each in self.alive)


class FormerFleet(Fleet):
    """The fleet of a release whose processes greet all others at once, and expect that of every new process."""

    def _alive(self, *, new: bool = False, sync: bool = False) -> Alive:
        return Alive(self.address, self.instance_id, new, 1, sync)

    def _send(self, message: Any, address: str | None = None) -> None:
        if isinstance(message, RosterMessage):
            message.tells_all = False
        super()._send(message, address)

    def _arrive(self, moved: bool) -> None:
        self._arrival.is_wanted = True
        super()._arrive(moved)

    def _claim_first(self) -> None:
        """Wait for the intervals of signs of life."""


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in virtual time, with the same random numbers each time."""

    def run() -> None:
        random.seed(test.__name__)
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test())

    run.__name__ = test.__name__
    return run


@virtual
async def test_a_few_of_many_that_start_at_once_greet_all_others() -> None:
    world = World()
    world.start(60)
    await asyncio.sleep(LED)
    assert FEW <= world.greetings <= 2 * FEW
    assert world.claims == 1
    assert len(world.leaders) == 1
    assert world.know_each_other()


@virtual
async def test_the_messages_of_a_start_grow_with_the_members_and_not_with_their_square() -> None:
    costs = []
    for size in (20, 60):
        world = World()
        world.start(size)
        await asyncio.sleep(LED)
        # Users without a registrar yet have no news, and answers to greetings are signs of life here.
        costs.append(world.counts["delivered"] - world.counts["delivered news"])
    assert costs[1] <= 4 * costs[0]


@virtual
async def test_a_small_fleet_that_starts_at_once_waits_for_no_leader() -> None:
    world = World()
    world.start(FEW)
    await asyncio.sleep(LISTEN + 2 * LATENCY)
    assert world.know_each_other()
    assert not world.leaders


@virtual
async def test_a_crowd_that_joins_a_fleet_tells_the_leader_alone() -> None:
    world = World()
    world.start(20)
    await asyncio.sleep(LED + 3 * ALIVE_INTERVAL)
    before = world.greetings
    for _ in range(60):
        world.start(1)
        await asyncio.sleep(0.02)
    await asyncio.sleep(LISTEN + POSTPONED)
    assert world.greetings - before <= 8
    assert world.know_each_other()


@virtual
async def test_all_know_a_single_newcomer_after_the_moment_in_which_it_listens() -> None:
    world = World()
    world.start(20)
    await asyncio.sleep(LED + CROWDED)
    world.start(1)
    await asyncio.sleep(LISTEN + 4 * LATENCY)
    assert world.know_each_other()


@virtual
async def test_the_first_user_ends_the_wait() -> None:
    world = World()
    world.start(5)
    (first, *_) = world.alive
    await first.connect(0)
    await asyncio.sleep(2 * LATENCY)
    assert world.greetings == 1
    assert all(first.mesh.address in each.fleet.members for each in world.alive if each is not first)
    await first.connect(1)
    assert world.greetings == 1


@virtual
async def test_a_process_that_has_users_at_its_start_greets_at_once() -> None:
    world = World()
    world.start(1)
    member = SimulatedMember(world, 1)
    await member.connect(0)
    member.start()
    await asyncio.sleep(3 * LATENCY)
    assert world.know_each_other()


@virtual
async def test_users_who_come_during_a_start_are_found_by_every_process() -> None:
    world = World()
    world.start(30)
    for number, member in enumerate(world.alive):
        await asyncio.sleep(0.07)
        await member.connect(0)
        await asyncio.sleep(2 * LATENCY)
        asks = world.alive[number - 1]
        assert (await asks.users.is_online([f"user-{number}-0"])).online == {f"user-{number}-0": True}


@virtual
async def test_another_process_leads_if_the_first_one_ends_before_it_does() -> None:
    world = World()
    world.start(10)
    while not world.greetings:
        await asyncio.sleep(LATENCY)
    await asyncio.sleep(2 * LATENCY)
    min(world.alive, key=lambda each: each.mesh.address).die()
    await asyncio.sleep(SILENCE + 4 * ALIVE_INTERVAL)
    assert len(world.leaders) == 1
    assert world.know_each_other()


@virtual
async def test_nobody_is_forgotten_if_the_leader_dies_while_others_start() -> None:
    world = World()
    world.start(20)
    await asyncio.sleep(LED)
    world.start(20)
    world.leaders[0].die()
    await asyncio.sleep(SILENCE + 4 * ALIVE_INTERVAL)
    assert len(world.alive) == 39
    assert world.know_each_other()
    assert len(world.leaders) == 1


@virtual
async def test_processes_that_do_not_hear_the_leader_yield_to_it_later() -> None:
    world = World()
    world.start(20)
    await asyncio.sleep(LED + 3 * ALIVE_INTERVAL)
    (leader,) = world.leaders
    deaf = world.start(2 * FEW)
    world.deaf, world.unheard = {each.mesh.address for each in deaf}, leader.mesh.address.encode()
    await asyncio.sleep(LED)
    assert any(each.fleet.roster.leads for each in deaf)
    world.deaf = set()
    await asyncio.sleep(2 * ALIVE_INTERVAL)
    assert len(world.leaders) == 1
    assert world.know_each_other()


@virtual
async def test_many_claims_on_a_slow_broker_end_with_one_leader() -> None:
    world = World(latency=1.5)
    world.start(20)
    await asyncio.sleep(30)
    assert len(world.leaders) == 1
    assert world.know_each_other()


@virtual
async def test_every_process_is_known_in_a_fleet_of_two_releases() -> None:
    world = World()
    world.start(6)
    world.start(6, FormerFleet)
    await asyncio.sleep(LED + 2 * ALIVE_INTERVAL)
    assert world.know_each_other()
    for fleet in (Fleet, FormerFleet, Fleet):
        before = world.greetings
        world.start(1, fleet)
        await asyncio.sleep(LISTEN + 4 * LATENCY)
        assert world.greetings == before + 1
        assert world.know_each_other()
    assert len(world.leaders) == 1


@virtual
async def test_a_leader_of_a_former_release_is_greeted_by_all() -> None:
    world = World()
    world.start(4, FormerFleet)
    await asyncio.sleep(LED + 3 * ALIVE_INTERVAL)
    (leader,) = world.leaders
    world.start(4)
    await asyncio.sleep(LISTEN + POSTPONED + LED)
    assert world.leaders == [leader]
    assert world.know_each_other()


@virtual
async def test_registrars_are_told_once_of_a_process_that_starts() -> None:
    world = World()
    world.start(30)
    await asyncio.sleep(LED + 3 * ALIVE_INTERVAL)
    before = world.counts["delivered news"]
    world.start(1)
    await asyncio.sleep(LED + 3 * ALIVE_INTERVAL)
    registrars = {each for member in world.alive for each in member.fleet.roster.registrars.values()}
    # Those to the registrars, and those of all processes about partitions that moved to the new one.
    assert world.counts["delivered news"] - before <= len(registrars) + 3 * len(world.alive)


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 0.0), (1.0, LISTEN), (0.5, 0.9 * LISTEN)])
def test_most_processes_listen_for_almost_the_longest_time(chance: float, seconds: float) -> None:
    assert listening_time(chance) == pytest.approx(seconds, abs=0.01)
