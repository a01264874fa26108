"""The roster of a fleet, and the register of users: pure."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nuropb_gateway_asgi.fleet.directory import Directory, partition_of
from nuropb_gateway_asgi.fleet.messages import Alive, decode, encode
from nuropb_gateway_asgi.fleet.roster import PARTITIONS, SMALL_FLEET, Roster

SILENCE = 10.0


def rosters(count: int) -> list[Roster]:
    """Make the rosters of ``count`` processes that have heard each other once, at the time 0."""
    made = [Roster(f"address-{number:04}") for number in range(count)]
    for roster in made:
        for other in made:
            if other is not roster:
                roster.hear(other.own, f"process-{other.own}", 1, 0.0)
    return made


def tell(leader: Roster, followers: list[Roster], now: float) -> list[bool]:
    """Have the leader give a sign of life; return for each follower whether it is in step afterwards."""
    message = leader.tell("leader")
    found = []
    for follower in followers:
        assert follower.prefers(message)
        follower.take(message, now)
        found.append(follower.is_in_step(message))
    return found


def led(count: int) -> tuple[Roster, list[Roster]]:
    leader, *followers = rosters(count)
    assert leader.claim(0.0)
    assert all(tell(leader, followers, 0.0))
    return leader, followers


def test_the_smallest_address_leads_at_once_and_others_only_after_some_time() -> None:
    made = rosters(6)
    assert [roster.claim(0.0) for roster in made] == [True, False, False, False, False, False]
    assert [roster.claim(3.0) for roster in made[1:]] == [True, True, True, False, False]
    assert made[4].claim(6.0)


def test_whoever_hears_a_leader_does_not_claim() -> None:
    _, followers = led(3)
    assert not any(follower.claim(100.0) for follower in followers for _ in range(5))


def test_of_two_leaders_the_one_with_the_higher_term_prevails_then_the_greater_address() -> None:
    one, two, three = rosters(3)
    one.claim(0.0)
    two.claim(0.0)
    two.claim(3.0)
    assert one.prefers(two.tell("two"))
    assert not two.prefers(one.tell("one"))
    one.take(two.tell("two"), 3.0)
    assert two.leads
    assert not one.leads
    three.term = 5
    three.claim(0.0)
    three.claim(3.0)
    assert two.prefers(three.tell("three"))


def test_followers_forget_whom_the_leader_has_not_heard() -> None:
    leader, (one, two) = led(3)
    leader.hear(one.own, "one", 1, 9.0)
    assert one.silent(9.0, SILENCE) == two.silent(9.0, SILENCE) == []
    assert leader.silent(11.0, SILENCE) == [two.own]
    leader.forget(two.own)
    assert tell(leader, [one], 11.0) == [True]
    assert set(one.members) == {leader.own}


def test_followers_hear_the_leader_and_strangers_themselves() -> None:
    leader, (one, two) = led(3)
    one.hear("older", "older", 0, 5.0)
    one.hear("newer", "newer", 1, 8.0)
    assert one.silent(15.5, SILENCE) == [leader.own, "older"]
    assert one.silent(18.5, SILENCE) == [leader.own, "older", "newer"]
    assert one.has_older
    assert not two.has_older


def test_a_leader_that_is_gone_leaves_its_roster_behind() -> None:
    leader, (one, two) = led(3)
    for roster in (one, two):
        roster.forget(leader.own)
    assert one.claim(20.0)
    assert tell(one, [two], 20.0) == [True]
    assert set(one.members) == {two.own}
    assert one.term > leader.term


def test_a_process_that_missed_a_change_is_told_the_whole_roster() -> None:
    leader, (one, two) = led(3)
    leader.hear("new", "process-new", 1, 1.0)
    leader.tell("leader")  # which one and two do not get
    leader.hear("newer", "process-newer", 1, 2.0)
    assert tell(leader, [one, two], 3.0) == [False, False]
    leader.hear("newest", "process-newest", 1, 3.0)
    whole = leader.tell_all("leader")
    new, _ = one.take(whole, 3.0)
    assert one.is_in_step(whole)
    assert {"new", "newest"} <= {*new}
    assert one.members["new"].instance_id == "process-new"
    one.take(leader.tell("leader"), 4.0)
    assert {*one.members} == {leader.own, two.own, "new", "newer", "newest"}


def test_a_process_that_the_new_leader_does_not_know_yet_has_time_to_tell() -> None:
    leader, (one, two) = led(3)
    other = Roster("other")
    other.hear(one.own, "one", 1, 50.0)
    other.claim(50.0)
    other.claim(50.0)
    other.claim(50.0)
    one.term = 0
    one.forget(leader.own)
    whole = other.tell_all("other")
    assert one.prefers(whole)
    one.take(whole, 50.0)
    assert two.own in one.members
    assert one.silent(59.0, SILENCE) == []
    assert one.silent(61.0, SILENCE) == [two.own, "other"]


@pytest.mark.parametrize("count", [SMALL_FLEET, SMALL_FLEET + 1, 40, PARTITIONS, 200])
def test_a_large_fleet_shares_the_partitions_evenly(count: int) -> None:
    leader, followers = led(count)
    if count <= SMALL_FLEET:
        assert leader.registrars == {}
        return
    assert sorted(leader.registrars) == list(range(PARTITIONS))
    shares = Counter(leader.registrars.values())
    assert max(shares.values()) == -(-PARTITIONS // count)
    assert all(follower.registrars == leader.registrars for follower in followers)


def test_only_the_partitions_of_a_process_that_is_gone_move() -> None:
    leader, followers = led(100)
    before = dict(leader.registrars)
    gone = before[5]
    assert gone != leader.own
    leader.forget(gone)
    assert all(tell(leader, [each for each in followers if each.own != gone], 1.0))
    moved = {each for each in before if before[each] != leader.registrars[each]}
    assert moved == {each for each in before if before[each] == gone}


def test_a_fleet_that_shrinks_has_no_registrars_any_more() -> None:
    leader, followers = led(SMALL_FLEET + 1)
    gone = followers.pop()
    leader.forget(gone.own)
    assert all(tell(leader, followers, 1.0))
    assert leader.registrars == followers[0].registrars == {}


def test_a_leader_that_moves_leads_no_longer() -> None:
    leader, _ = led(3)
    leader.move(leader.own)
    assert leader.leads
    leader.move("elsewhere")
    assert not leader.leads
    assert leader.own == "elsewhere"


@pytest.mark.parametrize("seed", range(5))
def test_after_any_changes_and_losses_everybody_has_the_leaders_roster(seed: int) -> None:
    source = random.Random(seed)
    leader, followers = led(20)
    alive = {each.own: each for each in followers}
    for step in range(100):
        now = float(step)
        if source.random() < 0.5:
            newcomer = Roster(f"late-{step:04}")
            alive[newcomer.own] = newcomer
            leader.hear(newcomer.own, newcomer.own, 1, now)
        elif alive:
            own = source.choice([*alive])
            del alive[own]
            leader.forget(own)
        message = leader.tell("leader")
        for each in alive.values():
            if source.random() < 0.9:  # else it is lost
                each.take(message, now)
                if not each.is_in_step(message) and source.random() < 0.9:
                    each.take(leader.tell_all("leader"), now)
    message = leader.tell("leader")
    for each in alive.values():
        each.take(message, 1000.0)
        if not each.is_in_step(message):
            each.take(leader.tell_all("leader"), 1000.0)
        assert {*each.members, each.own} == {*alive, leader.own} | {
            address for address in each.members if address in each.silent(2000.0, SILENCE)
        }
        assert each.registrars == leader.registrars


def test_older_processes_can_read_a_sign_of_life_and_theirs_can_be_read() -> None:
    older = decode(b'{"type":"alive","sender":"a","instance_id":"i","new":true}')
    assert older == Alive("a", "i", new=True, version=0)
    assert encode(Alive("a", "i", new=True, version=1)) == (
        b'{"type":"alive","sender":"a","instance_id":"i","new":true,"version":1}'
    )


# --- the register ---------------------------------------------------------------------------------------


def test_users_are_found_where_they_are() -> None:
    directory = Directory()
    directory.change("a", ["alice", "bob"], [])
    directory.change("b", ["alice"], [])
    assert directory.locate(["alice", "bob", "carol"]) == {"a": ["alice", "bob"], "b": ["alice"]}
    directory.change("a", [], ["alice", "nobody"])
    assert directory.locate(["alice", "bob"]) == {"a": ["bob"], "b": ["alice"]}
    directory.gone("b")
    assert directory.locate(["alice"]) == {}
    assert len(directory) == 1


def test_a_register_is_complete_once_every_process_has_told() -> None:
    directory = Directory()
    partition = partition_of("alice")
    assert not directory.is_complete(partition, ["a"])
    directory.replace("a", [partition], ["alice"])
    assert directory.is_complete(partition, ["a"])
    assert not directory.is_complete(partition, ["a", "b"])
    directory.replace("a", [partition], [])
    assert directory.locate(["alice"]) == {}
    directory.drop(partition)
    assert not directory.is_complete(partition, ["a"])


def test_any_user_id_has_a_partition() -> None:
    assert partition_of("\ud800") in range(PARTITIONS)
    assert len({partition_of(f"user-{number}") for number in range(1000)}) == PARTITIONS
