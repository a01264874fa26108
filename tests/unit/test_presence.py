from __future__ import annotations

import random

import pytest

from nuropb_gateway_asgi.fleet.directory import partition_of
from nuropb_gateway_asgi.fleet.presence import DEBOUNCE, Presence, Snapshot
from nuropb_gateway_asgi.fleet.roster import PARTITIONS

LATER = DEBOUNCE


def told(presences: list[Presence], now: float) -> list[tuple[str, bool]]:
    return [news for presence in presences for news in presence.settle(now)]


def fleet(*addresses: str) -> list[Presence]:
    presences = [Presence(address) for address in addresses]
    for presence in presences:
        for address in addresses:
            presence.joined(address)
    return presences


def all_came(presences: list[Presence], address: str, user_id: str, now: float = 0.0) -> None:
    for presence in presences:
        presence.came(address, user_id, now)


def all_left(presences: list[Presence], address: str, user_id: str, now: float = 0.0) -> None:
    for presence in presences:
        presence.left(address, user_id, now)


def test_a_user_who_stays_comes_online_once_and_one_process_tells() -> None:
    presences = fleet("a", "b", "c")
    all_came(presences, "a", "alice", 0.0)
    all_came(presences, "b", "alice", 1.0)
    assert told(presences, LATER - 0.1) == []
    assert told(presences, LATER) == [("alice", True)]
    assert told(presences, LATER + 100) == []


def test_a_user_who_goes_everywhere_goes_offline_once() -> None:
    presences = fleet("a", "b", "c")
    for address in ("a", "b"):
        all_came(presences, address, "alice")
    told(presences, LATER)
    all_left(presences, "a", "alice", 10.0)
    assert told(presences, 100.0) == []
    all_left(presences, "b", "alice", 100.0)
    assert told(presences, 100.0 + LATER - 0.1) == []
    assert told(presences, 100.0 + LATER) == [("alice", False)]


@pytest.mark.parametrize("online", [True, False])
def test_a_user_who_comes_back_in_a_moment_is_not_told(online: bool) -> None:
    presences = fleet("a", "b")
    if online:
        all_came(presences, "a", "alice")
        told(presences, LATER)
        all_left(presences, "a", "alice", 10.0)
        all_came(presences, "b", "alice", 10.0 + LATER - 0.1)
    else:
        all_came(presences, "a", "alice", 10.0)
        all_left(presences, "a", "alice", 10.0 + LATER - 0.1)
    assert told(presences, 100.0) == []


def test_the_users_of_a_process_that_died_go_offline_unless_they_are_elsewhere() -> None:
    presences = fleet("a", "b", "c")
    all_came(presences, "a", "alice")
    all_came(presences, "a", "bob")
    all_came(presences, "b", "bob")
    told(presences, LATER)
    left = presences[1:]
    for presence in left:
        presence.gone("a", 10.0)
    assert told(left, 10.0 + LATER) == [("alice", False)]


def test_another_process_tells_if_the_owner_is_gone() -> None:
    for number in range(20):
        user_id = f"user-{number}"
        presences = fleet("a", "b")
        all_came(presences, "a", user_id)
        presences[0].gone("b", 0.0)
        assert told(presences[:1], LATER) == [(user_id, True)]


def test_the_processes_share_the_telling() -> None:
    presences = fleet("a", "b", "c")
    for number in range(300):
        all_came(presences, "a", f"user-{number}")
    assert all(len(presence.settle(LATER)) > 50 for presence in presences)


def test_a_new_process_knows_the_changes_that_were_told() -> None:
    old = Presence("old")
    for user_id, came in (("alice", 0.0), ("bob", 0.0), ("carol", 0.0), ("dave", 9.0)):
        old.came("old", user_id, came)
    assert len(old.settle(LATER)) == 3
    old.left("old", "bob", 9.0)
    snapshot = old.snapshot()
    assert sorted(snapshot.users) == ["alice", "carol", "dave"]
    assert (snapshot.fresh, snapshot.lingering) == (["dave"], ["bob"])
    new = Presence("new")
    new.joined("old")
    new.learn("old", snapshot, 9.0)
    old.joined("new")
    assert sorted(told([old, new], 9.0 + LATER)) == [("bob", False), ("dave", True)]
    for presence in (old, new):
        presence.left("old", "alice", 20.0)
    assert told([old, new], 20.0 + LATER) == [("alice", False)]


def test_a_second_snapshot_replaces_the_first() -> None:
    presence = Presence("here")
    presence.joined("there")
    presence.learn("there", Snapshot(["alice", "bob"], [], []), 0.0)
    presence.learn("there", Snapshot(["bob", "carol"], ["carol"], []), 1.0)
    presence.gone("there", 2.0)
    assert presence.online == frozenset()
    assert presence.pending == {"alice", "bob"}


def test_a_user_who_left_one_process_and_is_in_another_stays_online() -> None:
    presence = Presence("here")
    presence.came("here", "alice", 0.0)
    presence.settle(LATER)
    presence.joined("there")
    presence.learn("there", Snapshot([], [], ["alice"]), LATER)
    assert presence.settle(3 * LATER) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_news_of_all_processes_together_are_true_and_take_turns(seed: int) -> None:
    source = random.Random(seed)
    addresses, users = ["a", "b", "c"], ["u", "v"]
    presences, now, state = fleet(*addresses), 0.0, dict.fromkeys(users, False)
    for _ in range(400):
        now += source.uniform(0.0, DEBOUNCE)
        action = source.choice([all_came, all_left])
        action(presences, source.choice(addresses), source.choice(users), now)
        for user_id, online in told(presences, now):
            assert state[user_id] is not online
            state[user_id] = online
    told_last = told(presences, now + DEBOUNCE)
    state.update(told_last)
    assert state == {user_id: user_id in presences[0].online for user_id in users}
    assert not presences[0].pending


# --- by partition ---------------------------------------------------------------------------------------


def test_in_a_large_fleet_only_the_registrar_tells_and_knows() -> None:
    presences = fleet("a", "b")
    registrars = dict.fromkeys(range(PARTITIONS), "b")
    all_came(presences, "a", "alice")
    for presence in presences:
        presence.share(registrars)
    assert told(presences[:1], LATER) == []
    assert told(presences[1:], LATER) == [("alice", True)]
    all_came(presences[1:], "b", "bob", LATER)
    presences[0].share(registrars)
    assert presences[0].online == {"alice"}
    assert presences[1].online == {"alice", "bob"}


def test_a_new_registrar_learns_from_every_process_what_was_told() -> None:
    old, new, holder = Presence("old"), Presence("new"), Presence("holder")
    user_id = "alice"
    before, after = (dict.fromkeys(range(PARTITIONS), name) for name in ("old", "new"))
    for presence in (old, new, holder):
        presence.share(before)
    for presence in (old, holder):
        presence.came("holder", user_id, 0.0)
    assert told([old, new, holder], LATER) == [(user_id, True)]
    for presence in (old, new, holder):
        presence.share(after)
    assert old.online == frozenset()
    new.learn("holder", holder.snapshot({partition_of(user_id)}), LATER)
    assert told([old, new, holder], 3 * LATER) == []
    for presence in (new, holder):
        presence.left("holder", user_id, 3 * LATER)
    assert told([old, new, holder], 4 * LATER) == [(user_id, False)]


def test_a_snapshot_of_a_partition_replaces_nobody_else() -> None:
    presence = Presence("here")
    presence.came("there", "alice", 0.0)
    presence.came("there", "bob", 0.0)
    presence.learn("there", Snapshot([], [], [], [partition_of("alice")]), 1.0)
    assert presence.online == {"bob"}
