"""The events of a process that the broker has not confirmed yet, and those that wait behind them. Pure.

The broker keeps a message that it is to confirm until all queues have it: a stream that loses its leader gets the
message again from the broker. So events go by the confirmed channel, and so does every message that has an order with
them: the marks and stamps of histories, and the markers of a process. Nobody waits for these confirms: they are
counted.

The broker stops reading the whole connection, records included, once 256 messages of a channel wait for one stream
(``stream_messages_soft_limit``). So fewer events are on their way, and the others wait here. A stream can be without a
leader for long, and events of other topics must not wait for it: when no confirm has come for a while, events go
without one, until all that are on their way are confirmed.

Before 4.0, the broker numbers the messages that a stream gets again in another way than those that it got first, unless
a channel publishes to one stream alone. Others count as repetitions then, and are dropped, by thousands. There events
go without a confirm.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from ...exceptions import MeshUnavailable

__all__ = ["MAX_HELD", "PATIENCE", "WINDOW", "EventWindow", "can_confirm_events"]

#: Events that wait for a confirm at most.
WINDOW: Final = 200
#: Bytes of events that wait behind these, before further ones are refused.
MAX_HELD: Final = 16 * 1024 * 1024
#: Seconds that events wait behind others of which none is confirmed.
PATIENCE: Final = 10.0
#: The first version of RabbitMQ whose streams were seen to get each message again that they missed, and no other.
FIRST_VERSION: Final = (4, 0, 5)


def can_confirm_events(server_properties: Mapping[str, Any]) -> bool:
    """Tell whether a broker with these properties keeps events for a stream until it has a leader."""
    version = str(server_properties.get("version", ""))
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) >= FIRST_VERSION


class EventWindow:
    """Counts the events of one connection; its owner writes those that it admits.

    Without ``can_confirm`` the broker confirms none of them, and none waits.
    """

    def __init__(self, *, can_confirm: bool) -> None:
        self._can_confirm = can_confirm
        #: Whether the broker is to confirm events now.
        self.confirms = can_confirm
        #: Events that were admitted, and not confirmed.
        self.unconfirmed = 0
        #: Whether an event may be written at once.
        self.is_open = True
        #: Whether all events wait until those without a confirm have arrived.
        self._pauses = False
        #: Events that wait: deadline and frames.
        self._held: deque[tuple[float, bytes]] = deque()
        self._size = 0
        #: Events that were confirmed so far, and how many of them at the last look at which there was no standstill.
        self._confirmed = self._seen = 0
        self._moved_at: float | None = None

    @property
    def held(self) -> int:
        """The number of events that wait."""
        return len(self._held)

    def admit(self) -> None:
        """Count an event that is written, while :attr:`is_open`."""
        if self.confirms:
            self.unconfirmed += 1
            self.is_open = self.unconfirmed < WINDOW

    def hold(self, deadline: float, frames: bytes) -> None:
        """Keep an event until it may be written. Raises MeshUnavailable if too many bytes wait already."""
        if self._size + len(frames) > MAX_HELD:
            raise MeshUnavailable("the broker does not confirm events")
        self._held.append((deadline, frames))
        self._size += len(frames)

    def settle(self, count: int) -> None:
        """Count confirms, of events that a queue has refused as well."""
        self.unconfirmed -= count
        self._confirmed += count
        self._look_for_room()

    def release(self) -> tuple[float, bytes] | None:
        """Take, and count, the next of the events that wait and may be written now; return None if there is none."""
        if not self._held or self._is_full():
            return None
        event = self._held.popleft()
        self._size -= len(event[1])
        self.unconfirmed += self.confirms
        self._look_for_room()
        return event

    def stands_still(self, now: float, *, excused: bool = False) -> bool:
        """Look whether events have waited for too long, and no confirm has come meanwhile, without an excuse."""
        moves = excused or not self._held or not self.confirms or self._confirmed != self._seen
        if moves or self._moved_at is None:
            self._seen = self._confirmed
            self._moved_at = now
        return now - self._moved_at > PATIENCE

    def give_up(self) -> None:
        """Have events go without a confirm from now on."""
        self.confirms = False

    def pause(self) -> bool:
        """Hold all events if confirms are possible again; return whether they are held.

        The owner calls :meth:`resume` once the events without a confirm have arrived.
        """
        if self.confirms or self.unconfirmed or not self._can_confirm:
            return False
        self._pauses = True
        self.is_open = False
        return True

    def resume(self) -> None:
        """Have the broker confirm events again."""
        self.confirms = True
        self._pauses = False
        self._look_for_room()

    def _is_full(self) -> bool:
        return self._pauses or (self.confirms and self.unconfirmed >= WINDOW)

    def _look_for_room(self) -> None:
        self.is_open = not self._held and not self._is_full()  # an event that comes now is behind those that wait
