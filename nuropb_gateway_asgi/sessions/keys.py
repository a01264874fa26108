"""The keys of resumable sessions. Pure but for the source of randomness.

A key names the process that has the session, by its instance id, and holds 256 random bits. The gateway stores digests
only, so neither a log of its memory nor a look-up that takes longer for a better guess gives a key away.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

__all__ = ["digest_of", "make_key", "process_of"]

#: Bytes of randomness in a key.
_RANDOM: Final = 32


def make_key(instance_id: str) -> str:
    """Make a key of a session at the process ``instance_id``: printable ASCII, at most 150 characters."""
    return f"{instance_id}:{secrets.token_urlsafe(_RANDOM)}"


def process_of(key: str) -> str:
    """Return the instance id of the process that made a key; "" for text that no process made."""
    return key.rpartition(":")[0]


def digest_of(key: str) -> bytes:
    """Return the digest by which a key is stored."""
    return hashlib.sha256(key.encode()).digest()
