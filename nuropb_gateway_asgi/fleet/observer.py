"""The interface of the parts of the gateway that follow the peer processes."""

from __future__ import annotations

from typing import Protocol

from msgspec import Raw

__all__ = ["FleetObserver"]


class FleetObserver(Protocol):
    """A part of the gateway that follows the peer processes. ``address`` is theirs on the mesh."""

    def on_news(self, address: str, topic: str, news: Raw) -> None:
        """Take news (JSON) of a peer process."""

    def on_member(self, address: str, new: bool) -> None:
        """Note a peer process; a ``new`` one did not know of this process before."""

    def on_gone(self, address: str) -> None:
        """Note the end of a peer process."""

    def on_moved(self) -> None:
        """Note that this process has another address, which its peers know by now."""
