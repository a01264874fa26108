"""The guard of the admin API: its token, wrong tokens, and requests that a browser was tricked into. Pure.

A page on the operator's machine can send requests to a port of that machine, and by a name whose address it changes
(DNS rebinding) read the answers. So a request needs a ``Host`` that no stranger's page can have, and an ``Origin`` that
is the API's own. There are no cookies, and no other origin is ever allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections import Counter
from typing import Final, Literal, TypeAlias, get_args

__all__ = ["ATTEMPTS", "LOCKED_SECONDS", "Guard", "Refused"]

#: Wrong tokens of an address, after which all of its requests are refused for so many seconds since the first.
ATTEMPTS: Final = 10
LOCKED_SECONDS: Final = 60.0
#: Addresses that are remembered; beyond it the oldest are forgotten.
MAX_ADDRESSES: Final = 1000

#: Reasons to refuse a request: labels of the metric.
Refused: TypeAlias = Literal["host", "origin", "token", "locked"]

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


class Guard:
    """Decides whether a request may act. ``token`` is empty for a Unix socket that needs none.

    ``host`` is the host of the address that the API listens at; "" for a Unix socket. Times are of a monotonic clock.
    """

    def __init__(self, token: str, host: str) -> None:
        self._token = token.encode()
        self._host = host.lower()
        #: Refused requests, by reason. All reasons from the start: an alarm that compares two readings needs the first.
        self.refused: Counter[str] = Counter(dict.fromkeys(get_args(Refused), 0))
        #: By address: the time of the first wrong token, and their number.
        self._wrong: dict[str, tuple[float, int]] = {}

    @property
    def needs_token(self) -> bool:
        """Whether a request needs a token."""
        return bool(self._token)

    def check_page(self, host: str, origin: str | None) -> Refused | None:
        """Return the reason to refuse a request by its headers ``Host`` and ``Origin``, or None."""
        match = _HOST.fullmatch(host)
        if match is None or not self._is_own(match[1].lower()):
            return self._refuse("host")
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            return self._refuse("origin")
        return None

    def _is_own(self, host: str) -> bool:
        """Whether no page of a stranger can be at this host: it is an address, or the operator's own name."""
        if host in ("localhost", self._host):
            return True
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        return True

    def check_token(self, header: str, address: str, now: float) -> Refused | None:
        """Return the reason to refuse a request by its header ``Authorization``, or None."""
        if not self._token:
            return None
        began, count = self._wrong.get(address, (now, 0))
        if now - began >= LOCKED_SECONDS:
            self._wrong.pop(address, None)
            began, count = now, 0
        if count >= ATTEMPTS:
            return self._refuse("locked")
        scheme, _, given = header.partition(" ")
        # Compared in constant time, whatever the scheme.
        if hmac.compare_digest(given.strip().encode(), self._token) and scheme.lower() == "bearer":
            self._wrong.pop(address, None)
            return None
        if address not in self._wrong and len(self._wrong) >= MAX_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[address] = began, count + 1
        return self._refuse("token")

    def locked_for(self, address: str, now: float) -> int:
        """Return the whole seconds until an address may try again, 1 at least."""
        began, _ = self._wrong.get(address, (now, 0))
        return max(int(began + LOCKED_SECONDS - now) + 1, 1)

    def _refuse(self, reason: Refused) -> Refused:
        self.refused[reason] += 1
        return reason
