"""Keys that verify tokens, read and checked before they are used."""

from __future__ import annotations

from .configured import (
    SET_ALGORITHMS,
    IgnoredKey,
    Key,
    KeyRing,
    check_algorithms,
    issue_token,
    new_secret,
    read_key,
    read_key_set,
)

__all__ = [
    "SET_ALGORITHMS",
    "IgnoredKey",
    "Key",
    "KeyRing",
    "check_algorithms",
    "issue_token",
    "new_secret",
    "read_key",
    "read_key_set",
]
