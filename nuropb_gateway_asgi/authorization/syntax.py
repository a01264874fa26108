"""The policy file: TOML in, rules out, or one line that says what is wrong and where. Pure.

``docs/policy.md`` describes the file to operators.
"""

from __future__ import annotations

import math
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Never, TypeVar

from ..exceptions import PolicyError
from ..rates import MAX_COUNT, RATE_SYNTAX, CallRate, Rate, parse_rate
from .patterns import Action, CallPattern, Condition, Delivery, Operator, Rule, Scalar, TopicPattern

__all__ = ["parse_policy"]

_KEYS: Final = ("allow", "deny", "methods", "topics", "when", "rate", "burst", "per", "delivery")
_ACTIONS: Final[tuple[Action, ...]] = typing.get_args(Action)
_DELIVERIES: Final[tuple[Delivery, ...]] = typing.get_args(Delivery)
_OPERATORS: Final[tuple[Operator, ...]] = typing.get_args(Operator)
_PER: Final[tuple[Literal["user", "process"], ...]] = ("user", "process")

#: What nuropb and the client protocol take for names, beside the wildcard.
_SERVICE_NAME = re.compile(r"[!-~]*")
_METHOD_NAME = re.compile(r"[A-Za-z0-9_*]*")
_METHODS_SYNTAX: Final = (
    "service.method, with * for any run of characters and {user_id} or {claim:name} for the caller's, "
    "such as orders.* or users.me"
)
_TOPICS_SYNTAX: Final = (
    "words separated by dots, * for one word, # for any number of words, {user_id} or {claim:name} in a word, "
    "such as orders.# or users.{user_id}.*"
)
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")

_CONDITION_SYNTAX: Final = (
    'a condition on a claim, with contains, in or equals, such as { role = { equals = "admin" } }'
)
_KINDS: Final = ((str, "a long string"), (int | float, "a number"), (list, "a list"), (dict, "a table"))

P = TypeVar("P", CallPattern, TopicPattern)
_Choice = TypeVar("_Choice", bound=str)


def parse_policy(data: bytes, source: str) -> tuple[Rule, ...]:
    """The rules in a policy file, in its order. ``source`` is its name, for rules and errors.

    Raises PolicyError for the first mistake.
    """
    text = _decode(data, source)
    document = _parse_toml(text, source)
    lines = _Lines(text, source)
    for key in document:
        if key != "rule":
            lines.fail(lines.of_key(key), f"{key!r} is not known", "[[rule]]")
    rules = document.get("rule")
    if rules is not None and not lines.rules:
        lines.fail(lines.of_key("rule"), "'rule' is not a list of tables", "[[rule]]")
    if not rules:
        # Most likely the file is being written, or was cut off: an operator who wants nothing denies it.
        lines.fail(1, "there is no rule", "one [[rule]] at the least")
    return tuple(_RuleReader(table, lines, number).read() for number, table in enumerate(rules))


def _decode(data: bytes, source: str) -> str:
    try:
        # As the TOML reader does; a byte order mark, which some editors write, means nothing.
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(f"{source}:{line}: it is not UTF-8; allowed is a TOML file in UTF-8") from error


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = _PLACE.search(message)
        line = place[1] if place is not None else None
        what = message if place is None else message[: place.start()]
        column = f" (column {place[2]})" if place is not None and line is not None else ""
        at = line or text.rstrip("\n").count("\n") + 1
        raise PolicyError(f"{source}:{at}: {what[:1].lower()}{what[1:]}{column}; allowed is TOML") from error
    except (RecursionError, ValueError) as error:  # the second: a number of thousands of digits
        raise PolicyError(f"{source}:1: it cannot be read ({type(error).__name__}); allowed is TOML") from error


