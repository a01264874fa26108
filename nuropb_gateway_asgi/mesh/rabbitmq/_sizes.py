"""The broker's limit on the size of a message, which it tells by closing the channel of a larger one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Final

from aiormq.abc import AbstractChannel

from ...exceptions import MessageTooLarge
from ._errors import ending

__all__ = ["SizeLimit"]

logger = logging.getLogger(__name__)

#: RabbitMQ's words on a message above ``max_message_size``; with a limit of its own it leaves out "configured".
_TOO_LARGE: Final = re.compile(r"message size (\d+) is larger than (?:configured )?max size (\d+)")


class SizeLimit:
    """The limit, as far as it is known. Until the broker has refused a message there is none.

    It is forgotten when a connection is lost by another cause, as the broker may have been configured anew by then.
    """

    def __init__(self) -> None:
        #: Bytes of a body, or None.
        self.limit: int | None = None

    def check(self, body: bytes) -> None:
        """Raise MessageTooLarge for a body that the broker would refuse."""
        if self.limit is not None and len(body) > self.limit:
            raise self.error()

    def error(self) -> MessageTooLarge:
        """Return the error for a message that is too large."""
        return MessageTooLarge(f"The message is larger than the broker takes; the limit is {self.limit} bytes")

    def refuses(self, body: bytes, error: BaseException) -> bool:
        """Return whether a channel was closed by ``error`` because of this body; the limit is known then."""
        found = _TOO_LARGE.search(str(error))
        if found is None or int(found[1]) != len(body):
            return False
        self.limit = int(found[2])
        return True

    def learn(self, channels: Iterable[AbstractChannel]) -> int | None:
        """Look at the end of ``channels``; return the size of the message that one of them was closed for, or None."""
        for channel in channels:
            found = _TOO_LARGE.search(str(ending(channel.closing) or ""))
            if found is not None:
                self.limit = int(found[2])
                logger.warning(
                    "mesh: a message of %s bytes is above the broker's max_message_size of %s; larger ones are refused "
                    "from now on",
                    *found.groups(),
                )
                return int(found[1])
        self.limit = None
        return None
