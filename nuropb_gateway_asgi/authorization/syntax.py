"""The policy file's syntax: TOML in, rules out, or one line with the first mistake and its place. Pure.

``docs/policy.md`` describes the file to operators.
"""

from __future__ import annotations

import math
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Never, TypeVar

from ..exceptions import PolicyError
from ..rates import MAX_COUNT, RATE_SYNTAX, CallRate, Rate, parse_rate
from ..wire.history import (
    BYTES_SYNTAX,
    DEFAULT_BYTES,
    LAST_BYTES,
    TIME_SYNTAX,
    KeptTopic,
    check_kept_topics,
    parse_bytes,
    parse_time,
)
from .claims import Condition, Operator, Scalar
from .patterns import CallPattern, TopicPattern
from .rules import Action, Delivery, Rule, ToolOptions
from .toml_lines import Lines

__all__ = ["PolicyDocument", "parse_document", "parse_policy"]

_KEYS: Final = ("allow", "deny", "methods", "topics", "when", "rate", "burst", "per", "delivery", "hints", "command")
_HINTS: Final = ("read_only", "destructive", "idempotent", "open_world")
_ACTIONS: Final[tuple[Action, ...]] = typing.get_args(Action)
_DELIVERIES: Final[tuple[Delivery, ...]] = typing.get_args(Delivery)
_OPERATORS: Final[tuple[Operator, ...]] = typing.get_args(Operator)
_PER: Final[tuple[Literal["user", "process"], ...]] = ("user", "process")

#: The characters of names in nuropb and in the client protocol, and the wildcard.
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
_CONDITION_SYNTAX: Final = (
    'a condition on a claim, with contains, in or equals, such as { role = { equals = "admin" } }'
)
#: The end of tomllib's messages.
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_KINDS: Final = ((str, "a long string"), (int | float, "a number"), (list, "a list"), (dict, "a table"))

P = TypeVar("P", CallPattern, TopicPattern)
T = TypeVar("T")
_Choice = TypeVar("_Choice", bound=str)
_HISTORY_SYNTAX: Final = 'a table such as { topics = ["orders.#"], for = "1h", bytes = "64MiB" }'


class PolicyDocument(NamedTuple):
    """The content of a policy file: the rules, in its order, and the topics whose events are kept."""

    rules: tuple[Rule, ...]
    history: tuple[KeptTopic, ...] = ()


def parse_policy(data: bytes, source: str) -> tuple[Rule, ...]:
    """Return the rules of a policy file, in its order. Raises as :func:`parse_document`."""
    return parse_document(data, source).rules


def parse_document(data: bytes, source: str) -> PolicyDocument:
    """Return the content of a policy file. ``source`` is its name, for rules and errors.

    Raises PolicyError for the first mistake.
    """
    text = _decode(data, source)
    document = _parse_toml(text, source)
    lines = Lines(text)
    for key in document:
        if key not in ("rule", "history"):
            _fail(source, lines.of_key(key), f"unknown key {key!r}", "[[rule]] or history")
    rules = document.get("rule")
    if rules is not None and not lines.rules:
        _fail(source, lines.of_key("rule"), "'rule' is not a list of tables", "[[rule]]")
    if not rules:
        # Most likely the file is being written, or was cut off: an operator who wants to allow nothing denies it.
        _fail(source, 1, "the file has no rule", "at least one [[rule]]")
    return PolicyDocument(
        tuple(_RuleReader(table, source, *place).read() for table, place in zip(rules, lines.rules, strict=True)),
        _read_history(document["history"], source, lines.of_key("history")) if "history" in document else (),
    )


def _read_history(table: Any, source: str, line: int) -> tuple[KeptTopic, ...]:
    """Return the topics whose events are kept. Raises PolicyError."""
    if not isinstance(table, dict) or not table:
        _fail(source, line, f"history is {_shown(table)}", _HISTORY_SYNTAX)
    for key in table:
        if key not in ("topics", "for", "bytes"):
            _fail(source, line, f"history has {key!r}", _HISTORY_SYNTAX)
    patterns = table.get("topics")
    if not isinstance(patterns, list) or not patterns or not all(isinstance(each, str) for each in patterns):
        _fail(
            source,
            line,
            f"history: topics is {_shown(patterns) if patterns is not None else 'missing'}",
            _HISTORY_SYNTAX,
        )
    seconds = _read_history_value(table, "for", "1h", parse_time, TIME_SYNTAX, source, line)
    default = str(LAST_BYTES if seconds is None else DEFAULT_BYTES)
    size = _read_history_value(table, "bytes", default, parse_bytes, BYTES_SYNTAX, source, line)
    topics = tuple(KeptTopic(pattern, seconds, size) for pattern in patterns)
    try:
        check_kept_topics(topics)
    except ValueError as error:
        fact, _, expected = str(error).partition("; expected ")
        _fail(source, line, f"history: {fact}", expected)
    return topics


def _read_history_value(
    table: Mapping[str, Any], key: str, default: str, parse: Callable[[str], T], syntax: str, source: str, line: int
) -> T:
    text = table.get(key, default)
    try:
        return parse(text if isinstance(text, str) else "")
    except ValueError:
        _fail(source, line, f"history: {key} is {_shown(text)}", syntax)


def _fail(source: str, line: int, wrong: str, expected: str) -> Never:
    """Raise the PolicyError for a mistake in this line."""
    raise PolicyError(f"{source}:{line}: {wrong}; expected {expected}")


