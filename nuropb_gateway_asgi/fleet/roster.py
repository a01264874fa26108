"""The roster of a fleet: its members, their leader, and the registrars of its users. Pure.

One process, the leader, hears the signs of life of all others, and tells all of the changes. So the messages of a fleet
at rest grow with its members, and not with their square. Every process has the whole roster. If the leader falls
silent, the process with the smallest address becomes the leader, or after some time one with the next addresses: two
leaders do no harm, as the one with the higher term prevails. Times are of one monotonic clock, in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final
from zlib import crc32

from msgspec import Struct

from .messages import VERSION
from .messages import Roster as RosterMessage

__all__ = ["PARTITIONS", "SMALL_FLEET", "Member", "Roster"]

#: The parts into which the users of a large fleet are divided, each with a process that knows where its users are.
PARTITIONS: Final = 64
#: Processes up to which every question about users goes to all, and nobody keeps a register of users.
SMALL_FLEET: Final = 16


class Member(Struct):
    """A peer process. ``version`` is that of its messages."""

    instance_id: str
    heard_at: float
    version: int = 0


class Roster:
    """The members of a fleet as this process, at the address ``own``, knows them."""

    def __init__(self, own: str = "") -> None:
        self.own = own
        #: The peer processes, by address.
        self.members: dict[str, Member] = {}
        #: The address of the leader; "" if there is none.
        self.leader = ""
        self.term = 0
        #: Addresses of registrars by partition; empty in a small fleet.
        self.registrars: dict[int, str] = {}
        #: Addresses in the leader's roster, its own included.
        self._confirmed: set[str] = set()
        #: Changes that the leader, this process, has not told yet.
        self._joined: dict[str, str] = {}
        self._left: dict[str, None] = {}
        #: Intervals without a leader.
        self._waited = 0
        #: Whether the leader took this process for gone, since the leader has last told of it.
        self._was_dropped = False

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.leader == self.own != ""

    @property
    def has_older(self) -> bool:
        """Whether a process of an older release is there, which expects signs of life of every process."""
        return any(member.version == 0 for member in self.members.values())

    @property
    def has_news(self) -> bool:
        """Whether this process, the leader, has newcomers to tell of."""
        return bool(self._joined)

    def move(self, own: str) -> None:
        """Take an address. A leader with another one begins anew, as the others know it by its former address."""
        if own != self.own and self.leads:
            self._follow("", self.term)
        self.own = own

    def refresh(self, now: float) -> None:
        """Begin to wait for signs of life anew: none could come meanwhile."""
        for member in self.members.values():
            member.heard_at = now

    def hear(self, address: str, instance_id: str, version: int, now: float) -> bool:
        """Note a sign of life; return whether the member is a new one."""
        known = address in self.members
        self.members[address] = Member(instance_id, now, version)
        if self.leads and version and address not in self._confirmed:
            self._joined[address] = instance_id
            self._left.pop(address, None)
        return not known

    def forget(self, address: str) -> bool:
        """Forget a member; return whether it was one."""
        if self.members.pop(address, None) is None:
            return False
        self._joined.pop(address, None)
        if self.leads and address in self._confirmed:
            self._left[address] = None
        if address == self.leader:
            self._follow("", self.term)
        return True

    def silent(self, now: float, silence: float) -> list[str]:
        """Return the members that gave no sign of life for ``silence`` seconds, though this process should hear them.

        A follower hears the leader, processes of older releases, and those that the leader does not know.
        """
        return [
            address
            for address, member in self.members.items()
            if now - member.heard_at > silence
            and (self.leads or address == self.leader or address not in self._confirmed)
        ]

    # --- as the leader ----------------------------------------------------------------------------------------

    def claim(self, now: float) -> bool:
        """Become the leader if there is none for long enough; called once in an interval of signs of life."""
        if self.leader:
            return False
        # The first interval is for the smallest address, the second for four, the next for sixteen, and so on.
        self._waited += 1
        rank = sum(address < self.own for address, member in self.members.items() if member.version)
        if rank >= 4 ** (self._waited - 1):
            return False
        self._lead(self.term + 1, now)
        return True

    def claim_first(self, now: float) -> bool:
        """Become the first leader, if there was none yet; return whether this process is it.

        It has term 0 until it tells of changes, so that it yields to a leader that it did not hear.
        """
        if self.leader or self.term or any(member.version < VERSION for member in self.members.values()):
            return False
        self._lead(0, now)
        return True

    def _lead(self, term: int, now: float) -> None:
        self._follow(self.own, term)
        self._confirmed = {self.own, *(address for address, member in self.members.items() if member.version)}
        self.refresh(now)

    def tell(self, instance_id: str, *, assign: bool = True) -> RosterMessage:
        """Return the sign of life of this process, the leader, with all changes since the last one.

        Without ``assign`` the registrars stay: more changes are about to come.
        """
        self.term = max(1, self.term)
        joined, left = self._joined, list(self._left)
        self._joined, self._left = {}, {}
        self._confirmed = (self._confirmed | joined.keys()).difference(left)
        moved = self._assign() if assign else {}
        digest = self._digest(self._confirmed)
        return RosterMessage(
            self.own, instance_id, self.term, digest, joined, left, registrars=moved, tells_all=self._tells_all
        )

    def tell_first(self, instance_id: str) -> RosterMessage:
        """Return the claim of this process, the first leader, with the whole roster."""
        self._assign()
        return self.tell_all(instance_id)

    @property
    def _tells_all(self) -> bool:
        """Whether all processes take note of newcomers by the roster."""
        return all(member.version >= VERSION for member in self.members.values())

    def _assign(self) -> dict[int, str]:
        """Assign the partitions to registrars; return the changed ones."""
        before = self.registrars
        self.registrars = _assign(before, self._confirmed)
        if before and not self.registrars:
            return dict.fromkeys(before, "")
        return {each: address for each, address in self.registrars.items() if before.get(each) != address}

    def tell_all(self, instance_id: str) -> RosterMessage:
        """Return the whole roster of this process, the leader, as it was told before, with the changes since."""
        known = {address: self.members[address].instance_id for address in self._confirmed if address in self.members}
        for address in self._left:
            known[address] = ""  # it is told with the next sign of life
        return RosterMessage(
            self.own,
            instance_id,
            self.term,
            self._digest(self._confirmed),
            self._joined,
            members=known | {self.own: instance_id},
            registrars=self.registrars,
            tells_all=self._tells_all,
        )

    # --- as a follower ----------------------------------------------------------------------------------------

    def prefers(self, message: RosterMessage) -> bool:
        """Return whether the sender is the leader, or prevails over the present one."""
        return (
            message.sender == self.leader
            or not self.leader
            or (message.term, message.sender)
            > (
                self.term,
                self.leader,
            )
        )

    def take(self, message: RosterMessage, now: float) -> tuple[list[str], list[str]]:
        """Follow the leader; return the addresses of the members that are new, and of those that are gone."""
        if message.sender != self.leader:
            self._follow(message.sender, message.term)
        self.term = message.term
        entries = message.joined if message.members is None else message.members | message.joined
        new = [
            address
            for address, instance_id in ((message.sender, message.instance_id), *entries.items())
            if address != self.own and instance_id and self._learn(address, instance_id, now)
        ]
        if message.members is None:
            self._confirmed = (self._confirmed | message.joined.keys()).difference(message.left)
            self.registrars = {
                each: address for each, address in (self.registrars | message.registrars).items() if address
            }
        else:
            for address in self._confirmed - message.members.keys():
                if address in self.members:  # the leader may hear of it within moments
                    self.members[address].heard_at = now
            self._confirmed = set(message.members)
            self.registrars = message.registrars
        return new, [address for address in message.left if address != self.own and self.forget(address)]

    def _learn(self, address: str, instance_id: str, now: float) -> bool:
        """Note a member of the leader's roster; return whether it is a new one."""
        known = self.members.get(address)
        return self.hear(address, instance_id, max(1, known.version if known else 1), now)

    def takes_back(self, message: RosterMessage) -> bool:
        """Return whether the leader tells of this process again, having taken it for gone. Once for each time."""
        self._was_dropped = self._was_dropped or self.own in message.left
        if not self._was_dropped or self.own not in message.joined:
            return False
        self._was_dropped = False
        return True

    def is_in_step(self, message: RosterMessage) -> bool:
        """Return whether this roster is the leader's after the changes in ``message``."""
        if self._digest(self._confirmed) == message.digest:
            return True
        known = {self.own, *(address for address, member in self.members.items() if member.version)}
        if self._digest(known) != message.digest:
            return False
        self._confirmed = known  # a new leader knows the same members
        return True

    def _follow(self, leader: str, term: int) -> None:
        self.leader, self.term, self._waited = leader, term, 0
        self._joined, self._left = {}, {}

    def _digest(self, addresses: Iterable[str]) -> int:
        digest = 0
        for address in addresses:
            digest ^= crc32(address.encode())
        table = ",".join(f"{each}:{self.registrars[each]}" for each in sorted(self.registrars))
        return digest << 32 | crc32(table.encode())


def _assign(registrars: Mapping[int, str], members: set[str]) -> dict[int, str]:
    """Share the partitions between the members of a large fleet: as few as possible move."""
    if len(members) <= SMALL_FLEET:
        return {}
    assigned = {each: address for each, address in registrars.items() if address in members}
    load = Counter(dict.fromkeys(sorted(members), 0))
    load.update(assigned.values())
    fair = -(-PARTITIONS // len(members))
    for each in range(PARTITIONS):
        if each not in assigned or load[assigned[each]] > fair:
            if each in assigned:
                load[assigned[each]] -= 1
            assigned[each] = min(load, key=load.__getitem__)
            load[assigned[each]] += 1
    return assigned
