"""The arguments of a call, compared with the parameters that its method has or that its service describes. Pure.

A method's signature is exact: a hosted service refuses a call that does not fit it. A description is what NuroPb makes
of a signature, and may be a minute old, so the gateway only uses it to explain a call that has failed.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .description import CATCH_ALL

__all__ = ["faults_by_description", "faults_by_signature"]

#: Names, and characters of one, in the text for a caller: the names of surplus arguments are the caller's own.
_NAMES: Final = 10
_LONGEST: Final = 64


def _is_int(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def _is_float(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


#: Whether a JSON value fits an annotation, by the annotation's name. JSON has no difference between 3 and 3.0.
_FITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "int": _is_int,
    "float": _is_float,
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "dict": lambda value: isinstance(value, dict),
    "None": lambda value: value is None,
}


class _Signature(NamedTuple):
    """The parameters of a method: all names (None with ``**kwargs``), the required ones, and the types to check."""

    names: frozenset[str] | None
    required: Mapping[str, None]
    types: Mapping[str, tuple[str, ...]]


_signatures: weakref.WeakKeyDictionary[Any, _Signature | None] = weakref.WeakKeyDictionary()


def faults_by_signature(function: Callable[..., Any], given: int, params: Mapping[str, Any]) -> str:
    """Return why ``params`` do not fit ``function``, whose first ``given`` arguments are set; "" if they fit.

    Types are checked where JSON has them: int, float, str, bool, list, dict, and unions of these and None. A function
    without a readable signature takes anything.
    """
    signature = _signature(function, given)
    if signature is None:
        return ""
    names, required, expected = signature
    wrong = []
    for name in expected.keys() & params.keys() if expected else ():
        if not any(_FITS[each](params[name]) for each in expected[name]):
            wrong.append(name)
    if not wrong and required.keys() <= params.keys() and (names is None or params.keys() <= names):
        return ""  # as nearly always
    return _text(
        [name for name in required if name not in params],
        [] if names is None else [name for name in params if name not in names],
        [f"{name} (expected {' or '.join(expected[name])})" for name in params if name in wrong],
    )


def faults_by_description(parameters: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Return why ``params`` do not fit the described ``parameters`` of a method; "" if they fit.

    NuroPb writes the same type for ``int``, ``int | None`` and ``list[int]``, so null and lists fit every type.
    """
    listed = parameters.get("properties")
    if not isinstance(listed, dict | list):
        return ""  # it does not tell
    pairs = listed.items() if isinstance(listed, dict) else listed
    known = {
        pair[0]: pair[1].get("type") if isinstance(pair[1], dict) else None
        for pair in pairs
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
    }
    required = parameters.get("required")
    required = required if isinstance(required, list) else []
    missing = [
        name
        for name in required
        if isinstance(name, str) and name in known and name not in params and name not in CATCH_ALL
    ]
    surplus = [] if known.keys() & CATCH_ALL else [name for name in params if name not in known]
    wrong = [
        f"{name} (expected {type_})"
        for name, value in params.items()
        if isinstance(type_ := known.get(name), str)
        and type_ in _FITS
        and not (value is None or isinstance(value, list) or _FITS[type_](value))
    ]
    return _text(missing, surplus, wrong)


def _text(missing: list[str], surplus: list[str], wrong: list[str]) -> str:
    parts = [
        f"{what}: {', '.join(_shown(name) for name in names[:_NAMES])}{', ...' if len(names) > _NAMES else ''}"
        for what, names in (("missing", missing), ("unknown", surplus), ("of the wrong type", wrong))
        if names
    ]
    return f"parameters {'; '.join(parts)}" if parts else ""


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= _LONGEST else "(an unreadable name)"


def _signature(function: Callable[..., Any], given: int) -> _Signature | None:
    key = getattr(function, "__func__", function)
    try:
        return _signatures[key]
    except KeyError:
        made = _signatures[key] = _read_signature(function, given)
    except TypeError:  # neither hashable nor to be referred to weakly
        made = _read_signature(function, given)
    return made


def _read_signature(function: Callable[..., Any], given: int) -> _Signature | None:
    try:
        parameters = list(_inspected(function).parameters.values())[given:]
    except (TypeError, ValueError):  # builtins have none
        return None
    if any(each.kind is each.POSITIONAL_ONLY for each in parameters):
        return None
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    checked = {each.name: names for each in named if (names := _type_names(each))}
    return _Signature(
        None if takes_any else frozenset(each.name for each in named),
        {each.name: None for each in named if each.default is each.empty},
        checked,
    )


def _inspected(function: Callable[..., Any]) -> inspect.Signature:
    # Of a decorated method, what its decorator takes: it may add arguments of its own, such as a connection.
    try:
        return inspect.signature(function, follow_wrapped=False, eval_str=True)
    except Exception:  # an annotation that is a string may name anything, such as a name for type checkers only
        return inspect.signature(function, follow_wrapped=False)


def _type_names(parameter: inspect.Parameter) -> tuple[str, ...]:
    """Return the names in ``_FITS`` of the types that an annotation allows; none if it allows others, too."""
    names = _names(parameter.annotation)
    if not names or any(name not in _FITS for name in names):
        return ()
    return (*names, "None") if parameter.default is None and "None" not in names else names


def _names(annotation: Any) -> tuple[str, ...]:
    if isinstance(annotation, str):  # with names for type checkers only
        while (shorter := re.sub(r"\[[^\[\]]*\]", "", annotation)) != annotation:
            annotation = shorter
        return tuple(part.strip() for part in annotation.split("|"))
    if annotation in (None, type(None)):
        return ("None",)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(name for each in typing.get_args(annotation) for name in _names(each))
    return (getattr(origin or annotation, "__name__", ""),)
