"""Rules: one permission or denial each, with its patterns, conditions and options. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..rates import CallRate
from .claims import Condition
from .patterns import CallPattern, TopicPattern

__all__ = ["Action", "Delivery", "Rule", "ToolOptions"]

Action: TypeAlias = Literal["call", "subscribe", "tool"]
#: The handling of events for a connection that reads too slowly: close the connection, drop the oldest events, or keep
#: the latest event of each topic.
Delivery: TypeAlias = Literal["close", "drop_oldest", "latest"]


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """The options of a rule about tools. A hint of None is not told to agents."""

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None
    #: Whether the tool sends a command, which has no result, in place of a request.
    is_command: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule that allows or denies calls, tools or subscriptions, to every user or to those who fulfil its conditions.

    A rule with ``tool`` is about the tools of agents: its ``methods`` are the tools, and it neither allows nor denies
    a call.
    """

    allows: bool
    methods: tuple[CallPattern, ...] = ()
    topics: tuple[TopicPattern, ...] = ()
    conditions: tuple[Condition, ...] = ()
    rate: CallRate | None = None
    delivery: Delivery = "close"
    tool: ToolOptions | None = None
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
