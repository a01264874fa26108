"""Precedence: which of two rules is the stronger one, and why. Pure. ``docs/policy.md`` has the order for operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Generic, TypeVar

from .decisions import Decision
from .patterns import CallPattern, TopicPattern
from .rules import Rule

__all__ = ["CALL_ADVANTAGES", "TOPIC_ADVANTAGES", "Entry", "sort_entries", "weakness"]

P = TypeVar("P", CallPattern, TopicPattern)


class Entry(Generic[P]):
    """A pattern of a rule, with its strength. The strongest entry that applies decides."""

    __slots__ = ("decision", "key", "number", "pattern", "rule")

    def __init__(self, rule: Rule, pattern: P, number: int) -> None:
        self.rule = rule
        self.pattern: P = pattern
        #: The entry's place in the file.
        self.number = number
        #: The strength: the greater key wins. It ends with the unique number, so no two keys are equal.
        self.key = (*pattern.rank, bool(rule.conditions), not rule.allows, -number)
        verb = "allows" if rule.allows else "denies"
        self.decision = Decision(rule.allows, f"{rule.where} {verb} {pattern}", rule, pattern)


#: The advantage of the stronger of two entries, by the first member in which their keys differ.
CALL_ADVANTAGES: Final = (
    "names the service without *",
    "spells out more of the service",
    "has fewer * for the service",
    "names the method without *",
    "spells out more of the method",
    "has fewer * for the method",
    "has conditions",
    "denies",
    "comes first",
)
TOPIC_ADVANTAGES: Final = (
    "has no #",
    "has more words that are not wildcards",
    "has more *",
    "has fewer #",
    "spells out more",
    "has conditions",
    "denies",
    "comes first",
)


def sort_entries(patterns: Iterable[tuple[Rule, P]]) -> list[Entry[P]]:
    """Return an entry for each rule and pattern, in the order of the file; the result has the strongest first."""
    entries = [Entry(rule, pattern, number) for number, (rule, pattern) in enumerate(patterns)]
    return sorted(entries, key=lambda entry: entry.key, reverse=True)


def weakness(entry: Entry[P], stronger: Entry[P], advantages: Sequence[str]) -> str:
    """Explain why ``stronger`` takes precedence over ``entry``."""
    pairs = zip(advantages, entry.key, stronger.key, strict=True)
    advantage = next(text for text, mine, its in pairs if mine != its)
    return f"is weaker than {stronger.rule.where}, which {advantage}"
