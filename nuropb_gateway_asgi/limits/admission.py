"""Admission of connections: places, and the rate of handshakes. Pure."""

from __future__ import annotations

import contextlib
import enum
import functools
import ipaddress
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..exceptions import ConnectionLimitReached
from ..rates import Rate
from .buckets import TokenBuckets

__all__ = ["Admission", "Arrival", "Place", "address_of"]

#: Connections without a token at a time.
MAX_WAITING: Final = 1000
#: Connections without a token from one address. Clients behind one NAT present their tokens within moments.
MAX_WAITING_PER_ADDRESS: Final = 100
#: Additional handshakes that one counts as which ends without a valid token.
FAILURE_COST: Final = 9
#: The same for a token that may be valid, but cannot be told from one that a client made up.
UNKNOWN_KEY_COST: Final = 1
#: Wrong tokens of one user on live connections: so many at once, and so many a minute.
WRONG_TOKENS: Final = Rate(5, "min", burst=5)
#: Characters of an address; an IPv6 address has 45 at most, and a proxy may pass on names.
MAX_ADDRESS_LENGTH: Final = 64
#: The address of all clients whose address is longer.
TOO_LONG: Final = "an address that is too long"


class Arrival(enum.Enum):
    """The ways in which a client arrives, each with limits of its own."""

    #: A handshake with a token.
    WITH_TOKEN = enum.auto()
    #: A handshake without one: the token is to come in the first frame.
    WITHOUT_TOKEN = enum.auto()
    #: A call over HTTP, which counts as a handshake only if its token is refused.
    CALL = enum.auto()


class _Pace:
    """The rate of one kind of handshakes: from each address, and from all of them together. None is no limit."""

    __slots__ = ("_all", "_each")

    def __init__(self, all_: Rate | None, each: Rate | None) -> None:
        self._all = None if all_ is None else TokenBuckets(all_)
        self._each = None if each is None else TokenBuckets(each)

    def take(self, address: str, now: float) -> None:
        # The narrower limit comes first, so that one address does not use up the limit for all.
        if self._each is not None and address and self._each.take(address, now):
            raise ConnectionLimitReached(f"too many handshakes from {address}", per_user=False)
        if self._all is not None and self._all.take(None, now):
            raise ConnectionLimitReached("too many handshakes", per_user=False)

    def check(self, address: str, now: float) -> None:
        if self._each is not None and address and self._each.wait(address, now):
            raise ConnectionLimitReached(f"too many handshakes from {address}", per_user=False)

    def spend(self, address: str, now: float, cost: int) -> None:
        if self._each is not None and address:
            self._each.spend(address, now, cost)

    def give_back(self, now: float) -> None:
        if self._all is not None:
            self._all.spend(None, now, -1)


