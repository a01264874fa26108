"""Key sets as documents: read away from the event loop if they are large, and told in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import anyio.to_thread

from .keys import IgnoredKey, KeyRing, read_key_set, reasons

__all__ = ["log_keys", "read_document"]

logger = logging.getLogger(__name__)

#: Bytes of a key set that is read on the event loop. Larger ones are read in a thread: 500 keys take 0.1 s.
SMALL: Final = 16384


async def read_document(body: bytes, algorithms: Sequence[str] | None) -> tuple[KeyRing, list[IgnoredKey]]:
    """Read a key set, a large one in a thread. Raises Unacceptable. Cancellation takes effect at once."""
    if len(body) <= SMALL:
        return read_key_set(body, algorithms)
    return await anyio.to_thread.run_sync(read_key_set, body, algorithms, abandon_on_cancel=True)


def log_keys(url: str, ring: KeyRing, ignored: Sequence[IgnoredKey]) -> None:
    """Log the keys in use, and why others are ignored."""
    logger.info("keys: %d of %s%s", len(ring.keys), url, reasons(ignored))
    if any(key.shows_secret for key in ignored):
        logger.warning(
            "keys: %s publishes private keys, and every reader can sign tokens with them; replace these keys", url
        )
