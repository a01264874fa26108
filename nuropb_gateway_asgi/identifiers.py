"""Random identifiers, unique and impossible to guess."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["new_id"]

_BYTES: Final = 16
#: Identifiers made at a time, because asking the kernel for random bytes costs more than all the rest.
_BATCH: Final = 256

_ids: list[str] = []


def new_id() -> str:
    """Return 128 random bits as 32 hexadecimal digits."""
    if not _ids:
        digits = os.urandom(_BYTES * _BATCH).hex()
        _ids.extend(digits[start : start + 2 * _BYTES] for start in range(0, len(digits), 2 * _BYTES))
    return _ids.pop()


if hasattr(os, "register_at_fork"):  # two processes must not use the same identifiers
    os.register_at_fork(after_in_child=_ids.clear)
