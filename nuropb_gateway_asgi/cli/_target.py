"""The URL of a gateway, taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from ..loopback import is_loopback_host

__all__ = ["BadURL", "Target", "parse_url"]


class BadURL(ValueError):
    """``found`` is what is wrong, ``mend`` what to do about it. Neither quotes what may be a secret."""

    def __init__(self, found: str, mend: str) -> None:
        super().__init__(f"the URL of the gateway: {found}; {mend}")
        self.found = found
        self.mend = mend


@dataclass(frozen=True)
class Target:
    """Where a gateway is. ``url`` is what was given."""

    url: str
    secure: bool
    host: str
    port: int
    path: str

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL without a query, in which somebody may have put a secret."""
        return f"{'wss' if self.secure else 'ws'}://{self.address}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether what is sent there stays on this machine."""
        return is_loopback_host(self.host)


def parse_url(url: str) -> Target:
    """Take ``url`` apart. Raises BadURL for one at which no gateway can be."""
    if not url.isprintable() or " " in url:
        raise BadURL("it has a space or something that cannot be seen in it", "write it without")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadURL(f"it cannot be read ({error})", "write it as wss://gateway.example.com/ws") from error
    scheme = parts.scheme.lower()
    if scheme in ("http", "https"):
        other = "wss" if scheme == "https" else "ws"
        raise BadURL(f"it begins with {scheme}://", f"write {other}:// in its place")
    if scheme not in ("ws", "wss"):
        raise BadURL("it does not begin with ws:// or wss://", "write it as wss://gateway.example.com/ws")
    if not host or port == 0:
        raise BadURL("it names no host, or no port", "write it as wss://gateway.example.com/ws")
    if parts.username is not None or parts.password is not None:
        raise BadURL("it has a user or a password in it", "a gateway takes tokens only: --token-file")
    if parts.fragment:
        raise BadURL("it has a fragment, which no WebSocket has", "leave out what begins with #")
    secure = scheme == "wss"
    return Target(url, secure, host, port or (443 if secure else 80), parts.path or "/")
