"""A look at a response on its way: whether the application's middleware leaves it as the gateway sends it."""

from __future__ import annotations

from typing import Any, Final

import h11

__all__ = ["WatchedResponse"]

#: Headers of a response whose body is not what was sent, or not in chunks.
_FRAMING: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


class WatchedResponse:
    """Notes what an HTTP connection of h11 sends until :meth:`end`. Only one at a time may watch a connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pass_on = connection.send
        self._sent: list[Any] = []
        connection.send = self._send

    def _send(self, event: Any) -> Any:
        self._sent.append(event)
        return self._pass_on(event)

    def end(self) -> None:
        """Watch no longer. May be called twice."""
        vars(self._connection).pop("send", None)

    def has_begun_with(self, body: bytes) -> bool:
        """Tell whether a head for a body in chunks and this part of it were sent, and no more."""
        match self._sent:
            case [h11.Response() as response, h11.Data() as data]:
                return bool(data.data == body) and _FRAMING.isdisjoint(name for name, _ in response.headers)
        return False
