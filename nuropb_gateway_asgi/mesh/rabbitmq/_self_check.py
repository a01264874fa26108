"""The message that a process sends through the broker to itself.

A connection can be dead at one end only, which the heartbeat notices after half a minute. The message proves the whole
way, publishing, routing and consuming, and notices a dead connection within 9 seconds. It is also a message to learn of
an alarm by: a broker tells only those that publish that it blocks publishers. There is one for each way out.

A message that is late proves nothing while others arrive before it, or while the machine gives this process no time: a
connection that works must not be dropped with all calls in flight because there is much to do. So the time to come back
is counted in looks at quiet times: a look that comes late counts as one in time, and one since which a reply has come
does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ...exceptions import MeshUnavailable
from ...identifiers import new_id
from ...wire.publish import encode_publish, expiration
from ._lane import Publisher
from ._link import Link
from ._statistics import RabbitMQStatistics

__all__ = ["SelfCheck"]

#: Seconds between two messages, and for one to come back; between two looks for it.
PING_INTERVAL: Final = 3.0
PING_TIMEOUT: Final = 6.0
LOOKS: Final = 6  # in a PING_INTERVAL
#: The time to come back while replies arrive, in PING_TIMEOUT: half a minute, like the heartbeat's.
BUSY: Final = 5


class SelfCheck:
    """Sends the message at intervals, out by one link and in by the other; drops ``drops`` if it does not come back.

    ``publisher`` returns the publisher of the present connection; ``on_change`` is called when the connections are
    proven to work. ``statistics`` tell of the replies that arrive meanwhile; where they come by another way out, the
    check of that one, ``other``, tells whether the way in is quick.
    """

    def __init__(
        self,
        queue: str,
        publishing: Link,
        consuming: Link,
        statistics: RabbitMQStatistics,
        *,
        drops: tuple[Link, ...],
        other: SelfCheck | None = None,
        publisher: Callable[[], Publisher | None],
        blocked: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        #: The correlation id of all these messages.
        self.message_id = new_id()
        #: Whether a message came back by the present publishing connection.
        self.proven = False
        #: Seconds that the latest messages took. Their reader takes them away.
        self.round_trips: deque[float] = deque(maxlen=100)
        self.queue = queue
        self._publishing = publishing
        self._links = (publishing, consuming)
        self._drops = drops
        self._other = other
        #: The time at which the latest message that came back was sent.
        self.proven_since = 0.0
        self._get_publisher = publisher
        self._is_blocked = blocked
        self._on_change = on_change
        #: The time of the next message.
        self._due = 0.0
        self._statistics = statistics
        self._sent_at: float | None = None
        #: The body of the latest message: its number. An earlier one, from a queue that was cut off, proves nothing.
        self._body = b"0"
        #: Looks for the message on its way, and those of them before which no reply came.
        self._looks = self._quiet_looks = 0
        #: The replies that had come at the last look.
        self._replies = 0
        #: Callbacks for the return of the message on its way, and for that of the next one.
        self._on_proof: list[Callable[[], None]] = []
        self._on_next_proof: list[Callable[[], None]] = []

    @property
    def pending(self) -> bool:
        """Whether a message is on its way."""
        return self._sent_at is not None

    @property
    def awaited(self) -> bool:
        """Whether somebody is to be called for the return of a message."""
        return bool(self._on_proof or self._on_next_proof)

    def forget(self) -> None:
        """Wait no longer for a message on its way: the connection was lost, or is a new one."""
        self._sent_at = None
        self._on_proof.clear()
        self._on_next_proof.clear()

    def when_proven(self, proven: Callable[[], None]) -> None:
        """Call ``proven`` once a message that is sent from now on has come back; never, if a connection is lost first.

        One message serves all who ask meanwhile.
        """
        if self._sent_at is not None:
            self._on_next_proof.append(proven)
            return
        self._on_proof.append(proven)
        self.send()

    def send(self) -> None:
        """Send a message, if there is a publisher."""
        publisher = self._get_publisher()
        if publisher is None:
            return
        now = time.monotonic()
        self._body = b"%d" % (int(self._body) + 1)
        frames = encode_publish(
            channel=publisher.plain_channel,
            exchange="",
            routing_key=self.queue,
            kind="response",
            correlation_id=self.message_id,
            trace_id=None,
            body=self._body,
            frame_max=publisher.frame_max,
            expiration=expiration(BUSY * PING_TIMEOUT),
        )
        with contextlib.suppress(MeshUnavailable):
            publisher.put(now + BUSY * PING_TIMEOUT, self.message_id, frames)
            self._sent_at = now
            self._looks = self._quiet_looks = 0
            self._replies = self._statistics.replies

    def on_return(self, body: bytes) -> None:
        """Take note that a message with this body has come back."""
        if self._sent_at is None or body != self._body:
            return
        self.round_trips.append(time.monotonic() - self._sent_at)
        self.proven_since, self._sent_at = self._sent_at, None
        if not self.proven and self._publishing.up:
            self.proven = True
            self._on_change()
        called, self._on_proof, self._on_next_proof = self._on_proof, self._on_next_proof, []
        for proven in called:
            proven()
        if self._on_proof:
            self.send()

    async def run(self) -> None:
        """Send messages until cancelled, and drop the connections when one does not come back."""
        while True:
            await asyncio.sleep(PING_INTERVAL / LOOKS)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Send a message if it is time, or count the time of the one on its way."""
        if not all(link.up for link in self._links) or self._is_blocked():
            self.forget()
        elif self._sent_at is None:
            if now >= self._due or not self.proven:
                self._due = now + PING_INTERVAL
                self.send()
        else:
            self._looks += 1
            if self._other is not None:
                self._quiet_looks += self._other.proven_since > self._sent_at
            else:
                self._quiet_looks += self._statistics.replies == self._replies
                self._replies = self._statistics.replies
            allowed = PING_TIMEOUT / PING_INTERVAL * LOOKS
            if self._quiet_looks > allowed or self._looks > BUSY * allowed:
                self.forget()
                for link in self._drops:
                    link.abort("a message to itself did not come back")
