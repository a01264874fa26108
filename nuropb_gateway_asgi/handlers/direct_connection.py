"""Connections whose server takes frames by plain calls while the client keeps up, and by the outbox otherwise."""

from __future__ import annotations

from typing import Protocol

from ..authorization.rules import Delivery
from .connection import Connection

__all__ = ["DirectConnection", "FrameWriter"]


class FrameWriter(Protocol):
    """The server's side of a connection."""

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up."""
        ...

    def write(self, text: str) -> None:
        """Send a frame. Never waits and never raises."""

    def close(self, code: int, reason: str) -> None:
        """Tell the client that the gateway closes the connection. Repeated calls change nothing."""


class DirectConnection(Connection):
    """A connection with a :class:`FrameWriter`, or without one: then a writer task empties the outbox."""

    _direct: FrameWriter | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a frame that nothing waits before may be written at once."""
        return self._direct is not None and self._writing_since is None and self._close is None

    def write_now(self, text: str) -> None:
        """Write a frame that nothing waits before."""
        direct = self._direct
        assert direct is not None  # noqa: S101 - the connection is ready
        direct.write(text)
        if not direct.is_writable:
            self._writing_since = self._clock()

    def wake(self) -> None:
        """Write the frames in the outbox while the client keeps up."""
        if self._direct is not None and self._writing_since is None:
            self._flush()

    def _flush(self) -> None:
        """Write the frames in the outbox while the client keeps up, then the end if the connection is to be closed."""
        direct = self._direct
        if direct is None:  # a client that keeps up again after the end
            return
        while direct.is_writable:
            text = self._outbox.get_nowait()
            if text is None:
                self._writing_since = None
                if self._close is not None:
                    direct.close(*self._close)
                return
            direct.write(text)
        self._writing_since = self._clock()

    def send_frame(self, text: str) -> None:
        """Write a frame, or put it into the outbox if the client does not keep up."""
        direct = self._direct
        if direct is None or self._writing_since is not None or self._close is not None:
            super().send_frame(text)
            return
        direct.write(text)
        if not direct.is_writable:
            self._writing_since = self._clock()

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Write an event, or put it into the outbox if the client does not keep up; there it may be dropped."""
        if self._direct is None or self._writing_since is not None:
            super().send_event(text, topic, delivery)
        else:
            self.send_frame(text)

    def close(self, code: int, reason: str = "") -> None:
        """Begin to close the connection. The first call decides on code and reason."""
        super().close(code, reason)
        if self._direct is not None and self._writing_since is None:
            self._flush()
