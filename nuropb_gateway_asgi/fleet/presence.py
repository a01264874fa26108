"""Which users are connected to some process of the gateway, and when that has changed for good. Pure.

Every process knows who is connected where, and comes to the same conclusions; of all of them one, chosen by the user's
id, tells the mesh. Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

import hashlib
from typing import Final

from msgspec import Struct

__all__ = ["DEBOUNCE", "Presence", "Snapshot"]

#: Seconds that a user has to have come or gone before that is news: a page that is loaded again is none.
DEBOUNCE: Final = 5.0


class Snapshot(Struct):
    """What a process tells one that is new: its own users, and what everybody but the new one is waiting for."""

    users: list[str]
    #: Of these, whose coming has not been told yet.
    fresh: list[str]
    #: Users who are connected nowhere, and whose going has not been told yet.
    lingering: list[str]


class Presence:
    """The users of all processes. ``own`` is the address of this one."""

    __slots__ = ("_addresses", "_announced", "_due", "_holders", "_own")

    def __init__(self, own: str) -> None:
        self._own = own
        self._addresses = {own}
        self._holders: dict[str, set[str]] = {}
        #: Users of whom the mesh was told that they are online.
        self._announced: set[str] = set()
        #: Users for whom that is not so any more, and when it is to be told.
        self._due: dict[str, float] = {}

    def joined(self, address: str) -> None:
        """A process is there. Its users follow."""
        self._addresses.add(address)

    def gone(self, address: str, now: float) -> None:
        """A process is gone, and with it its users' connections."""
        self._addresses.discard(address)
        for user_id in [user_id for user_id, holders in self._holders.items() if address in holders]:
            self.left(address, user_id, now)

    def came(self, address: str, user_id: str, now: float) -> None:
        """The user's first connection to a process."""
        self._holders.setdefault(user_id, set()).add(address)
        self._look(user_id, now)

    def left(self, address: str, user_id: str, now: float) -> None:
        """The user's last connection to a process has ended."""
        holders = self._holders.get(user_id, set())
        holders.discard(address)
        if not holders:
            self._holders.pop(user_id, None)
        self._look(user_id, now)

    def holds(self, address: str, user_id: str) -> bool:
        """Whether the user has a connection to a process."""
        return address in self._holders.get(user_id, ())

    def snapshot(self) -> Snapshot:
        """What a process that is new has to know from this one."""
        users = [user_id for user_id, holders in self._holders.items() if self._own in holders]
        return Snapshot(
            users,
            fresh=[user_id for user_id in users if user_id not in self._announced],
            lingering=[user_id for user_id in self._due if user_id not in self._holders],
        )

    def learn(self, address: str, snapshot: Snapshot, now: float) -> None:
        """All users of another process; what was known of it before is replaced."""
        fresh = set(snapshot.fresh)
        for user_id in snapshot.users:
            if user_id not in fresh and user_id not in self._holders and user_id not in self._due:
                self._announced.add(user_id)  # by somebody, before this process was there
            self.came(address, user_id, now)
        users = set(snapshot.users)
        for user_id in [user_id for user_id, holders in self._holders.items() if address in holders]:
            if user_id not in users:
                self.left(address, user_id, now)
        for user_id in snapshot.lingering:
            if user_id not in self._holders and user_id not in self._due:
                self._announced.add(user_id)
                self._look(user_id, now)

    def settle(self, now: float) -> list[tuple[str, bool]]:
        """Who has come (True) or gone (False) for good since the last time, as far as this process is to tell it."""
        told = []
        for user_id in [user_id for user_id, due in self._due.items() if due <= now]:
            del self._due[user_id]
            online = user_id in self._holders
            (self._announced.add if online else self._announced.discard)(user_id)
            if self._owner(user_id) == self._own:
                told.append((user_id, online))
        return told

    def _look(self, user_id: str, now: float) -> None:
        if (user_id in self._holders) == (user_id in self._announced):
            self._due.pop(user_id, None)
        else:
            self._due.setdefault(user_id, now + DEBOUNCE)

    def _owner(self, user_id: str) -> str:
        """Who tells of this user, by the highest random weight: few change hands when a process comes or goes."""
        return max(self._addresses, key=lambda address: _weight(address, user_id))


def _weight(address: str, user_id: str) -> bytes:
    return hashlib.blake2b(user_id.encode(errors="surrogatepass"), key=address.encode()[-64:], digest_size=8).digest()
