"""Claims of a token, and conditions on them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

__all__ = ["Condition", "Operator", "Scalar", "find_claim"]

Operator: TypeAlias = Literal["contains", "in", "equals"]
Scalar: TypeAlias = str | int | float | bool

_MISSING: Final = object()


def find_claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return the claim of this name, or, if it is missing, a marker that equals no value.

    The whole name comes first (``https://app.example/roles`` is one name). Only if there is no such claim do its dots
    lead into nested objects (``realm_access.roles``).
    """
    found = claims.get(name, _MISSING)
    if found is not _MISSING or "." not in name:
        return found
    found = claims
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _MISSING
        found = found[part]
    return found


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on one claim. A missing claim fulfils no condition."""

    claim: str
    operator: Operator
    values: tuple[Scalar, ...]

    def holds(self, claims: Mapping[str, Any]) -> bool:
        """Return whether these claims fulfil the condition.

        ``equals``: the claim is this value. ``in``: it is one of these values, or a list that contains one of them.
        ``contains``: it is a list, or a string of words separated by spaces, that contains all of these values.
        """
        claim = find_claim(claims, self.claim)
        if self.operator == "contains":
            # By spaces alone (RFC 6749, 3.3): str.split() would also split a name at other white space within it.
            have = [word for word in claim.split(" ") if word] if isinstance(claim, str) else claim
            if not isinstance(have, list | tuple):
                return False
            return all(_has(have, value) for value in self.values)
        if self.operator == "in" and isinstance(claim, list | tuple):
            return any(_has(self.values, one) for one in claim)
        return _has(self.values, claim)

    def __str__(self) -> str:
        values = [str(value).lower() if isinstance(value, bool) else repr(value) for value in self.values]
        return f"{self.claim} {self.operator} {values[0] if self.operator == 'equals' else ' '.join(values)}"


def _has(items: Sequence[object], value: object) -> bool:
    """Return whether ``items`` contain ``value``; unlike in Python, True is not 1."""
    if value not in items:
        return False
    if isinstance(value, str):
        return True
    return any(item == value and isinstance(item, bool) == isinstance(value, bool) for item in items)
