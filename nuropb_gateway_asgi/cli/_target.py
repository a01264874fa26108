"""The URL of a gateway, parsed and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from ..loopback import is_loopback_host

__all__ = ["WEBSOCKET_PATH", "BadURL", "Target", "parse_url"]


#: The default of PATH.
WEBSOCKET_PATH: Final = "/ws"


class BadURL(ValueError):
    """An invalid URL: ``found`` is the fault, ``mend`` the remedy. Neither quotes parts that may be secret."""

    def __init__(self, found: str, mend: str) -> None:
        super().__init__(f"the URL of the gateway: {found}; {mend}")
        self.found = found
        self.mend = mend


@dataclass(frozen=True)
class Target:
    """The address of a gateway. ``url`` is the URL of its WebSocket."""

    url: str
    secure: bool
    host: str
    port: int
    path: str

    @property
    def address(self) -> str:
        """The host and port, as in a URL."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL without its query, which may contain a secret."""
        return f"{'wss' if self.secure else 'ws'}://{self.address}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether the host is this machine's loopback interface, so that a token cannot be read on a network."""
        return is_loopback_host(self.host)


def parse_url(url: str) -> Target:
    """Parse the URL of a gateway. Raises BadURL if no gateway can have it.

    ``ws(s)://`` names its WebSocket, and ``http(s)://`` the path before that, where the console is. Either may do
    without a path; the WebSocket is at ``/ws`` then.
    """
    if not url.isprintable() or " " in url:
        raise BadURL("it contains spaces or invisible characters", "remove them")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadURL(f"it cannot be parsed ({error})", "write it as wss://gateway.example.com/ws") from error
    scheme = parts.scheme.lower()
    if scheme not in ("ws", "wss", "http", "https"):
        raise BadURL(
            "it does not begin with ws://, wss://, http:// or https://", "write it as https://gateway.example.com"
        )
    if not host or port == 0:
        raise BadURL("it has no host, or port 0", "write it as wss://gateway.example.com/ws")
    if parts.username is not None or parts.password is not None:
        raise BadURL("it contains a user or password", "a gateway only accepts tokens: use --token-file")
    if parts.fragment:
        raise BadURL("it has a fragment, which WebSocket URLs cannot have", "remove the part from # on")
    secure = scheme in ("wss", "https")
    path = parts.path or WEBSOCKET_PATH
    if scheme.startswith("http") and not path.endswith(WEBSOCKET_PATH):
        path = path.rstrip("/") + WEBSOCKET_PATH
    url = urlunsplit(("wss" if secure else "ws", parts.netloc, path, parts.query, ""))
    return Target(url, secure, host, port or (443 if secure else 80), path)
