"""Admission of connections: places, and the rate of handshakes. Pure."""

from __future__ import annotations

import contextlib
import ipaddress
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from ..exceptions import ConnectionLimitReached
from ..rates import Rate
from .buckets import TokenBuckets

__all__ = ["Admission", "address_of"]

#: Connections without a token at a time.
MAX_WAITING: Final = 1000
#: Connections without a token from one address. Clients behind one NAT present their tokens within moments.
MAX_WAITING_PER_ADDRESS: Final = 100
#: Additional handshakes that one with a refused token counts as.
FAILURE_COST: Final = 9
#: Characters of an address; an IPv6 address has 45 at most, and a proxy may pass on names.
MAX_ADDRESS_LENGTH: Final = 64
#: The address of all clients whose address is longer.
TOO_LONG: Final = "an address that is too long"


class Admission:
    """Counts the connections of a process, those without a token, those of each user, and the rate of handshakes.

    Idle sockets without a token are cheap for an attacker, so these get fewer places: they cannot take the places of
    clients with a token, and one address cannot take the places of all others. ``handshakes`` is a limit for all
    addresses together, ``per_address`` and ``max_per_address`` are limits for each address; None is no limit. A
    connection with an unknown address counts for no address.
    """

    __slots__ = (
        "_addresses",
        "_by_address",
        "_connections",
        "_handshakes",
        "_max",
        "_max_per_user",
        "_max_waiting",
        "_users",
        "_waiting",
    )

    def __init__(
        self,
        max_connections: int,
        *,
        max_per_user: int | None = None,
        max_per_address: int | None = None,
        handshakes: Rate | None = None,
        per_address: Rate | None = None,
    ) -> None:
        self._max = max_connections, math.inf if max_per_address is None else max_per_address
        self._max_per_user = math.inf if max_per_user is None else max_per_user
        self._max_waiting = min(MAX_WAITING, max(1, max_connections // 2))
        self._connections = 0
        self._by_address: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self._handshakes = None if handshakes is None else TokenBuckets(handshakes)
        self._addresses = None if per_address is None else TokenBuckets(per_address)

    def __len__(self) -> int:
        return self._connections

    @property
    def is_idle(self) -> bool:
        """Whether no connection, address or user is counted."""
        return not (self._connections or self._by_address or self._waiting or self._users)

    def on_handshake(self, address: str, now: float) -> None:
        """Count a handshake. Raises ConnectionLimitReached when there are too many."""
        # The narrower limit comes first, so that one address does not use up the limit for all.
        if self._addresses is not None and address and self._addresses.take(address, now):
            raise ConnectionLimitReached(f"too many handshakes from {address}", per_user=False)
        if self._handshakes is not None and self._handshakes.take(None, now):
            raise ConnectionLimitReached("too many handshakes", per_user=False)

    def on_call(self, address: str, now: float) -> None:
        """Check a call over HTTP, which counts as a handshake only if its token is refused: calls have other limits.

        Raises ConnectionLimitReached after too many handshakes.
        """
        if self._addresses is not None and address and self._addresses.wait(address, now):
            raise ConnectionLimitReached(f"too many handshakes from {address}", per_user=False)

    def on_failure(self, address: str, now: float) -> None:
        """Count a refused token as several handshakes, so that guessing soon reaches the limit."""
        if self._addresses is not None and address:
            self._addresses.spend(address, now, FAILURE_COST)

    @contextlib.contextmanager
    def connection(self, address: str = "") -> Iterator[None]:
        """Take a place for one connection, for as long as the context lasts. Raises ConnectionLimitReached."""
        most, most_of_address = self._max
        if self._connections >= most:
            raise ConnectionLimitReached("this process has reached MAX_CONNECTIONS", per_user=False)
        if address and self._by_address[address] >= most_of_address:
            raise ConnectionLimitReached(f"{address} has reached MAX_CONNECTIONS_PER_ADDRESS", per_user=False)
        self._connections += 1
        with _counted(self._by_address, address):
            try:
                yield
            finally:
                self._connections -= 1

    @contextlib.contextmanager
    def waiting(self, address: str) -> Iterator[None]:
        """Take a place for a connection without a token, while the context lasts. Raises ConnectionLimitReached."""
        of_address = self._waiting[address] if address else 0
        if self._waiting.total() >= self._max_waiting or of_address >= MAX_WAITING_PER_ADDRESS:
            raise ConnectionLimitReached("too many connections without a token", per_user=False)
        with _counted(self._waiting, address):
            yield

    def enter(self, user_id: str) -> None:
        """Take a place among the user's connections, until :meth:`leave`. Raises ConnectionLimitReached."""
        if self._users[user_id] >= self._max_per_user:
            raise ConnectionLimitReached("this user has reached MAX_CONNECTIONS_PER_USER", per_user=True)
        self._users[user_id] += 1

    def enter_again(self, user_id: str) -> None:
        """Take a place for a session that takes over a connection of its user, just before that gives back its own."""
        self._users[user_id] += 1

    def leave(self, user_id: str) -> None:
        """Give back a place among the user's connections."""
        self._users[user_id] -= 1
        if not self._users[user_id]:
            del self._users[user_id]


@contextlib.contextmanager
def _counted(counter: Counter[str], key: str) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def address_of(client: Any) -> str:
    """Return the address that a connection counts for: the host of an ASGI scope's ``client``, or its IPv6 /64 network.

    A customer of a provider has a /64 or more (RFC 6177). Returns "" for an unknown address, as with a UNIX socket. A
    trusted proxy may pass on any text as an address: long ones count as one, because every address that is counted is
    kept for a while, and logged.
    """
    host = client[0] if client else None
    if not isinstance(host, str):
        return ""
    if len(host) > MAX_ADDRESS_LENGTH:
        return TOO_LONG
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host if host.isprintable() else ascii(host)  # the log gets it, and a proxy may pass on anything
    if isinstance(address, ipaddress.IPv4Address):
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.ip_network((int(address), 64), strict=False))
