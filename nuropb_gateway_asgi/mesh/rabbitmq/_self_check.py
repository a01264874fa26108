"""The message that a process sends through the broker to itself.

A connection can be dead at one end only, which the heartbeat notices after half a minute. The message proves the whole
way, publishing, routing and consuming, and notices a dead connection within 9 seconds. It is also a message to learn of
an alarm by: a broker tells only those that publish that it blocks publishers.
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

__all__ = ["SelfCheck"]

#: Seconds between two messages, and for one to come back.
PING_INTERVAL: Final = 3.0
PING_TIMEOUT: Final = 6.0


class SelfCheck:
    """Sends the message at intervals, and drops both connections if it does not come back.

    ``publisher`` returns the publisher of the present connection; ``on_change`` is called when the connections are
    proven to work.
    """

    def __init__(
        self,
        queue: str,
        links: tuple[Link, Link],
        *,
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
        self._links = links
        self._get_publisher = publisher
        self._is_blocked = blocked
        self._on_change = on_change
        self._sent_at: float | None = None
        #: Callbacks for the return of the message on its way, and for that of the next one.
        self._on_proof: list[Callable[[], None]] = []
        self._on_next_proof: list[Callable[[], None]] = []

    @property
    def pending(self) -> bool:
        """Whether a message is on its way."""
        return self._sent_at is not None

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
        frames = encode_publish(
            channel=publisher.plain_channel,
            exchange="",
            routing_key=self.queue,
            kind="response",
            correlation_id=self.message_id,
            trace_id=None,
            body=b"{}",
            frame_max=publisher.frame_max,
            expiration=expiration(PING_TIMEOUT),
        )
        with contextlib.suppress(MeshUnavailable):
            publisher.put(now + PING_TIMEOUT, self.message_id, frames)
            self._sent_at = now

    def on_return(self) -> None:
        """Take note that a message has come back."""
        if self._sent_at is not None:
            self.round_trips.append(time.monotonic() - self._sent_at)
        self._sent_at = None
        publishing, _ = self._links
        if not self.proven and publishing.up:
            self.proven = True
            self._on_change()
        called, self._on_proof, self._on_next_proof = self._on_proof, self._on_next_proof, []
        for proven in called:
            proven()
        if self._on_proof:
            self.send()

    async def run(self) -> None:
        """Send messages until cancelled, and drop the connections when one does not come back."""
        due = 0.0
        while True:
            await asyncio.sleep(PING_INTERVAL / 6)
            now = time.monotonic()
            if not all(link.up for link in self._links) or self._is_blocked():
                self.forget()
            elif self._sent_at is not None:
                if now - self._sent_at > PING_TIMEOUT:
                    self.forget()
                    for link in self._links:
                        link.abort("a message to itself did not come back")
            elif now >= due or not self.proven:
                due = now + PING_INTERVAL
                self.send()