class Admission:
    """Counts the connections of a process, those without a token, those of each user, and the rate of handshakes.

    Handshakes and idle sockets without a token are cheap for an attacker. So they have a rate and places of their own,
    and take nothing from clients with a token. When the places are full, the connection that has waited longest gives
    way to a new one: honest clients send their tokens within moments. Of all addresses, it is the one with the most
    such connections that loses it. ``handshakes`` is a limit for all addresses together, ``per_address`` and
    ``max_per_address`` are limits for each address; None is no limit. A connection with an unknown address counts for
    no address.
    """

    __slots__ = (
        "_by_address",
        "_connections",
        "_max",
        "_max_per_user",
        "_max_waiting",
        "_users",
        "_waiting",
        "_waiting_count",
        "_with_token",
        "_without_token",
        "_wrong_tokens",
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
        #: By address: how to turn out each connection without a token, the oldest first.
        self._waiting: dict[str, dict[object, Callable[[], None]]] = {}
        self._waiting_count = 0
        self._users: Counter[str] = Counter()
        self._with_token = _Pace(handshakes, per_address)
        self._without_token = _Pace(handshakes, per_address)
        self._wrong_tokens = TokenBuckets(WRONG_TOKENS)

    def __len__(self) -> int:
        return self._connections

    @property
    def max_connections(self) -> int:
        """The number of connections with a token that the process accepts."""
        return self._max[0]

    @property
    def is_idle(self) -> bool:
        """Whether no connection, address or user is counted."""
        return not (self._connections or self._by_address or self._waiting or self._users)

    def on_arrival(self, address: str, arrival: Arrival, now: float) -> None:
        """Count a handshake, or check a call. Raises ConnectionLimitReached when there are too many handshakes."""
        if arrival is Arrival.CALL:
            self._with_token.check(address, now)
        else:
            self._pace(arrival).take(address, now)

    def on_refusal(self, arrival: Arrival, now: float) -> None:
        """Give back the place of a refused handshake with a token among all: refused ones take it from no other.

        For its address it still counts.
        """
        if arrival is Arrival.WITH_TOKEN:
            self._with_token.give_back(now)

    def on_failure(self, address: str, arrival: Arrival, now: float, cost: int = FAILURE_COST) -> None:
        """Count a handshake without a valid token as several, so that guessing and idling soon reach the limit."""
        self._pace(arrival).spend(address, now, cost)

    def on_wrong_token(self, address: str, user_id: str, now: float) -> bool:
        """Count a wrong token on a live connection like a handshake with one; return whether to close the connection.

        The number of wrong tokens that a user may send counts all connections of this user.
        """
        self._with_token.spend(address, now, 1 + FAILURE_COST)
        return self._wrong_tokens.take(user_id, now) > 0

    def _pace(self, arrival: Arrival) -> _Pace:
        return self._without_token if arrival is Arrival.WITHOUT_TOKEN else self._with_token

    def connection(self, address: str = "") -> Place:
        """Take a place for one connection, until the end of the context. Raises ConnectionLimitReached."""
        most, most_of_address = self._max
        if self._connections >= most:
            raise ConnectionLimitReached("this process has reached MAX_CONNECTIONS", per_user=False)
        if address and self._by_address[address] >= most_of_address:
            raise ConnectionLimitReached(f"{address} has reached MAX_CONNECTIONS_PER_ADDRESS", per_user=False)
        self._connections += 1
        self._by_address[address] += 1
        return Place(self, address)

    def leave_connection(self, address: str) -> None:
        """Give back the place of a connection."""
        self._connections -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    @contextlib.contextmanager
    def waiting(self, address: str, turn_out: Callable[[], None]) -> Iterator[None]:
        """Take a place for a connection without a token, while the context lasts.

        If another connection needs the place, ``turn_out`` is called, once and within the context. The place is then
        no longer counted, so the context has to end.
        """
        if address and len(self._waiting.get(address, ())) >= MAX_WAITING_PER_ADDRESS:
            self._turn_out_oldest(address)
        elif self._waiting_count >= self._max_waiting:
            # With as many of its own as any other address has, the new one replaces one of its own.
            others = self._waiting
            most = max(others, key=lambda each: (len(others[each]), each == address))
            self._turn_out_oldest(most)
        place = object()
        self._waiting.setdefault(address, {})[place] = turn_out
        self._waiting_count += 1
        try:
            yield
        finally:
            self._leave_waiting(address, place)

    def _turn_out_oldest(self, address: str) -> None:
        place, turn_out = next(iter(self._waiting[address].items()))
        self._leave_waiting(address, place)
        turn_out()

    def _leave_waiting(self, address: str, place: object) -> None:
        places = self._waiting.get(address)
        if places is not None and places.pop(place, None) is not None:
            self._waiting_count -= 1
            if not places:
                del self._waiting[address]

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


class Place:
    """The place of one connection, given back at the end of the context. A generator would be four times as big."""

    __slots__ = ("_address", "_admission")

    def __init__(self, admission: Admission, address: str) -> None:
        self._admission = admission
        self._address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._admission.leave_connection(self._address)


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
    return _counted_as(host)


@functools.lru_cache(maxsize=4096)
def _counted_as(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host if host.isprintable() else ascii(host)  # the log gets it, and a proxy may pass on anything
    if isinstance(address, ipaddress.IPv4Address):
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.ip_network((int(address), 64), strict=False))
