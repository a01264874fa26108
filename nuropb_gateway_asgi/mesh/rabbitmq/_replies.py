"""The reply queue of a process: replies to its calls, and the keys of encrypted calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ...wire import codec
from ...wire.encryption import UndecryptableMessage, decrypt_reply
from ...wire.interface import MeshReceiver
from ._frames import Incoming
from ._self_check import SelfCheck
from ._statistics import RabbitMQStatistics

__all__ = ["ReplyQueue"]

logger = logging.getLogger(__name__)


class ReplyQueue:
    """Gives the replies of a queue to the receiver; drops messages that are no replies, or not to a call in flight.

    ``checks`` get the messages that the process sends to itself.
    """

    def __init__(self, name: str, statistics: RabbitMQStatistics, checks: Iterable[SelfCheck]) -> None:
        self.name = name
        self._statistics = statistics
        self._on_own: dict[str | None, Callable[[bytes], None]] = {each.message_id: each.on_return for each in checks}
        self._receiver: MeshReceiver
        #: The keys of encrypted requests in flight, by their correlation ids.
        self.keys: dict[str, bytes] = {}

    def bind(self, receiver: MeshReceiver) -> None:
        """Set the receiver of replies."""
        self._receiver = receiver

    def on_message(self, message: Incoming) -> None:
        """Take a message of the queue."""
        correlation_id = message.correlation_id
        if correlation_id in self._on_own:
            self._on_own[correlation_id](message.body)
            return
        try:
            if message.kind != "response":
                raise codec.InvalidMessage("not a response")
            if correlation_id is None:
                raise codec.InvalidMessage("no correlation id")
            if not self._receiver.expects(correlation_id):
                return
            body = message.body
            key = self.keys.get(correlation_id)
            if key is not None:
                if not message.encrypted:
                    raise codec.InvalidMessage("the response to an encrypted call is not encrypted")
                body = decrypt_reply(body, key)
            reply = codec.decode_reply(correlation_id, body)
        except codec.NotJson:
            self.keys.pop(str(correlation_id), None)
            self._receiver.on_unreadable(str(correlation_id))
        except (codec.InvalidMessage, UndecryptableMessage) as error:
            self._statistics.dropped_replies += 1
            logger.debug("mesh: a message on the reply queue was dropped: %s", error)
        else:
            self.keys.pop(correlation_id, None)
            self._statistics.replies += 1
            self._receiver.on_reply(reply)