class _Lines:
    """Where things are in the file, which the TOML reader does not tell.

    A statement of TOML ends with the first line at which what was read since the last one is a document by itself: as
    long as a string or a list is open, it is none. So the statements of a valid file are found by asking the reader,
    and ``[[rule]]`` within a string of many lines is not taken for a rule.
    """

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        #: The line of each ``[[rule]]``, and those of its keys.
        self.rules: list[tuple[int, dict[str, int]]] = []
        self._keys: dict[str, int] = {}
        for line, statement, table in _statements(text):
            is_header = statement.startswith("[")
            if statement.startswith("[[") and table == {"rule": [{}]}:
                self.rules.append((line, {}))
            elif is_header and self.rules and list(table) == ["rule"]:  # [rule.when] belongs to the last rule
                self._note(self.rules[-1][1], _only_table(table["rule"]), line)
                continue
            elif is_header or not self.rules:
                self._note(self._keys, table, line)
            else:
                self._note(self.rules[-1][1], table, line)

    @staticmethod
    def _note(keys: dict[str, int], table: Mapping[str, Any], line: int) -> None:
        for key in table:
            keys.setdefault(key, line)

    def of_key(self, key: str) -> int:
        """The line of a key outside of the rules."""
        return self._keys.get(key, 1)

    def fail(self, line: int, wrong: str, allowed: str) -> Never:
        """Raise the PolicyError for a mistake in this line."""
        raise PolicyError(f"{self._source}:{line}: {wrong}; allowed is {allowed}")

    @property
    def source(self) -> str:
        """The name of the file."""
        return self._source


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The statements of a valid document: the line in which each begins, its text, and what it says by itself."""
    begun: list[str] = []
    first = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not begun:
            if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
                continue
            first = number
        elif not any(end in line for end in ("]", "}", '"""', "'''")):
            begun.append(line)
            continue  # what was open before this line is open after it
        begun.append(line)
        statement = "\n".join(begun).lstrip(" \t")
        try:
            table = tomllib.loads(statement)
        except ValueError:
            continue
        begun.clear()
        yield first, statement, table


def _only_table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


