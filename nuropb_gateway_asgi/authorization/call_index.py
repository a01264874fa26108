"""An index of a policy's call patterns: finds those about a method or a service. Pure.

A search looks only at patterns whose names begin as those of the call, so the number of the others hardly matters.
Patterns are split once, when the policy is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar

from .globs import Glob
from .patterns import CallPattern
from .precedence import Entry

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = ["CallIndex", "Test", "make_test"]

T = TypeVar("T")

#: The test whether an entry about a method applies to an identity. None: it applies to every identity.
Test: TypeAlias = "Callable[[Identity], bool] | None"


class _Row(NamedTuple):
    """An entry with its patterns, prepared. ``place`` is its place among all entries: 0 is the strongest."""

    place: int
    service: Glob
    method: Glob
    entry: Entry[CallPattern]


class _Prefixes(Generic[T]):
    """Values by prefixes of names: a search takes one look-up for each length that prefixes have."""

    __slots__ = ("lengths", "values")

    def __init__(self) -> None:
        self.values: dict[str, T] = {}
        self.lengths: set[int] = set()

    def add(self, prefix: str, value: T) -> T:
        """Return the value of ``prefix``, which is set if it is missing."""
        self.lengths.add(len(prefix))
        return self.values.setdefault(prefix, value)

    def of(self, name: str) -> Iterator[T]:
        """Yield the values of all prefixes of ``name``."""
        for length in self.lengths:
            value = self.values.get(name[:length]) if length <= len(name) else None
            if value is not None:
                yield value


class CallIndex:
    """The call patterns of a policy. ``entries`` come with the strongest first, and are found in this order.

    Patterns find ``own_service``, the gateway's own name, only if they spell it out.
    """

    __slots__ = ("_named", "_own_service", "_wide")

    def __init__(self, entries: Iterable[Entry[CallPattern]], own_service: str = "") -> None:
        self._own_service = own_service
        #: Rows by the name of their service, or by the beginning of a service's name with a wildcard or placeholder;
        #: and then by the beginning of the method's name.
        self._named: dict[str, _Prefixes[list[_Row]]] = {}
        self._wide: _Prefixes[_Prefixes[list[_Row]]] = _Prefixes()
        for place, entry in enumerate(entries):
            pattern = entry.pattern
            row = _Row(place, pattern.service.widest, pattern.method.widest, entry)
            if pattern.service.is_literal:
                methods = self._named.setdefault(row.service.prefix, _Prefixes())
            else:
                methods = self._wide.add(row.service.prefix, _Prefixes())
            methods.add(row.method.prefix, []).append(row)

    def about(self, service: str, method: str | None = None) -> list[Entry[CallPattern]]:
        """Return the entries that may apply to this method, or to any method of the service, strongest first."""
        tables = [self._named[service]] if service in self._named else []
        # Denials with a wildcard do not concern the own service, either: they are weaker than those without.
        if service != self._own_service:
            tables += self._wide.of(service)
        rows = [
            row
            for table in tables
            for some in (table.values.values() if method is None else table.of(method))
            for row in some
            if row.service.matches(service) and (method is None or row.method.matches(method))
        ]
        rows.sort(key=itemgetter(0))
        return [row.entry for row in rows]


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
