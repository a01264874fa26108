"""The command ``serve``."""

from .processes import serve

__all__ = ["serve"]
