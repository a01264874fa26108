"""Patterns of names with ``*``. Pure."""

from __future__ import annotations

__all__ = ["Glob", "matches_glob"]


class Glob:
    """A pattern of names in which ``*`` is any run of characters, split once.

    Each piece between two ``*`` is taken at its first occurrence: a later one would leave less text for the rest. There
    is no backtracking, so the cost stays linear in the number of ``*``.
    """

    __slots__ = ("_first", "_last", "_middle")

    def __init__(self, pattern: str) -> None:
        self._first, *others = pattern.split("*")
        #: The end of the names; None if the pattern has no ``*``.
        self._last = others.pop() if others else None
        self._middle = others

    @property
    def prefix(self) -> str:
        """The text before the first ``*``: the beginning of every name that matches."""
        return self._first

    def matches(self, name: str) -> bool:
        """Return whether the pattern matches ``name``."""
        first, last = self._first, self._last
        if last is None:
            return first == name
        if not name.startswith(first) or not name.endswith(last) or len(first) + len(last) > len(name):
            return False
        at, end = len(first), len(name) - len(last)
        for piece in self._middle:
            at = name.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True


def matches_glob(pattern: str, text: str) -> bool:
    """Return whether ``text`` matches ``pattern``, in which ``*`` is any run of characters."""
    return Glob(pattern).matches(text)
