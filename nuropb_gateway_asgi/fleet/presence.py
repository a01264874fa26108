"""Debounced online state of users across the processes of a gateway. Pure.

In a small fleet every process knows the users of all processes and comes to the same conclusions; one of them, chosen
by the user's id, tells the mesh. In a large fleet that one, the registrar of the user's partition, is the only one that
knows of the user in other processes. Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Final

from msgspec import Struct

from .directory import partition_of

__all__ = ["DEBOUNCE", "Presence", "Snapshot"]

#: Seconds for which a change must last before it is told: reloading a page is no change.
DEBOUNCE: Final = 5.0


class Snapshot(Struct):
    """The users that a process tells a peer process, with the changes that are still to be told to the mesh."""

    users: list[str]
    #: Those of ``users`` whose coming has not been told yet.
    fresh: list[str]
    #: Users without a connection whose leaving has not been told yet.
    lingering: list[str]
    #: The partitions of all these users; None for all partitions.
    partitions: list[int] | None = None


class Presence:
    """The online users of all processes. ``own`` is the address of this process."""

    __slots__ = ("_addresses", "_alone", "_announced", "_due", "_holders", "_own", "_registrars")

    def __init__(self, own: str) -> None:
        self._own = own
        self._addresses = {own}
        #: The processes of each user. Almost every user is in one, so users share these values.
        self._holders: dict[str, tuple[str, ...]] = {}
        self._alone: dict[str, tuple[str, ...]] = {}
        #: Users announced to the mesh as online.
        self._announced: set[str] = set()
        #: Users whose state has changed since, with the time at which to tell the mesh.
        self._due: dict[str, float] = {}
        self._registrars: Mapping[int, str] = {}

    @property
    def online(self) -> frozenset[str]:
        """The users connected to some process now, debounced or not."""
        return frozenset(self._holders)

    @property
    def pending(self) -> frozenset[str]:
        """The users whose change has not lasted long enough to be told."""
        return frozenset(self._due)

    def joined(self, address: str) -> None:
        """Add a process, which tells its users later."""
        self._addresses.add(address)

    def move(self, own: str) -> None:
        """Change the address of this process."""
        former, self._own = self._own, own
        self._addresses = {own if address == former else address for address in self._addresses}
        for user_id, holders in self._holders.items():
            if former in holders:
                self._holders[user_id] = self._shared(*(own if each == former else each for each in holders))

    def share(self, registrars: Mapping[int, str]) -> None:
        """Leave the users of each partition to its registrar: forget them in other processes, unless that is this one.

        Without registrars, every process is told of all users again.
        """
        self._registrars = registrars
        if not registrars:
            return
        for user_id, holders in tuple(self._holders.items()):
            if self._owner(user_id) != self._own:
                if self._own in holders:
                    self._holders[user_id] = self._shared(self._own)
                else:
                    del self._holders[user_id]
                    self._announced.discard(user_id)
        for user_id in tuple(self._due):
            if user_id not in self._holders and self._owner(user_id) != self._own:
                self._announced.discard(user_id)
                del self._due[user_id]

    def gone(self, address: str, now: float) -> None:
        """Remove a process, and its users' connections."""
        self._addresses.discard(address)
        self._alone.pop(address, None)
        for user_id in [user_id for user_id, holders in self._holders.items() if address in holders]:
            self.left(address, user_id, now)

    def came(self, address: str, user_id: str, now: float) -> None:
        """Note a user's first connection to a process."""
        holders = self._holders.get(user_id, ())
        if address not in holders:
            self._holders[user_id] = self._shared(*holders, address)
        self._look(user_id, now)

    def left(self, address: str, user_id: str, now: float) -> None:
        """Note the end of a user's last connection to a process."""
        holders = self._holders.get(user_id, ())
        if holders == (address,):
            del self._holders[user_id]
        elif address in holders:
            self._holders[user_id] = self._shared(*(each for each in holders if each != address))
        self._look(user_id, now)

    def holds(self, address: str, user_id: str) -> bool:
        """Return whether the user has a connection to a process."""
        return address in self._holders.get(user_id, ())

    def snapshot(self, partitions: Collection[int] | None = None) -> Snapshot:
        """Return the users of this process, all or those in some partitions, for a peer process."""
        if partitions is not None:
            part = self.snapshot()
            users, fresh, lingering = (
                [user_id for user_id in user_ids if partition_of(user_id) in partitions]
                for user_ids in (part.users, part.fresh, part.lingering)
            )
            return Snapshot(users, fresh, lingering, sorted(partitions))
        users = [user_id for user_id, holders in self._holders.items() if self._own in holders]
        return Snapshot(
            users,
            fresh=[user_id for user_id in users if user_id not in self._announced],
            lingering=[user_id for user_id in self._due if user_id not in self._holders],
        )

    def learn(self, address: str, snapshot: Snapshot, now: float) -> None:
        """Replace the users of a peer process, or those in some partitions, by those of its snapshot."""
        fresh, partitions = set(snapshot.fresh), snapshot.partitions
        for user_id in snapshot.users:
            if user_id not in fresh and user_id not in self._holders and user_id not in self._due:
                self._announced.add(user_id)  # by another process, before this one started
            self.came(address, user_id, now)
        users = set(snapshot.users)
        for user_id in [user_id for user_id, holders in self._holders.items() if address in holders]:
            if user_id not in users and (partitions is None or partition_of(user_id) in partitions):
                self.left(address, user_id, now)
        for user_id in snapshot.lingering:
            if user_id not in self._holders and user_id not in self._due:
                self._announced.add(user_id)
                self._look(user_id, now)

    def settle(self, now: float) -> list[tuple[str, bool]]:
        """Return the lasting changes that this process tells: True for a user's arrival."""
        told = []
        for user_id in [user_id for user_id, due in self._due.items() if due <= now]:
            del self._due[user_id]
            online = user_id in self._holders
            (self._announced.add if online else self._announced.discard)(user_id)
            if self._owner(user_id) == self._own:
                told.append((user_id, online))
        return told

    def _shared(self, *holders: str) -> tuple[str, ...]:
        return self._alone.setdefault(holders[0], holders) if len(holders) == 1 else holders

    def _look(self, user_id: str, now: float) -> None:
        if (user_id in self._holders) == (user_id in self._announced):
            self._due.pop(user_id, None)
        else:
            self._due.setdefault(user_id, now + DEBOUNCE)

    def _owner(self, user_id: str) -> str:
        """Return the process that tells of this user: by rendezvous hashing, so that few users move with a process."""
        if self._registrars:
            return self._registrars[partition_of(user_id)]
        return max(self._addresses, key=lambda address: _weight(address, user_id))


def _weight(address: str, user_id: str) -> bytes:
    return hashlib.blake2b(user_id.encode(errors="surrogatepass"), key=address.encode()[-64:], digest_size=8).digest()