class _RuleReader:
    """Makes one rule of one table."""

    def __init__(self, table: Mapping[str, Any], lines: _Lines, number: int) -> None:
        self._table = table
        self._lines = lines
        self._line, self._keys = lines.rules[number]

    def read(self) -> Rule:
        """The rule. Raises PolicyError."""
        for key in self._table:
            if key not in _KEYS:
                self._fail(key, f"{key!r} is not known in a rule", ", ".join(_KEYS))
        allows, action = self._effect()
        self._refuse_what_does_not_belong(allows, action)
        return Rule(
            allows,
            methods=self._patterns("methods", self._method, _METHODS_SYNTAX) if action == "call" else (),
            topics=self._patterns("topics", TopicPattern.parse, _TOPICS_SYNTAX) if action == "subscribe" else (),
            conditions=tuple(self._conditions()),
            rate=self._rate(),
            delivery=self._choice("delivery", _DELIVERIES) or "close",
            source=self._lines.source,
            line=self._line,
        )

    def _fail(self, key: str | None, wrong: str, allowed: str) -> Never:
        self._lines.fail(self._keys.get(key or "", self._line), wrong, allowed)

    def _effect(self) -> tuple[bool, Action]:
        effects = [key for key in ("allow", "deny") if key in self._table]
        if len(effects) != 1:
            wrong = "a rule has both allow and deny" if effects else "a rule has neither allow nor deny"
            self._fail(None, wrong, 'one of them, as in allow = "call" or deny = "subscribe"')
        (effect,) = effects
        action = self._choice(effect, _ACTIONS)
        assert action is not None  # noqa: S101 - the key is there
        return effect == "allow", action

    def _refuse_what_does_not_belong(self, allows: bool, action: Action) -> None:
        about = {"call": "calls", "subscribe": "subscriptions"}[action]
        wanted, other = ("methods", "topics") if action == "call" else ("topics", "methods")
        if other in self._table:
            self._fail(other, f"a rule about {about} has {other}", wanted)
        if wanted not in self._table:
            self._fail(None, f"a rule about {about} has no {wanted}", f"a list of patterns in {wanted}")
        for key, where in (("rate", "call"), ("burst", "call"), ("per", "call"), ("delivery", "subscribe")):
            if key in self._table and not (allows and action == where):
                self._fail(key, f"{key} has no meaning here", f'{key} in rules with allow = "{where}"')
            if key in ("burst", "per") and key in self._table and "rate" not in self._table:
                self._fail(key, f"{key} without a rate", f"{key} together with rate")

    def _choice(self, key: str, choices: Sequence[_Choice]) -> _Choice | None:
        value = self._table.get(key)
        for choice in choices:
            if choice == value:
                return choice
        if key in self._table:
            self._fail(key, f"{key} is {_shown(value)}", " or ".join(f'"{choice}"' for choice in choices))
        return None

    def _patterns(self, key: str, parse: Callable[[str], P], syntax: str) -> tuple[P, ...]:
        value = self._table[key]
        if not isinstance(value, list) or not value:
            self._fail(key, f"{key} is {_shown(value)}", f"a list of {syntax}")
        return tuple(self._pattern(key, pattern, parse, syntax) for pattern in value)

    def _pattern(self, key: str, pattern: Any, parse: Callable[[str], P], syntax: str) -> P:
        if not isinstance(pattern, str):
            self._fail(key, f"{key} has {_shown(pattern)} in it", f"a list of strings: {syntax}")
        try:
            return parse(pattern)
        except ValueError as error:
            self._fail(key, f"{pattern!r} is no pattern for {key}: {error}", syntax)

    def _method(self, text: str) -> CallPattern:
        pattern = CallPattern.parse(text)
        for name, characters in ((pattern.service, _SERVICE_NAME), (pattern.method, _METHOD_NAME)):
            if not all(characters.fullmatch(part) for part in name.parts if isinstance(part, str)):
                raise ValueError("characters that no name has")
        if pattern.is_private and "allow" in self._table:
            raise ValueError("no client may ever call it")
        return pattern

    def _rate(self) -> CallRate | None:
        text = self._table.get("rate")
        if text is None:
            return None
        try:
            rate = parse_rate(text if isinstance(text, str) else "")
        except ValueError:
            self._fail("rate", f"rate is {_shown(text)}", RATE_SYNTAX)
        burst = self._table.get("burst", rate.burst)
        if isinstance(burst, bool) or not isinstance(burst, int) or not 1 <= burst <= MAX_COUNT:
            self._fail("burst", f"burst is {_shown(burst)}", f"a whole number from 1 to {MAX_COUNT}")
        return CallRate(Rate(rate.count, rate.unit, burst), self._choice("per", _PER) or "user")

    # --- conditions -------------------------------------------------------------------------------------------

    def _conditions(self) -> Iterator[Condition]:
        when = self._table.get("when")
        if when is None:
            return
        if not isinstance(when, dict) or not when:
            self._fail("when", f"when is {_shown(when)}", _CONDITION_SYNTAX)
        for claim, value in when.items():
            yield from self._conditions_on(claim, value)

    def _conditions_on(self, claim: str, value: Any) -> Iterator[Condition]:
        if not isinstance(value, dict) or not value:
            self._fail("when", f"when: {claim} is {_shown(value)}", _CONDITION_SYNTAX)
        operators = [key for key in value if key in _OPERATORS]
        for key, operand in value.items():
            if not operators:  # a name with dots that is not in quotes
                yield from self._conditions_on(f"{claim}.{key}", operand)
            elif key not in _OPERATORS:
                self._fail("when", f"when: {claim} has {key!r}", ", ".join(_OPERATORS))
            else:
                yield Condition(claim, key, self._operands(claim, key, operand))

    def _operands(self, claim: str, operator: str, operand: Any) -> tuple[Scalar, ...]:
        takes_a_list, takes_one = operator != "equals", operator != "in"
        values = operand if isinstance(operand, list) and takes_a_list else [operand] if takes_one else []
        if not values or not all(_is_scalar(value) for value in values):
            one, several = "a string, a number or a boolean", "a list of strings, numbers or booleans"
            allowed = " or ".join([one] * takes_one + [several] * takes_a_list)
            self._fail("when", f"when: {claim}.{operator} is {_shown(operand)}", allowed)
        return tuple(values)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _shown(value: Any) -> str:
    """A value as it is called in an error: itself if that is short, else its kind."""
    if isinstance(value, str) and len(value) <= 60:
        return repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and abs(value) < 1e9:
        return str(value)
    if isinstance(value, list | dict) and not value:
        return "empty"
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "a date or a time")
