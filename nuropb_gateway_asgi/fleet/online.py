"""Presence events: tells the mesh when users come online and go offline, in all processes of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Raw

from ..exceptions import MeshUnavailable
from ..handler_manager import HandlerManager
from ..identifiers import new_id
from ..wire.interface import Mesh
from ..wire.services import to_json
from .directory import partition_of
from .members import Fleet
from .presence import Presence, Snapshot
from .whereabouts import EXPIRES

__all__ = ["OFFLINE", "ONLINE", "OnlineWatch"]

ONLINE: Final = "gateway.user.online"
OFFLINE: Final = "gateway.user.offline"
#: Seconds between two looks at changed users.
INTERVAL: Final = 0.25

_encode = msgspec.json.encode
_decode_changes = msgspec.json.Decoder(dict[str, bool]).decode
_decode_snapshot = msgspec.json.Decoder(Snapshot).decode
_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class OnlineWatch:
    """Keeps the presence of users in step with the peer processes, and publishes its lasting changes.

    It is the :class:`~.members.FleetObserver` of ``fleet``. ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(self, fleet: Fleet, handler_manager: HandlerManager, mesh: Mesh, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._handlers = handler_manager
        self._mesh = mesh
        self._address = mesh.address
        self._clock = clock
        self.presence = Presence(self._address)
        #: Changes of this process's users, to be told to the peer processes: True for a user's arrival.
        self._changed: dict[str, bool] = {}
        #: The registrars that were told of this process's users, by partition; empty in a small fleet.
        self._registrars: dict[int, str] = {}
        fleet.bind_observer(self)
        fleet.bind_roster(self._on_roster)

    def take_address(self) -> None:
        """Begin anew under the address that the mesh has drawn at its start."""
        self._address = self._mesh.address
        self.presence = Presence(self._address)
        self._registrars = {}
        self._changed.clear()

    def on_moved(self) -> None:
        """Keep all users under the new address, and tell them to the peer processes."""
        self._address = self._mesh.address
        self.presence.move(self._address)
        self._changed.clear()
        if self._registrars:
            self._on_roster(True)
        else:
            self._fleet.tell("users", _encode(self.presence.snapshot()))

    def _on_roster(self, anew: bool) -> None:
        """Follow the roster; ``anew`` if the registrars do not know this process's users any more."""
        former, self._registrars = self._registrars, dict(self._fleet.roster.registrars)
        if former or self._registrars:
            self.presence.share(self._registrars)
        moved: dict[str, list[int]] = {}
        for partition, registrar in self._registrars.items():
            if registrar != self._address and (anew or former.get(partition) != registrar):
                moved.setdefault(registrar, []).append(partition)
        for registrar, partitions in moved.items():
            snapshot = self.presence.snapshot(set(partitions))
            if snapshot.users or snapshot.lingering:
                self._fleet.tell("users", _encode(snapshot), registrar, expires=EXPIRES)
        if former and not self._registrars:  # it is a small fleet from now on
            self._fleet.tell("users", _encode(self.presence.snapshot()))

    def look_at(self, user_id: str) -> None:
        """Note whether the user is connected to this process, after a connection came or went."""
        is_here = bool(self._handlers.get_connected([user_id]))
        if is_here == self.presence.holds(self._address, user_id):
            return  # another connection of the user, or one that is registered for its own calls only
        (self.presence.came if is_here else self.presence.left)(self._address, user_id, self._clock())
        self._changed[user_id] = is_here

    async def run(self) -> None:
        """Tell changes to the peer processes and the mesh, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            if self._mesh.connected:  # changes wait for the mesh
                self.look()

    def look(self) -> None:
        """Tell the peer processes of changes of presence, and the mesh of lasting changes."""
        if self._changed:
            changed, self._changed = self._changed, {}
            if not self._registrars:
                self._fleet.tell("changed", _encode(changed))
            else:
                self._tell_registrars(changed)
        if not self._mesh.can_publish:  # lasting changes wait for that
            return
        for user_id, online in self.presence.settle(self._clock()):
            self._publish(ONLINE if online else OFFLINE, user_id)

    def _tell_registrars(self, changed: dict[str, bool]) -> None:
        told: dict[str, dict[str, bool]] = {}
        for user_id, is_here in changed.items():
            told.setdefault(self._registrars[partition_of(user_id)], {})[user_id] = is_here
        told.pop(self._address, None)
        for registrar, changes in told.items():
            self._fleet.tell("changed", _encode(changes), registrar, expires=EXPIRES)

    def _publish(self, topic: str, user_id: str) -> None:
        with contextlib.suppress(MeshUnavailable):
            self._mesh.publish(topic, to_json({"user_id": user_id}), context=b"{}", trace_id=new_id(), target=None)

    def on_member(self, address: str, new: bool) -> None:
        """Note a peer process; a new one is told of this process's users."""
        self.presence.joined(address)
        if new and not self._fleet.roster.registrars:
            self._fleet.tell("users", _encode(self.presence.snapshot()), address)

    def on_gone(self, address: str) -> None:
        """Note the end of a peer process, and of its users' connections."""
        self.presence.gone(address, self._clock())

    def on_news(self, address: str, topic: str, news: Raw) -> None:
        """Note the changes, or all users, of a peer process."""
        try:
            if topic == "changed":
                for user_id, is_here in _decode_changes(news).items():
                    (self.presence.came if is_here else self.presence.left)(address, user_id, self._clock())
            elif topic == "users":
                self.presence.learn(address, _decode_snapshot(news), self._clock())
        except _ERRORS:
            self._fleet.unreadable += 1
