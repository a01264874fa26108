"""An index of a policy's call patterns: finds those about a method or a service. Pure.

Most patterns name their service, so a search looks at the patterns of its service and at those with a wildcard or a
placeholder in the service's name. Patterns are split once, when the policy is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .globs import Glob
from .patterns import CallPattern
from .precedence import Entry

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = ["CallIndex", "Test", "make_test"]

#: The test whether an entry about a method applies to an identity. None: it applies to every identity.
Test: TypeAlias = "Callable[[Identity], bool] | None"


class _Row(NamedTuple):
    """An entry with its patterns, prepared. ``place`` is its place among all entries: 0 is the strongest."""

    place: int
    service: Glob
    method: Glob
    entry: Entry[CallPattern]


class CallIndex:
    """The call patterns of a policy. ``entries`` come with the strongest first, and are found in this order.

    Patterns find ``own_service``, the gateway's own name, only if they spell it out.
    """

    __slots__ = ("_by_service", "_own_service", "_wide")

    def __init__(self, entries: Iterable[Entry[CallPattern]], own_service: str = "") -> None:
        self._own_service = own_service
        self._by_service: dict[str, list[_Row]] = {}
        self._wide: list[_Row] = []
        for place, entry in enumerate(entries):
            pattern = entry.pattern
            row = _Row(place, pattern.service.widest, pattern.method.widest, entry)
            if pattern.service.is_literal:
                name = "".join(part for part in pattern.service.parts if isinstance(part, str))
                self._by_service.setdefault(name, []).append(row)
            else:
                self._wide.append(row)

    def about(self, service: str, method: str | None = None) -> Iterator[Entry[CallPattern]]:
        """Yield the entries that may apply to this method, or to any method of the service, strongest first."""
        rows: Iterable[_Row] = self._by_service.get(service, ())
        # Denials with a wildcard do not concern the own service, either: they are weaker than those without.
        if service != self._own_service and self._wide:
            wide = (row for row in self._wide if row.service.matches(service))
            rows = merge(rows, wide, key=itemgetter(0)) if rows else wide
        for row in rows:
            if method is None or row.method.matches(method):
                yield row.entry


def make_test(entry: Entry[CallPattern], service: str, method: str) -> Test:
    """Return the test whether the entry applies to an identity; None if it applies to every identity."""
    conditions, pattern = entry.rule.conditions, entry.pattern
    names = ((pattern.service, service), (pattern.method, method))
    # Patterns without placeholders match: the entry would not be a candidate otherwise.
    left = [(each, name) for each, name in names if each.has_placeholders]
    if not conditions and not left:
        return None

    def test(identity: Identity) -> bool:
        claims = identity.claims
        for condition in conditions:
            if not condition.holds(claims):
                return False
        return not left or all(each.matches(name, identity) for each, name in left)

    return test
