"""Tells the mesh when users come online and go offline, in the whole fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw

from ..handler_manager import HandlerManager
from .members import Fleet
from .presence import Presence, Snapshot

__all__ = ["OFFLINE", "ONLINE", "OnlineWatch"]

ONLINE: Final = "gateway.user.online"
OFFLINE: Final = "gateway.user.offline"
#: Seconds between two looks at who came and went.
INTERVAL: Final = 0.25

_encode = msgspec.json.encode
_decode_changes = msgspec.json.Decoder(dict[str, bool]).decode
_decode_snapshot = msgspec.json.Decoder(Snapshot).decode
_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError)


class OnlineWatch:
    """Keeps the presence of users in step with the siblings', and publishes what has changed for good.

    ``publish`` publishes an event; it is called while ``connected`` says that the mesh takes it.
    """

    def __init__(
        self,
        fleet: Fleet,
        handler_manager: HandlerManager,
        address: str,
        clock: Callable[[], float],
        publish: Callable[[str, Any], None],
        connected: Callable[[], bool],
    ) -> None:
        self._fleet = fleet
        self._handlers = handler_manager
        self._address = address
        self._clock = clock
        self._publish = publish
        self._connected = connected
        self._presence = Presence(address)
        #: Users who came to this process (True) or left it since the siblings were told last.
        self._changed: dict[str, bool] = {}
        fleet.on_news = self._on_news
        fleet.on_member = self._on_member
        fleet.on_gone = self._on_gone

    def look_at(self, user_id: str) -> None:
        """See whether the user is connected to this process: a connection has come or gone."""
        is_here = bool(self._handlers.get_user_handlers([user_id]))
        if is_here == self._presence.holds(self._address, user_id):
            return  # another connection of the same user, or one that does not listen
        (self._presence.came if is_here else self._presence.left)(self._address, user_id, self._clock())
        self._changed[user_id] = is_here

    async def run(self) -> None:
        """Tell what changes, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            # Without a mesh nobody can be told; it waits until somebody can.
            if self._connected():
                self.look()

    def look(self) -> None:
        """Tell the siblings who came and went, and the mesh who has come or gone for good."""
        if self._changed:
            changed, self._changed = self._changed, {}
            self._fleet.tell("changed", _encode(changed))
        for user_id, online in self._presence.settle(self._clock()):
            self._publish(ONLINE if online else OFFLINE, {"user_id": user_id})

    def _on_member(self, address: str, new: bool) -> None:
        self._presence.joined(address)
        if new:
            self._fleet.tell("users", _encode(self._presence.snapshot()), address)

    def _on_gone(self, address: str) -> None:
        self._presence.gone(address, self._clock())

    def _on_news(self, address: str, topic: str, news: Raw) -> None:
        try:
            if topic == "changed":
                for user_id, is_here in _decode_changes(news).items():
                    (self._presence.came if is_here else self._presence.left)(address, user_id, self._clock())
            elif topic == "users":
                self._presence.learn(address, _decode_snapshot(news), self._clock())
        except _ERRORS:
            self._fleet.unreadable += 1
