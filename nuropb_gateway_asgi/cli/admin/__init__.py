"""What may an operator type to act on a running gateway? The command ``admin``, by the gateway's admin API."""

from __future__ import annotations

from .commands import admin

__all__ = ["admin"]
