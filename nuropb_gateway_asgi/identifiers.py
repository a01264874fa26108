"""Names that nobody else has and nobody can guess."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["new_id"]

_BYTES: Final = 16
#: How many are made at a time: asking the kernel costs more than all the rest.
_BATCH: Final = 256

_ids: list[str] = []


def new_id() -> str:
    """128 random bits, as 32 hexadecimal digits."""
    if not _ids:
        digits = os.urandom(_BYTES * _BATCH).hex()
        _ids.extend(digits[start : start + 2 * _BYTES] for start in range(0, len(digits), 2 * _BYTES))
    return _ids.pop()


if hasattr(os, "register_at_fork"):  # two processes must not have the same ones
    os.register_at_fork(after_in_child=_ids.clear)
