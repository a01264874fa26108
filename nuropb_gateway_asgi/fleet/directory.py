"""The register of a registrar: the processes that have the users of its partitions. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from zlib import crc32

from .roster import PARTITIONS

__all__ = ["Directory", "partition_of"]


def partition_of(user_id: str) -> int:
    """Return the partition of a user, the same in every process."""
    return crc32(user_id.encode(errors="surrogatepass")) % PARTITIONS


class Directory:
    """The users of some partitions, by the addresses of the processes that have told of them."""

    __slots__ = ("_told", "_users")

    def __init__(self) -> None:
        #: Addresses of the processes that have told all their users of a partition.
        self._told: dict[int, set[str]] = {}
        #: By partition and process, the users.
        self._users: dict[int, dict[str, set[str]]] = {}

    def __len__(self) -> int:
        return sum(len(users) for processes in self._users.values() for users in processes.values())

    def replace(self, address: str, partitions: Iterable[int], user_ids: Iterable[str]) -> None:
        """Take all users that a process has in ``partitions``."""
        for each in partitions:
            self._told.setdefault(each, set()).add(address)
            self._users.get(each, {}).pop(address, None)
        self.change(address, user_ids, ())

    def change(self, address: str, came: Iterable[str], left: Iterable[str]) -> None:
        """Note the users that came to a process and left it."""
        for user_id in came:
            self._users.setdefault(partition_of(user_id), {}).setdefault(address, set()).add(user_id)
        for user_id in left:
            processes = self._users.get(partition_of(user_id), {})
            users = processes.get(address, set())
            users.discard(user_id)
            if not users:
                processes.pop(address, None)

    def drop(self, partition: int) -> None:
        """Forget a partition: another process is its registrar."""
        self._told.pop(partition, None)
        self._users.pop(partition, None)

    def gone(self, address: str) -> None:
        """Forget the users of a process."""
        for told in self._told.values():
            told.discard(address)
        for processes in self._users.values():
            processes.pop(address, None)

    def is_complete(self, partition: int, addresses: Collection[str]) -> bool:
        """Return whether all these processes have told their users of a partition."""
        return self._told.get(partition, set()).issuperset(addresses)

    def locate(self, user_ids: Iterable[str]) -> dict[str, list[str]]:
        """Return users by the addresses of the processes that have them."""
        found: dict[str, list[str]] = {}
        for user_id in user_ids:
            for address, users in self._users.get(partition_of(user_id), {}).items():
                if user_id in users:
                    found.setdefault(address, []).append(user_id)
        return found
