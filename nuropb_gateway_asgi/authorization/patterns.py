"""What a policy is made of: patterns, conditions, rules, and which of two rules is the more specific. Pure.

``docs/policy.md`` explains all of it to operators. Everything here is decided once, when the rules are read; what is
left for the moment of a call is as little as possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import quote

from ..rates import CallRate
from ..topics import check_pattern

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = [
    "Action",
    "CallPattern",
    "Condition",
    "Delivery",
    "Operator",
    "Placeholder",
    "Rule",
    "Scalar",
    "TopicPattern",
    "escape_word",
    "find_claim",
    "is_private",
]

Action: TypeAlias = Literal["call", "subscribe"]
#: What becomes of events for a connection that is too slow for them: it is hung up on, it gets the newest that fit, or
#: it gets the last one of each topic.
Delivery: TypeAlias = Literal["close", "drop_oldest", "latest"]
Operator: TypeAlias = Literal["contains", "in", "equals"]
Scalar: TypeAlias = str | int | float | bool
#: The greater one is the more specific.
Rank: TypeAlias = tuple[int, ...]

_PLACEHOLDER = re.compile(r"\{(user_id|claim:[^{}]+)\}")
_MISSING: Final = object()
_NO_SYNTAX: Final = str.maketrans("", "", ".*#")


def escape_word(text: str) -> str:
    """Write ``text`` such that it can be a topic word, or a part of one, and means nothing but itself.

    What is not an ASCII letter, a digit or one of ``-_@~+=:,`` becomes ``%XX`` for each byte of its UTF-8
    form, so there is no ``.``, ``*`` or ``#`` in the result, and two texts never have the same. A service
    that publishes to the topic of one user writes the user id in the same way.
    """
    # The surrogates: JSON can smuggle half a pair into a claim. The dot: to quote() it is always safe.
    return quote(text, safe="-_@~+=:,", errors="surrogatepass").replace(".", "%2E")


#: The same few words, for every call of a user.
_escape_again = lru_cache(maxsize=1024)(escape_word)


def is_private(method: str) -> bool:
    """Whether no client may ever call this method.

    ``nuropb_describe`` is NuroPb's own method of every service. It tells about all of its methods, so clients get an
    answer of the gateway instead, about those that they may call.
    """
    return method.startswith("_") or method == "nuropb_describe"


# --- claims ---------------------------------------------------------------------------------------------------


def find_claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of this name, or a marker that equals nothing.

    A name is looked for as it stands (``https://app.example/roles`` is one name), and only if there is no such claim
    do its dots lead into nested objects (``realm_access.roles``).
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


def _has(items: Sequence[object], value: object) -> bool:
    """Whether ``value`` is among ``items``, where true is not 1, as it is to Python."""
    if value not in items:
        return False
    if isinstance(value, str):
        return True
    return any(item == value and isinstance(item, bool) == isinstance(value, bool) for item in items)


@dataclass(frozen=True, slots=True)
class Condition:
    """What a claim has to be. A claim that is missing fulfils nothing."""

    claim: str
    operator: Operator
    values: tuple[Scalar, ...]

    def holds(self, claims: Mapping[str, Any]) -> bool:
        """Whether it does.

        ``equals``: the claim is this value. ``in``: it is one of these, or a list in which one of them is.
        ``contains``: it is a list, or words separated by spaces, and all of these are in there.
        """
        claim = find_claim(claims, self.claim)
        if self.operator == "contains":
            # By spaces alone (RFC 6749, 3.3): Python would split a name at any kind of white space within it.
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


# --- patterns -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placeholder:
    """``{user_id}`` or ``{claim:name}``: what it stands for is the caller's, escaped, and never a wildcard."""

    #: Of a claim; None for the user id.
    claim: str | None

    def value(self, identity: Identity) -> str | None:
        """What it stands for, or None: a claim that is missing, empty or no string."""
        found = identity.user_id if self.claim is None else find_claim(identity.claims, self.claim)
        # Empty, it would leave `{claim:team}*` with nothing but the wildcard.
        return _escape_again(found) if isinstance(found, str) and found else None


#: Text as it stands, and placeholders.
_Parts: TypeAlias = tuple[str | Placeholder, ...]


def _parse_parts(pattern: str) -> _Parts:
    """Raises ValueError for braces that are no placeholder."""
    parts: list[str | Placeholder] = []
    end = 0
    for match in _PLACEHOLDER.finditer(pattern):
        parts += (pattern[end : match.start()], Placeholder(match[1].partition(":")[2] or None))
        end = match.end()
    parts.append(pattern[end:])
    if any(isinstance(part, str) and ("{" in part or "}" in part) for part in parts):
        raise ValueError("braces that are not {user_id} or {claim:name}")
    return tuple(part for part in parts if part != "")


def _fill_in(parts: _Parts, identity: Identity) -> Sequence[str] | None:
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.value(identity)
        if text is None:
            return None
        texts.append(text)
    return texts


