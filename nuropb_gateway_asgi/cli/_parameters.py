"""The parameters of a call, parsed from words of a command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

__all__ = ["FORMS", "parse_parameters"]

FORMS = """\b
Parameters:
  name=text            text
  name:=json           any JSON value: count:=3, tags:='["a", "b"]'
  '{"name": "text"}'   a JSON object of parameters; the forms above override its members
  -                    such an object, read from standard input"""


def parse_parameters(words: Sequence[str], read: Callable[[], str]) -> dict[str, Any]:
    """Parse ``words``. ``read`` returns standard input, and is called for ``-`` only.

    Raises ValueError for a word in no known form, and for values that would be lost: a name that is given twice, a
    number that JSON does not have.
    """
    whole: dict[str, Any] | None = None
    named: dict[str, Any] = {}
    for word in words:
        if word == "-" or word.lstrip().startswith("{"):
            if whole is not None:
                raise ValueError("more than one JSON object: give one")
            whole = _parse_object("standard input" if word == "-" else "the object", read() if word == "-" else word)
            continue
        name, equals, value = word.partition("=")
        is_json = name.endswith(":")
        name = name[: len(name) - is_json]
        if not equals or not name:
            raise ValueError("a word is not a parameter: write name=text, name:=json, or a JSON object")
        if name in named:
            raise ValueError(f"{name} is given twice: give it once")
        named[name] = _parse(name, value) if is_json else value
    return _sendable({**(whole or {}), **named})


def _sendable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return ``parameters``. Raises ValueError for surrogates: the words contained bytes that are not text."""
    try:
        json.dumps(parameters, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a parameter contains bytes that are not text") from error
    return parameters


def _parse_object(what: str, text: str) -> dict[str, Any]:
    value = _parse(what, text)
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object; its members are the parameters")
    return value


def _parse(what: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_members, parse_float=_number, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return members


def _number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