def _decode(data: bytes, source: str) -> str:
    try:
        # As the TOML reader does; a byte order mark, which some editors write, means nothing.
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(f"{source}:{line}: not UTF-8; expected a TOML file in UTF-8") from error


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
        raise PolicyError(f"{source}:{at}: {what[:1].lower()}{what[1:]}{column}; expected TOML") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise PolicyError(f"{source}:1: the file cannot be parsed ({type(error).__name__}); expected TOML") from error


class _RuleReader:
    """Reader of one ``[[rule]]`` table, which begins in ``line`` and has its keys in the lines of ``keys``."""

    def __init__(self, table: Mapping[str, Any], source: str, line: int, keys: Mapping[str, int]) -> None:
        self._table = table
        self._source = source
        self._line = line
        self._keys = keys

    def read(self) -> Rule:
        """Return the rule. Raises PolicyError."""
        for key in self._table:
            if key not in _KEYS:
                self._fail(key, f"unknown key {key!r} in a rule", ", ".join(_KEYS))
        allows, action = self._effect()
        self._refuse_misplaced_keys(allows, action)
        return Rule(
            allows,
            methods=() if action == "subscribe" else self._patterns("methods", self._method, _METHODS_SYNTAX),
            topics=self._patterns("topics", TopicPattern.parse, _TOPICS_SYNTAX) if action == "subscribe" else (),
            conditions=tuple(self._conditions()),
            rate=self._rate(),
            delivery=self._choice("delivery", _DELIVERIES) or "close",
            tool=self._tool() if action == "tool" else None,
            source=self._source,
            line=self._line,
        )

    def _fail(self, key: str | None, wrong: str, expected: str) -> Never:
        _fail(self._source, self._keys.get(key or "", self._line), wrong, expected)

    def _effect(self) -> tuple[bool, Action]:
        effects = [key for key in ("allow", "deny") if key in self._table]
        if len(effects) != 1:
            wrong = "the rule has both allow and deny" if effects else "the rule has neither allow nor deny"
            self._fail(None, wrong, 'one of them, as in allow = "call" or deny = "subscribe"')
        (effect,) = effects
        action = self._choice(effect, _ACTIONS)
        assert action is not None  # noqa: S101 - the key is there
        return effect == "allow", action

    def _refuse_misplaced_keys(self, allows: bool, action: Action) -> None:
        about = {"call": "calls", "subscribe": "subscriptions", "tool": "tools"}[action]
        wanted, other = ("topics", "methods") if action == "subscribe" else ("methods", "topics")
        if other in self._table:
            self._fail(other, f"a rule about {about} has {other}", f"{wanted} in its place")
        if wanted not in self._table:
            self._fail(None, f"a rule about {about} has no {wanted}", f"a list of patterns in {wanted}")
        calls, tools, topics = ("call", "tool"), ("tool",), ("subscribe",)
        places = {"rate": calls, "burst": calls, "per": calls, "delivery": topics, "hints": tools, "command": tools}
        for key, where in places.items():
            if key in self._table and not (allows and action in where):
                expected = " or ".join(f'allow = "{each}"' for each in where)
                self._fail(key, f"{key} has no effect in this rule", f"{key} only in rules with {expected}")
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
            self._fail(key, f"{key} contains {_shown(pattern)}", f"a list of strings: {syntax}")
        try:
            return parse(pattern)
        except ValueError as error:
            self._fail(key, f"{pattern!r} is not a pattern for {key}: {error}", syntax)

    def _method(self, text: str) -> CallPattern:
        pattern = CallPattern.parse(text)
        for name, characters in ((pattern.service, _SERVICE_NAME), (pattern.method, _METHOD_NAME)):
            if not all(characters.fullmatch(part) for part in name.parts if isinstance(part, str)):
                raise ValueError("characters that names cannot contain")
        if pattern.is_private and "allow" in self._table:
            raise ValueError("clients can never call it")
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

    # --- tools ------------------------------------------------------------------------------------------------

    def _tool(self) -> ToolOptions:
        command = self._table.get("command", False)
        if not isinstance(command, bool):
            self._fail("command", f"command is {_shown(command)}", "true or false")
        hints = self._table.get("hints", {})
        expected = f"a table of {', '.join(_HINTS)}, such as {{ read_only = true }}"
        if not isinstance(hints, dict) or ("hints" in self._table and not hints):
            self._fail("hints", f"hints is {_shown(hints)}", expected)
        for name, value in hints.items():
            if name not in _HINTS:
                self._fail("hints", f"hints has {name!r}", expected)
            if not isinstance(value, bool):
                self._fail("hints", f"hints: {name} is {_shown(value)}", "true or false")
        if hints.get("read_only") and hints.get("destructive"):
            self._fail("hints", "a tool that is read_only cannot be destructive", "one of the two")
        return ToolOptions(**hints, is_command=command)

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
            if not operators:  # a dotted claim name without quotes
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
            expected = " or ".join([one] * takes_one + [several] * takes_a_list)
            self._fail("when", f"when: {claim}.{operator} is {_shown(operand)}", expected)
        return tuple(values)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _shown(value: Any) -> str:
    """Return a value as errors quote it: the value itself if it is short, else its kind."""
    if isinstance(value, str) and len(value) <= 60:
        return repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and abs(value) < 1e9:
        return str(value)
    if isinstance(value, list | dict) and not value:
        return "empty"
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "a date or a time")