@dataclass(frozen=True, slots=True)
class _Name:
    """The pattern of a service's or a method's name: text, placeholders, and ``*`` for any run of characters."""

    parts: _Parts

    @property
    def _texts(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def is_literal(self) -> bool:
        """Whether it is one name, for everybody."""
        return not self.has_placeholders and "*" not in self._texts

    @property
    def has_placeholders(self) -> bool:
        """Whether it depends on who calls."""
        return not all(isinstance(part, str) for part in self.parts)

    @property
    def rank(self) -> Rank:
        """Without ``*`` before with, then by the characters that are spelled out, then by the number of ``*``."""
        texts = re.sub(r"\*+", "*", self._texts)
        stars = texts.count("*")
        return (not stars, len(texts) - stars, -stars)

    def may_match(self, name: str) -> bool:
        """Whether it matches for somebody, whatever the placeholders stand for."""
        return _glob("".join(part if isinstance(part, str) else "*" for part in self.parts), name)

    def matches(self, name: str, identity: Identity) -> bool:
        """Whether it matches for this caller. Nothing that a placeholder stands for holds a ``*``."""
        texts = _fill_in(self.parts, identity)
        return texts is not None and _glob("".join(texts), name)

    def fill_in(self, identity: Identity) -> str | None:
        """The name for this caller; None if it has a ``*``, or a placeholder stands for nothing."""
        texts = _fill_in(self.parts, identity)
        return None if texts is None or "*" in self._texts else "".join(texts)

    def covers(self, other: _Name) -> bool:
        """Whether it certainly matches whatever ``other`` does."""
        if self == other:
            return True
        if self.has_placeholders:
            return False
        return set(self._texts) == {"*"} or (other.is_literal and _glob(self._texts, other._texts))


def _glob(pattern: str, text: str) -> bool:
    """Whether ``text`` is like ``pattern``, in which ``*`` is any run of characters.

    What is between two ``*`` is taken where it first occurs: a later place would leave less for the rest. So nothing
    is ever tried again, and the cost does not explode with the number of ``*``.
    """
    first, *others = pattern.split("*")
    if not others:
        return first == text
    *middle, last = others
    if len(first) + len(last) > len(text) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


@dataclass(frozen=True, slots=True)
class CallPattern:
    """``service.method``. The last dot that is not in a placeholder separates them, and no ``*`` reaches across it."""

    text: str
    service: _Name
    method: _Name

    @classmethod
    def parse(cls, text: str, *, placeholders: bool = True) -> CallPattern:
        """Raises ValueError with what is wrong. Without ``placeholders`` a brace is a character like any other."""
        parts = _parse_parts(text) if placeholders else (text,)
        if not all(part.isascii() and part.isprintable() for part in parts if isinstance(part, str)):
            raise ValueError("characters that are not printable ASCII")
        for number in reversed(range(len(parts))):
            part = parts[number]
            if isinstance(part, str) and "." in part:
                before, _, after = part.rpartition(".")
                left = (*parts[:number], before) if before else parts[:number]
                right = (after, *parts[number + 1 :]) if after else parts[number + 1 :]
                if left and right:
                    return cls(text, _Name(left), _Name(right))
                break
        raise ValueError("no service and method with a dot in between")

    @property
    def names_the_method(self) -> bool:
        """Whether it is about one method only, for everybody the same."""
        return self.service.is_literal and self.method.is_literal

    @property
    def is_private(self) -> bool:
        """Whether nothing that it matches could ever be called."""
        first = self.method.parts[0]
        return isinstance(first, str) and is_private(first) and (self.method.is_literal or first.startswith("_"))

    @property
    def rank(self) -> Rank:
        """The service decides before the method."""
        return (*self.service.rank, *self.method.rank)

    def matches(self, service: str, method: str, identity: Identity) -> bool:
        """Whether it matches for this caller."""
        return self.service.matches(service, identity) and self.method.matches(method, identity)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """A topic pattern, with placeholders as words or parts of words."""

    text: str
    parts: _Parts

    @classmethod
    def parse(cls, text: str) -> TopicPattern:
        """Raises ValueError with what is wrong."""
        parts = _parse_parts(text)
        # Any letter shows whether the pattern is valid with something in place of the placeholder.
        reason = check_pattern("".join(part if isinstance(part, str) else "u" for part in parts))
        if reason is not None:
            raise ValueError(reason)
        return cls(text, parts)

    @property
    def rank(self) -> Rank:
        """What it matches less of is more specific.

        Without ``#`` before with; then the number of words that are no wildcards, the number of ``*``, and fewer
        ``#``. So a pattern is always above one that includes it. Then by the characters that are spelled out.
        """
        words = "".join(part if isinstance(part, str) else "{}" for part in self.parts).split(".")
        # The wildcards before, between and after the words that are none. `#.#` and `#.*.#` ask for no more than one #.
        gaps = "".join(word if word in ("*", "#") else "." for word in words).split(".")
        hashes, stars = sum("#" in gap for gap in gaps), sum(gap.count("*") for gap in gaps)
        spelled_out = sum(len(part.translate(_NO_SYNTAX)) for part in self.parts if isinstance(part, str))
        return (not hashes, len(gaps) - 1, stars, -hashes, spelled_out)

    def fill_in(self, identity: Identity) -> str | None:
        """The pattern for this caller; None if a placeholder stands for nothing."""
        texts = _fill_in(self.parts, identity)
        return None if texts is None else "".join(texts)

    def __str__(self) -> str:
        return self.text


# --- rules ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """Some calls or some subscriptions are allowed or denied, to everybody or to those who fulfil the conditions."""

    allows: bool
    methods: tuple[CallPattern, ...] = ()
    topics: tuple[TopicPattern, ...] = ()
    conditions: tuple[Condition, ...] = ()
    rate: CallRate | None = None
    delivery: Delivery = "close"
    #: Where it is written: a file or a setting, and the line in it (0: there are no lines).
    source: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """``policy.toml:12``."""
        return f"{self.source}:{self.line}" if self.line else self.source

    @property
    def patterns(self) -> Iterator[CallPattern | TopicPattern]:
        """All that it is about."""
        yield from self.methods
        yield from self.topics

    def unmet(self, claims: Mapping[str, Any]) -> Condition | None:
        """The first condition that does not hold, or None."""
        return next((condition for condition in self.conditions if not condition.holds(claims)), None)
