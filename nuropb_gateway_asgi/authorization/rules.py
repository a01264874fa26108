"""Rules: one permission or denial each, with its patterns, conditions and options. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..rates import CallRate
from .claims import Condition
from .patterns import CallPattern, TopicPattern

__all__ = ["Action", "Delivery", "Rule"]

Action: TypeAlias = Literal["call", "subscribe"]
#: The handling of events for a connection that reads too slowly: close the connection, drop the oldest events, or keep
#: the latest event of each topic.
Delivery: TypeAlias = Literal["close", "drop_oldest", "latest"]


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule that allows or denies calls or subscriptions, to every user or to those who fulfil its conditions."""

    allows: bool
    methods: tuple[CallPattern, ...] = ()
    topics: tuple[TopicPattern, ...] = ()
    conditions: tuple[Condition, ...] = ()
    rate: CallRate | None = None
    delivery: Delivery = "close"
    #: The file or the setting that has the rule, and its line there (0: a setting, without lines).
    source: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """The rule's place, such as ``policy.toml:12``."""
        return f"{self.source}:{self.line}" if self.line else self.source

    @property
    def patterns(self) -> Iterator[CallPattern | TopicPattern]:
        """All patterns of the rule."""
        yield from self.methods
        yield from self.topics

    def unmet(self, claims: Mapping[str, Any]) -> Condition | None:
        """Return the first condition that these claims do not fulfil, or None."""
        return next((condition for condition in self.conditions if not condition.holds(claims)), None)
