"""Whether there is room for one connection more. Pure."""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from .exceptions import ConnectionLimitReached

__all__ = ["Admission", "address_of"]

#: Connections that may be without a token at a time; more than that are nobody's clients.
MAX_WAITING: Final = 1000
#: Of these, from one address. Whoever shares one behind a NAT brings the token within a moment.
MAX_WAITING_PER_ADDRESS: Final = 100


class Admission:
    """Counts the connections of a process, those of them that have not said yet who they are, and those of each user.

    Opening sockets and saying nothing is cheap, so the second kind has less room: it can neither take the places of
    clients with a token, nor can one address take those of all others.
    """

    __slots__ = ("_connections", "_max_connections", "_max_per_user", "_max_waiting", "_users", "_waiting")

    def __init__(self, max_connections: int, max_per_user: int) -> None:
        self._max_connections = max_connections
        self._max_per_user = max_per_user
        self._max_waiting = min(MAX_WAITING, max(1, max_connections // 2))
        self._connections = 0
        self._waiting: Counter[str] = Counter()
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._connections

    @contextlib.contextmanager
    def connection(self) -> Iterator[None]:
        """A place for one connection, for as long as the context lasts. Raises ConnectionLimitReached."""
        if self._connections >= self._max_connections:
            raise ConnectionLimitReached("this process has all the connections it may have", per_user=False)
        self._connections += 1
        try:
            yield
        finally:
            self._connections -= 1

    @contextlib.contextmanager
    def waiting(self, address: str) -> Iterator[None]:
        """A place for one that has no token yet, until it does. Raises ConnectionLimitReached."""
        if self._waiting.total() >= self._max_waiting or self._waiting[address] >= MAX_WAITING_PER_ADDRESS:
            raise ConnectionLimitReached("too many connections without a token", per_user=False)
        self._waiting[address] += 1
        try:
            yield
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    def enter(self, user_id: str) -> None:
        """A place among the user's connections, until :meth:`leave`. Raises ConnectionLimitReached."""
        if self._users[user_id] >= self._max_per_user:
            raise ConnectionLimitReached("this user has all the connections one may have", per_user=True)
        self._users[user_id] += 1

    def leave(self, user_id: str) -> None:
        """The place is free again."""
        self._users[user_id] -= 1
        if not self._users[user_id]:
            del self._users[user_id]


def address_of(client: Any) -> str:
    """Whom a connection counts for: the host of an ASGI scope's ``client``, and of IPv6 the network of 64 bits.

    That is what one customer of a provider has of IPv6 (RFC 6177). "" where the server does not know, as with a UNIX
    socket.
    """
    host = client[0] if client else None
    if not isinstance(host, str):
        return ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.ip_network((int(address), 64), strict=False))
