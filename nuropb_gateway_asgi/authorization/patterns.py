"""Patterns of methods and topics, with wildcards and placeholders. Pure.

``docs/policy.md`` explains them to operators. A pattern is parsed and ranked once, when its rule is read; the work left
for each call is as small as possible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote

from ..topics import check_pattern
from .claims import find_claim
from .globs import Glob, matches_glob

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = [
    "CallPattern",
    "NamePattern",
    "Parts",
    "Placeholder",
    "TopicPattern",
    "escape_word",
    "fill_in",
    "is_private",
]

#: The greater rank is the more specific one.
Rank: TypeAlias = tuple[int, ...]

_PLACEHOLDER = re.compile(r"\{(user_id|claim:[^{}]+)\}")
#: A character that no value of a placeholder contains (see `escape_word`), and that is not a wildcard.
_SEPARATOR: Final = re.compile(r"[^A-Za-z0-9\-_@~+=:,%*#]")
_NO_SYNTAX: Final = str.maketrans("", "", ".*#")


def escape_word(text: str) -> str:
    """Write ``text`` such that it is valid as a topic word, or as a part of one, and means only itself.

    Every character except ASCII letters, digits and ``-_@~+=:,`` becomes ``%XX`` for each byte of its UTF-8 form. The
    result therefore contains no ``.``, ``*`` or ``#``, and different texts have different results. A service that
    publishes to the topic of one user has to write the user id in the same way.
    """
    # The surrogates: JSON can smuggle half a pair into a claim. The dot: quote() always leaves it as it is.
    return quote(text, safe="-_@~+=:,", errors="surrogatepass").replace(".", "%2E")


#: The calls of one user escape the same few words again and again.
_escape_again = lru_cache(maxsize=1024)(escape_word)


def is_private(method: str) -> bool:
    """Return whether no client may ever call this method.

    ``nuropb_describe`` is NuroPb's own method of every service. It lists all methods of the service; clients get the
    gateway's own answer instead, with the methods that they may call.
    """
    return method.startswith("_") or method == "nuropb_describe"


# --- placeholders ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placeholder:
    """``{user_id}`` or ``{claim:name}``. Its value is the caller's, escaped, and never a wildcard."""

    #: The name of the claim; None for the user id.
    claim: str | None

    def value(self, identity: Identity) -> str | None:
        """Return the value for this caller, or None if the claim is missing, empty or not a string."""
        found = identity.user_id if self.claim is None else find_claim(identity.claims, self.claim)
        # An empty value would leave nothing but the wildcard of `{claim:team}*`.
        return _escape_again(found) if isinstance(found, str) and found else None


#: Literal text and placeholders.
Parts: TypeAlias = tuple[str | Placeholder, ...]


def _parse_parts(pattern: str) -> Parts:
    """Parse text and placeholders.

    Raises ValueError for braces that are not a placeholder, and for two placeholders whose values cannot be told apart:
    ``{user_id}{claim:team}`` would be the same topic for the user ``ab`` of team ``c`` and the user ``a`` of team
    ``bc``, and so would ``{user_id}-{claim:team}`` for ids with a ``-``.
    """
    parts: list[str | Placeholder] = []
    end = 0
    for match in _PLACEHOLDER.finditer(pattern):
        parts += (pattern[end : match.start()], Placeholder(match[1].partition(":")[2] or None))
        end = match.end()
    parts.append(pattern[end:])
    if any(isinstance(part, str) and ("{" in part or "}" in part) for part in parts):
        raise ValueError("braces that are not {user_id} or {claim:name}")
    # Every second part is a placeholder, and those between them are the texts that have to separate their values.
    if not all(isinstance(part, str) and _SEPARATOR.search(part) for part in parts[2:-1:2]):
        raise ValueError("two placeholders in one word; separate them by a dot")
    return tuple(part for part in parts if part != "")


def fill_in(parts: Parts, identity: Identity) -> str | None:
    """Return the text of the parts with the caller's values, or None if a placeholder has no value."""
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.value(identity)
        if text is None:
            return None
        texts.append(text)
    return "".join(texts)


