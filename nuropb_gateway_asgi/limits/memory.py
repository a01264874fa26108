"""Memory of a process that users share: the bytes of what is kept for them, and what goes first. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

__all__ = ["SharedMemory"]

#: A user who takes more than this part of the memory is heavy, and makes room before others do.
HEAVY: Final = 1 / 16

Key = TypeVar("Key", bound=Hashable)


class SharedMemory(Generic[Key]):
    """The bytes of things that are kept for users, by key. ``limit`` bounds their sum, ``per_user`` a user's number.

    Beyond a limit the oldest thing goes: of the user who has too many, else of the user with the most bytes if that one
    is heavy, else of all. So one user cannot push out what is kept for others.
    """

    __slots__ = ("_heavy", "_keys", "_limit", "_per_user", "_sizes", "_users", "size")

    def __init__(self, limit: int, per_user: float = math.inf) -> None:
        self._limit = limit
        self._per_user = per_user
        #: User and bytes by key, the oldest first.
        self._keys: dict[Key, tuple[str, int]] = {}
        #: Keys by user, the oldest first, and bytes by user.
        self._users: dict[str, dict[Key, None]] = {}
        self._sizes: dict[str, int] = {}
        #: The heavy users: fewer than 16.
        self._heavy: set[str] = set()
        #: Bytes of everything.
        self.size = 0

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, key: Key, user_id: str, size: int) -> None:
        """Enter a thing with its bytes, or change the bytes of one that is there; its age stays."""
        former = self._keys.get(key, (user_id, 0))[1]
        self._keys[key] = user_id, size
        self._users.setdefault(user_id, {})[key] = None
        self._resize(user_id, size - former)

    def remove(self, key: Key) -> None:
        """Forget a thing. Does nothing for one that is not there."""
        user_id, size = self._keys.pop(key, ("", None))
        if size is None:
            return
        keys = self._users[user_id]
        del keys[key]
        self._resize(user_id, -size)
        if not keys:
            del self._users[user_id], self._sizes[user_id]

    def _resize(self, user_id: str, change: int) -> None:
        self.size += change
        size = self._sizes[user_id] = self._sizes.get(user_id, 0) + change
        if size > self._limit * HEAVY:
            self._heavy.add(user_id)
        else:
            self._heavy.discard(user_id)

    def surplus(self, user_id: str) -> Key | None:
        """Return the thing that has to go, after one of ``user_id`` has come or grown; None if all fit."""
        keys = self._users.get(user_id, {})
        if len(keys) > self._per_user:
            return next(iter(keys))
        if self.size <= self._limit or not self._keys:
            return None
        if self._heavy:
            return next(iter(self._users[max(self._heavy, key=self._sizes.__getitem__)]))
        return next(iter(self._keys))
