"""The parameters of a call, as words of a command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

__all__ = ["FORMS", "parse_parameters"]

FORMS = """\b
Parameters:
  name=text            text
  name:=json           anything that JSON has: count:=3, tags:='["a", "b"]'
  '{"name": "text"}'   all of them as one JSON object; those above are added to it
  -                    such an object, from standard input"""


def parse_parameters(words: Sequence[str], read: Callable[[], str]) -> dict[str, Any]:
    """The parameters that ``words`` are; ``read`` gives what is on standard input, and is called for ``-`` only.

    Raises ValueError for what is none of the forms, and for whatever would be lost: a name that is given twice, a
    number that JSON does not have.
    """
    whole: dict[str, Any] | None = None
    named: dict[str, Any] = {}
    for word in words:
        if word == "-" or word.lstrip().startswith("{"):
            if whole is not None:
                raise ValueError("there is more than one JSON object")
            whole = _parse_object("standard input" if word == "-" else "the object", read() if word == "-" else word)
            continue
        name, equals, value = word.partition("=")
        is_json = name.endswith(":")
        name = name[: len(name) - is_json]
        if not equals or not name:
            raise ValueError("a parameter has to be given as name=text, as name:=json, or in a JSON object")
        if name in named:
            raise ValueError(f"{name} is given twice")
        named[name] = _parse(name, value) if is_json else value
    return _sendable({**(whole or {}), **named})


def _sendable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for half characters, as they come of bytes in a word that are no text."""
    try:
        json.dumps(parameters, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("there is something in it that is no text") from error
    return parameters


def _parse_object(what: str, text: str) -> dict[str, Any]:
    value = _parse(what, text)
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no JSON object, whose members would be the parameters")
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
        raise ValueError("a name is there twice")
    return members


def _number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that can be sent")
