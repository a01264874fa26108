"""The command ``doctor``."""

from .steps import doctor

__all__ = ["doctor"]
