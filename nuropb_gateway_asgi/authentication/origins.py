"""Origins of pages that may connect: the ``Origin`` header of a handshake. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from ..exceptions import SettingsError

__all__ = ["OriginPolicy", "RefusedOrigins", "shown_origin"]

_Origin = tuple[str, str, int | None]

_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(0|[1-9][0-9]{0,4}))?",
    re.ASCII | re.IGNORECASE,
)
#: The hosts of pages in development. On purpose fewer than `is_loopback_host` takes: a page at another loopback
#: address (127.0.0.2) may belong to another user or a container of this machine.
_DEVELOPMENT_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


#: Refused origins that are named in the log within SECONDS, each once. Any stranger can make origins up.
NAMED: Final = 20
SECONDS: Final = 60.0
#: Characters of an origin that is shown.
_LONGEST: Final = 200


class RefusedOrigins:
    """The refused origins that the log named lately, so that it names each once a minute and only so many."""

    def __init__(self) -> None:
        self._named: dict[str, float] = {}
        #: Refusals of origins that were not named, since :meth:`note` last returned True.
        self.left_out = 0

    def note(self, origin: str, now: float) -> bool:
        """Note a refusal of ``origin`` at ``now``, in seconds; return whether the log is to name it."""
        named_at = self._named.get(origin)
        if named_at is not None and now - named_at < SECONDS:
            return False
        if len(self._named) >= NAMED:
            self._named = {each: at for each, at in self._named.items() if now - at < SECONDS}
            if len(self._named) >= NAMED:
                self.left_out += 1
                return False
        self._named[origin] = now
        return True


def shown_origin(origin: str) -> str:
    """Return an ``Origin`` header for a log line or an answer: as it is if it is an origin, else a neutral text."""
    if origin == "null":
        return "null (a local file or a sandboxed frame)"
    return origin if len(origin) <= _LONGEST and _parse_origin(origin) is not None else "(not a valid origin)"


class OriginPolicy:
    """A list of allowed origins (RFC 6454): ``scheme://host[:port]``, compared exactly after normalisation.

    The case of scheme and host does not matter, and the default port may be left out. ``https://.example.com`` allows
    the subdomains of example.com, but not example.com itself. ``*`` allows every origin, and is the only entry that
    allows ``null``, the origin of sandboxed frames and local files. ``loopback`` adds http and https on this machine,
    at any port. ``own`` is a URL of the gateway itself, whose origin may always connect: some clients, such
    as React Native on Android, name it.

    Raises SettingsError for any other entry.
    """

    def __init__(self, allowed: Sequence[str], *, loopback: bool = False, own: str = "") -> None:
        if isinstance(allowed, str):
            raise SettingsError("ALLOWED_ORIGINS: a string; expected a list")
        self._allows_any = "*" in allowed
        self._allows_loopback = loopback
        self._exact: set[_Origin] = set()
        self._subdomains: set[_Origin] = set()
        self.refused = RefusedOrigins()
        for entry in allowed:
            if entry != "*":
                self._add(entry)
        if own:
            parts = urlsplit(own)
            self._add(f"{parts.scheme}://{parts.netloc}")

    @classmethod
    def loopback(cls, *, own: str = "") -> OriginPolicy:
        """Return the policy for development: only pages served from this machine, and the origin of ``own``."""
        return cls([], loopback=True, own=own)

    @property
    def allows_any(self) -> bool:
        """Whether the policy has the entry ``*``; cookies must not be trusted then."""
        return self._allows_any

    def allows(self, origin: str) -> bool:
        """Return whether a page of this origin, the value of an Origin header, may connect."""
        if self._allows_any:
            return True
        parsed = _parse_origin(origin)
        if parsed is None:
            return False
        scheme, host, port = parsed
        if self._allows_loopback and scheme in ("http", "https") and host in _DEVELOPMENT_HOSTS:
            return True
        return parsed in self._exact or any(
            scheme == allowed_scheme and port == allowed_port and host.endswith(f".{domain}")
            for allowed_scheme, domain, allowed_port in self._subdomains
        )

    def _add(self, entry: str) -> None:
        is_domain = "://." in entry
        origin = _parse_origin(entry.replace("://.", "://", 1))
        if origin is None or (is_domain and _is_address(origin[1])):
            raise SettingsError(
                f"ALLOWED_ORIGINS: {entry!r} is not an origin; expected *, scheme://host, scheme://host:port "
                "or scheme://.domain for its subdomains, without a path, international names in the xn-- form"
            )
        (self._subdomains if is_domain else self._exact).add(origin)


def _is_address(host: str) -> bool:
    # Addresses have no subdomains: 10.0.0.1 and all other addresses with this end would be those of 0.0.1.
    return host.endswith("]") or host.rpartition(".")[2].isdecimal()


def _parse_origin(origin: str) -> _Origin | None:
    # No host name is longer than 255 characters (RFC 1035, 2.3.4).
    match = _ORIGIN.fullmatch(origin) if len(origin) <= 300 else None
    if match is None:
        return None
    scheme, host, port_digits = match[1].lower(), match[2].lower(), match[3]
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            return None
    port = int(port_digits) if port_digits else {"http": 80, "https": 443}.get(scheme)
    return None if port is not None and port > 65535 else (scheme, host, port)