# --- calls ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NamePattern:
    """The pattern of a service's or a method's name: text, placeholders, and ``*`` for any run of characters."""

    parts: Parts

    @property
    def _texts(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def is_literal(self) -> bool:
        """Whether the pattern matches a single name, the same for every caller."""
        return not self.has_placeholders and "*" not in self._texts

    @property
    def has_placeholders(self) -> bool:
        """Whether the pattern depends on the caller."""
        return not all(isinstance(part, str) for part in self.parts)

    @property
    def rank(self) -> Rank:
        """No ``*`` above any ``*``; then more characters that are spelled out; then fewer ``*``."""
        texts = re.sub(r"\*+", "*", self._texts)
        stars = texts.count("*")
        return (not stars, len(texts) - stars, -stars)

    @property
    def widest(self) -> Glob:
        """The names that the pattern matches for some caller, that is, for some values of its placeholders."""
        return Glob("".join(part if isinstance(part, str) else "*" for part in self.parts))

    def matches(self, name: str, identity: Identity) -> bool:
        """Return whether the pattern matches for this caller. The values of placeholders contain no ``*``."""
        text = fill_in(self.parts, identity)
        return text is not None and matches_glob(text, name)

    def fill_in(self, identity: Identity) -> str | None:
        """Return the name for this caller, or None if the pattern has a ``*`` or a placeholder without a value."""
        return None if "*" in self._texts else fill_in(self.parts, identity)

    def covers(self, other: NamePattern) -> bool:
        """Return whether this pattern certainly matches every name that ``other`` matches."""
        if self == other:
            return True
        if self.has_placeholders:
            return False
        return set(self._texts) == {"*"} or (other.is_literal and matches_glob(self._texts, other._texts))


@dataclass(frozen=True, slots=True)
class CallPattern:
    """``service.method``. The last dot outside of placeholders separates the two, and no ``*`` matches across it."""

    text: str
    service: NamePattern
    method: NamePattern

    @classmethod
    def parse(cls, text: str, *, placeholders: bool = True) -> CallPattern:
        """Parse a pattern. Without ``placeholders`` a brace is a character like any other.

        Raises ValueError with the fault.
        """
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
                    return cls(text, NamePattern(left), NamePattern(right))
                break
        raise ValueError("no service and method with a dot between them")

    @property
    def names_the_method(self) -> bool:
        """Whether the pattern matches a single method, the same for every caller."""
        return self.service.is_literal and self.method.is_literal

    @property
    def is_private(self) -> bool:
        """Whether the pattern matches only methods that clients can never call."""
        first = self.method.parts[0]
        return isinstance(first, str) and is_private(first) and (self.method.is_literal or first.startswith("_"))

    @property
    def rank(self) -> Rank:
        """The rank of the service, then that of the method."""
        return (*self.service.rank, *self.method.rank)

    def matches(self, service: str, method: str, identity: Identity) -> bool:
        """Return whether the pattern matches for this caller."""
        return self.service.matches(service, identity) and self.method.matches(method, identity)

    def __str__(self) -> str:
        return self.text


# --- topics ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """A topic pattern, with placeholders as words or parts of words."""

    text: str
    parts: Parts

    @classmethod
    def parse(cls, text: str) -> TopicPattern:
        """Parse a pattern. Raises ValueError with the fault."""
        parts = _parse_parts(text)
        # Any letter in place of a placeholder shows whether the pattern is valid.
        reason = check_pattern("".join(part if isinstance(part, str) else "u" for part in parts))
        if reason is not None:
            raise ValueError(reason)
        return cls(text, parts)

    @property
    def words(self) -> list[str | Parts]:
        """The words of the pattern; a word with placeholders is a tuple of its parts."""
        words: list[list[str | Placeholder]] = [[]]
        for part in self.parts:
            first, *others = part.split(".") if isinstance(part, str) else (part,)
            words[-1].append(first)
            words += ([other] for other in others)
        return [_join(word) for word in words]

    @property
    def rank(self) -> Rank:
        """No ``#`` above any ``#``; then more literal words, more ``*``, fewer ``#``, more characters spelled out.

        A pattern therefore always ranks above a pattern that includes it.
        """
        words = "".join(part if isinstance(part, str) else "{}" for part in self.parts).split(".")
        # The runs of wildcards around the literal words. `#.#` and `#.*.#` need no more than one #.
        gaps = "".join(word if word in ("*", "#") else "." for word in words).split(".")
        hashes, stars = sum("#" in gap for gap in gaps), sum(gap.count("*") for gap in gaps)
        spelled_out = sum(len(part.translate(_NO_SYNTAX)) for part in self.parts if isinstance(part, str))
        return (not hashes, len(gaps) - 1, stars, -hashes, spelled_out)

    def fill_in(self, identity: Identity) -> str | None:
        """Return the pattern for this caller, or None if a placeholder has no value."""
        return fill_in(self.parts, identity)

    def __str__(self) -> str:
        return self.text


def _join(word: Sequence[str | Placeholder]) -> str | Parts:
    texts = [part for part in word if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(word) else tuple(part for part in word if part != "")
