"""Decisions with their reasons, for operators; clients see only whether something is allowed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from ..rates import CallRate
from ..topics import MAX_BYTES
from .patterns import CallPattern, TopicPattern, is_private
from .rules import Rule

__all__ = ["NO_NAME", "NO_PATTERN", "NO_RULE", "Considered", "Decision", "is_callable"]


@dataclass(frozen=True, slots=True)
class Decision:
    """A permission or a refusal, with its reason. Its truth value is ``allowed``."""

    allowed: bool
    reason: str
    #: The rule and the pattern that decided, if any did.
    rule: Rule | None = None
    pattern: CallPattern | TopicPattern | None = None

    @property
    def rate(self) -> CallRate | None:
        """The rate of the rule that decided."""
        return None if self.rule is None else self.rule.rate

    def __bool__(self) -> bool:
        return self.allowed


class Considered(NamedTuple):
    """A rule that applies to a request by one of its patterns, and why it decides or does not."""

    rule: Rule
    pattern: CallPattern | TopicPattern
    decides: bool
    why: str


NO_RULE: Final = Decision(False, "no rule allows it")
NO_NAME: Final = Decision(False, "clients can never call a method of this name")
NO_PATTERN: Final = Decision(False, "not a topic pattern")


def is_callable(service: str, method: str) -> bool:
    """Return whether any policy may allow calls of this method."""
    fits = 0 < len(service) <= MAX_BYTES and 0 < len(method) <= MAX_BYTES
    # With a dot in the method, ("a", "b.c") would match the patterns of ("a.b", "c").
    return fits and "." not in method and not is_private(method)
