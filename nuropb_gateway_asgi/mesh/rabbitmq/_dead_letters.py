"""Dead letters of the vhost, by their correlation ids: of a command that fails, nothing else tells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused

from ...wire import codec
from ._connection import Connection
from ._errors import explain
from ._frames import Incoming
from ._peers import Consume

__all__ = ["DeadLetters"]

logger = logging.getLogger(__name__)

#: The copies are for counting. A flood of dead letters must not wait here, and its last part counts as well as any.
LIMITS: Final[dict[str, Any]] = {"x-max-length": 1000, "x-max-length-bytes": 4_000_000, "x-message-ttl": 10_000}


class DeadLetters:
    """A queue with copies of all dead letters. ``on_message`` is called with the correlation id of each.

    The bodies, which have the tokens of callers, are not decoded. A user that may not read the exchange gets a warning
    in the log, and failed commands are not counted.
    """

    def __init__(self, queue: str, on_message: Callable[[str], None], *, queue_arguments: Mapping[str, Any]) -> None:
        self.queue = queue
        self._on_message = on_message
        self._arguments = {**LIMITS, **queue_arguments}
        self._has_warned = False

    async def set_up(self, connection: Connection, consume: Consume) -> list[AbstractChannel]:
        """Declare the queue and consume it; return its channel, whose end is the connection's end."""
        return [await consume(self.queue, self._take)] if await self.reassert(connection) else []

    async def reassert(self, connection: Connection) -> bool:
        """Declare queue and binding; return whether the user may do so."""
        try:
            async with connection.channel() as channel:
                await channel.queue_declare(self.queue, durable=True, arguments=self._arguments)
                await channel.queue_bind(self.queue, codec.DEAD_LETTER_EXCHANGE, "")
        except ChannelAccessRefused as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "mesh: failed commands do not count for their users, as %s cannot be read: %s",
                    codec.DEAD_LETTER_EXCHANGE,
                    explain(error),
                )
            return False
        return True

    def _take(self, message: Incoming) -> None:
        if message.correlation_id is not None:
            self._on_message(message.correlation_id)
