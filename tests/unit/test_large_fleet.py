"""A fleet in which registrars know where the users are, with a fake broker between its processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.fleet.simulation import simulate
from nuropb_gateway_asgi.fleet import Connections, Online, Reached, members, roster
from nuropb_gateway_asgi.fleet.directory import partition_of
from nuropb_gateway_asgi.fleet.members import SILENCE
from nuropb_gateway_asgi.fleet.online import OFFLINE, ONLINE
from nuropb_gateway_asgi.fleet.presence import DEBOUNCE
from nuropb_gateway_asgi.fleet.whereabouts import WANTED_INTERVAL

from .fakes import FakeGateway, Network, running, until
from .test_fleet import events, processes, published

COUNT = 7


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch, network: Network) -> AsyncIterator[list[FakeGateway]]:
    """Run a fleet that counts as large."""
    monkeypatch.setattr(roster, "SMALL_FLEET", 2)
    monkeypatch.setattr(members, "ALIVE_INTERVAL", 0.01)
    async with processes(COUNT, network) as gateways:
        await settled(gateways)
        yield gateways


async def settled(gateways: list[FakeGateway]) -> None:
    await until(lambda: all(each.manager.whereabouts.is_settled() for each in gateways))
    registrars = [each.manager.fleet.roster for each in gateways]
    await until(lambda: all(each.registrars == registrars[0].registrars for each in registrars))


def told(gateways: list[FakeGateway], kind: str) -> list[str]:
    """Return the addresses of all messages of a kind; "" for all processes."""
    return [address for each in gateways for address, message in each.mesh.told_peers if message["type"] == kind]


def registrar_of(gateways: list[FakeGateway], user_id: str) -> FakeGateway:
    address = gateways[0].manager.fleet.roster.registrars[partition_of(user_id)]
    return next(each for each in gateways if each.mesh.address == address)


def others(gateways: list[FakeGateway], *without: FakeGateway) -> list[FakeGateway]:
    return [each for each in gateways if not any(each is one for one in without)]


async def test_only_the_registrar_and_the_processes_of_the_users_are_asked(fleet: list[FakeGateway]) -> None:
    registrar = registrar_of(fleet, "alice")
    asks, has, *_ = others(fleet, registrar)
    handler = await has.connect("alice")
    await until(lambda: len(registrar.manager.whereabouts.directory) == 1)
    reached = await asks.manager.send_to_users(["alice"], "news", 1)
    assert reached == Reached(count=1, processes=2)
    assert events(handler) == [("news", 1)]
    assert told(fleet, "ask") == [registrar.mesh.address, has.mesh.address]


async def test_every_question_about_users_goes_where_they_are(fleet: list[FakeGateway]) -> None:
    registrar = registrar_of(fleet, "alice")
    asks, one, two, *_ = others(fleet, registrar)
    first, second = await one.connect("alice/1"), await two.connect("alice/2")
    await until(lambda: len(registrar.manager.whereabouts.directory) == 2)
    assert await asks.manager.is_online(["alice", "bob"]) == Online(online={"alice": True, "bob": False}, processes=3)
    found = await asks.manager.list_sessions("alice")
    assert {each.session_id for each in found.sessions} == {first.session_id, second.session_id}
    assert await asks.manager.disconnect_users(["alice"]) == Reached(count=2, processes=3)
    assert first.closes == second.closes == [(4503, "disconnected")]
    assert "" not in told(fleet, "ask")


async def test_a_question_without_users_goes_to_all(fleet: list[FakeGateway]) -> None:
    handler = await fleet[1].connect("alice")
    assert (await fleet[0].manager.count()).count == 1
    assert await fleet[0].manager.send_to_all("news", 1) == Reached(count=1, processes=COUNT)
    reached = await fleet[0].manager.send_to_session(handler.session_id, "mine", 1)
    assert reached == Reached(count=1, processes=COUNT)
    assert told(fleet, "ask") == [""] * 3


async def test_a_user_who_left_is_looked_for_nowhere(fleet: list[FakeGateway]) -> None:
    registrar = registrar_of(fleet, "alice")
    asks, has, *_ = others(fleet, registrar)
    one, two = await has.connect("alice/1"), await has.connect("alice/2")
    await until(lambda: len(registrar.manager.whereabouts.directory) == 1)
    has.handlers.unregister(one)
    assert (await asks.manager.send_to_users(["alice"], "news", 1)).count == 1
    has.handlers.unregister(two)
    await until(lambda: len(registrar.manager.whereabouts.directory) == 0)
    assert await asks.manager.send_to_users(["alice"], "news", 1) == Reached(count=0, processes=1)


async def test_users_from_before_the_fleet_was_large_are_found(
    monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    monkeypatch.setattr(members, "ALIVE_INTERVAL", 0.01)
    async with processes(COUNT, network) as gateways:
        handlers = [await gateway.connect(f"user-{number}") for number, gateway in enumerate(gateways)]
        await until(lambda: any(each.manager.fleet.roster.leads for each in gateways))
        monkeypatch.setattr(roster, "SMALL_FLEET", 2)
        await settled(gateways)
        for number in range(COUNT):
            assert (await gateways[0].manager.send_to_users([f"user-{number}"], "news", 1)).count == 1
        assert [len(handler.frames) for handler in handlers] == [1] * COUNT
        assert "" not in told(gateways, "ask")


async def test_all_are_asked_while_a_registrar_is_silent(fleet: list[FakeGateway], network: Network) -> None:
    registrar = registrar_of(fleet, "alice")
    asks, has, *_ = others(fleet, registrar)
    await has.connect("alice")
    network.cut_off.add(registrar.mesh.address)
    reached = await asks.manager.send_to_users(["alice"], "news", 1)
    assert (reached.count, reached.processes) == (1, COUNT - 1)
    assert reached.missing == [registrar.manager.fleet.instance_id]


async def test_all_are_asked_while_a_process_of_an_older_release_is_there(fleet: list[FakeGateway]) -> None:
    await fleet[1].connect("alice")
    for gateway in fleet:
        gateway.manager.receiver.on_peer_message(b'{"type":"alive","sender":"older","instance_id":"o","new":true}')
    assert all(("older", "alive") in sent(gateway) for gateway in fleet)
    assert (await fleet[0].manager.send_to_users(["alice"], "news", 1)).count == 1
    assert "" in told(fleet, "ask")
    # It has to hear every process.
    for gateway in fleet:
        gateway.mesh.told_peers.clear()
    await until(lambda: all(("", "alive") in sent(gateway) for gateway in fleet))


def sent(gateway: FakeGateway) -> list[tuple[str, Any]]:
    return [(address, message["type"]) for address, message in gateway.mesh.told_peers]


async def test_the_users_of_a_process_that_dies_are_found_no_longer(fleet: list[FakeGateway], network: Network) -> None:
    leader = next(each for each in fleet if each.manager.fleet.roster.leads)
    dead = others(fleet, leader)[0]
    await dead.connect("alice")
    left = others(fleet, dead)
    network.cut_off |= {dead.mesh.address}
    del network.meshes[dead.mesh.address]
    dead.mesh.connected = False
    heard = leader.manager.fleet.members
    alive = [each.mesh.address for each in left if each is not leader]
    for _ in range(3):  # once more than it takes, for a message of the dead process may still have been on its way
        leader.clock.now += SILENCE / 2 + 0.1
        await until(lambda: all(heard[each].heard_at == leader.clock.now for each in alive))
    await until(lambda: all(dead.mesh.address not in each.manager.fleet.members for each in left))
    await settled(left)
    assert await left[0].manager.send_to_users(["alice"], "news", 1) == Reached(count=0, processes=1)
    assert (await left[0].manager.count()).processes == COUNT - 1


async def test_the_fleet_goes_on_when_its_leader_ends(fleet: list[FakeGateway]) -> None:
    leader = next(each for each in fleet if each.manager.fleet.roster.leads)
    left = others(fleet, leader)
    handler = await left[0].connect("alice")
    leader.manager.fleet.leave()
    leader.mesh.lose()
    await until(lambda: sum(each.manager.fleet.roster.leads for each in left) == 1)
    await settled(left)
    assert (await left[1].manager.send_to_users(["alice"], "news", 1)).count == 1
    assert len(handler.frames) == 1
    assert all(len(each.manager.fleet.members) == COUNT - 1 - 1 for each in left)


async def test_a_process_without_a_mesh_tells_its_users_when_it_is_back(fleet: list[FakeGateway]) -> None:
    registrar = registrar_of(fleet, "alice")
    asks, has, *_ = others(fleet, registrar)
    has.mesh.lose()
    handler = await has.connect("alice")
    has.mesh.find()
    await until(lambda: len(registrar.manager.whereabouts.directory) == 1)
    assert (await asks.manager.send_to_users(["alice"], "news", 1)).count == 1
    assert len(handler.frames) == 1


async def test_a_process_with_a_new_address_keeps_its_users(fleet: list[FakeGateway], network: Network) -> None:
    registrar = registrar_of(fleet, "alice")
    leader = next(each for each in fleet if each.manager.fleet.roster.leads)
    asks, has, *_ = others(fleet, registrar, leader)
    handler = await has.connect("alice")
    has.mesh.lose()
    network.move(has.mesh)
    has.mesh.find()
    await settled(fleet)
    assert (await asks.manager.send_to_users(["alice"], "news", 1)).count == 1
    assert len(handler.frames) == 1


async def test_a_registrar_that_has_lost_news_asks_for_them(fleet: list[FakeGateway]) -> None:
    registrar = registrar_of(fleet, "alice")
    asks, has, *_ = others(fleet, registrar)
    await has.connect("alice")
    registrar.manager.whereabouts.directory.drop(partition_of("alice"))
    assert (await asks.manager.send_to_users(["alice"], "news", 1)).count == 1  # by asking all
    registrar.clock.now += WANTED_INTERVAL
    await settled(fleet)
    assert await asks.manager.send_to_users(["alice"], "news", 1) == Reached(count=1, processes=2)


async def test_at_rest_every_process_tells_the_leader_alone(fleet: list[FakeGateway]) -> None:
    leader = next(each for each in fleet if each.manager.fleet.roster.leads)
    for _ in range(2):  # the last greetings may still be under way
        for gateway in fleet:
            gateway.mesh.told_peers.clear()
        await until(lambda: all(len(each.mesh.told_peers) > 2 for each in fleet))
    assert {address for each in others(fleet, leader) for address, _ in sent(each)} == {leader.mesh.address}
    assert set(sent(leader)) == {("", "roster")}


async def test_a_process_that_comes_later_learns_the_roster_by_one_message(
    fleet: list[FakeGateway], network: Network
) -> None:
    await fleet[0].connect("alice")
    async with running(mesh=(mesh := network.mesh()), instance_id="new") as new:
        network.connect(mesh)
        await until(lambda: len(new.manager.fleet.members) == COUNT)
        assert told(fleet, "roster").count(mesh.address) >= 1
        assert mesh.address not in told(fleet, "alive")
        await settled([*fleet, new])
        assert (await new.manager.send_to_users(["alice"], "news", 1)).count == 1
        counted = await new.manager.count()
        assert isinstance(counted, Connections)
        assert counted.processes == COUNT + 1


@pytest.mark.parametrize("news", ["5", '{"came":[1]}', "[" * 2000 + "]" * 2000])
async def test_news_of_users_that_cannot_be_read_change_nothing(fleet: list[FakeGateway], news: str) -> None:
    one, two, *_ = fleet
    message = f'{{"type":"news","sender":"{two.mesh.address}","topic":"whereabouts","news":{news}}}'
    one.manager.receiver.on_peer_message(message.encode())
    assert one.manager.fleet.unreadable == 1


async def test_presence_is_told_by_registrars_who_alone_know_it(
    monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    monkeypatch.setattr(members, "ALIVE_INTERVAL", 0.01)
    async with processes(COUNT, network, presence_events="on") as gateways:
        early = await gateways[0].connect("early")
        monkeypatch.setattr(roster, "SMALL_FLEET", 2)
        await settled(gateways)
        for gateway in gateways:
            gateway.mesh.told_peers.clear()
        watches = {each.mesh.address: each.manager.online for each in gateways}
        registrar = registrar_of(gateways, "alice")
        one, two, *_ = others(gateways, registrar)
        here, there = await one.connect("alice/1"), await two.connect("alice/2")

        def know(user_id: str) -> list[str]:
            return [each for each, watch in watches.items() if watch and user_id in watch.presence.online]

        def pass_time() -> None:
            for gateway in gateways:
                gateway.clock.now += DEBOUNCE + 1

        knowing = {one.mesh.address, two.mesh.address, registrar.mesh.address}
        await until(lambda: {*know("alice")} == knowing)
        pass_time()
        await until(lambda: sorted(published(gateways)) == [(ONLINE, "alice"), (ONLINE, "early")])
        one.handlers.unregister(here)
        await until(lambda: len(know("alice")) == 2)
        pass_time()
        gateways[0].handlers.unregister(early)
        two.handlers.unregister(there)
        await until(lambda: not know("alice") and not know("early"))
        pass_time()
        events = [(OFFLINE, "alice"), (OFFLINE, "early"), (ONLINE, "alice"), (ONLINE, "early")]
        await until(lambda: sorted(published(gateways)) == events)
        assert {
            message["topic"]
            for gateway in gateways
            for address, message in gateway.mesh.told_peers
            if message["type"] == "news" and address == ""
        } == set()


def test_the_messages_of_a_large_fleet_grow_with_its_members_and_not_with_their_square() -> None:
    some, more = simulate(20), simulate(60)
    assert more["rest"]["delivered"] <= 3.2 * some["rest"]["delivered"]
    for found in (some, more):
        assert found["questions"]["send_to_users, 1 user"]["delivered"] == 4
        assert found["change of a user"]["delivered"] <= 1
