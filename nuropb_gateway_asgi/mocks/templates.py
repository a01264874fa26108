"""Values with holes: texts such as ``{{ params.item }}`` within an answer or an event. Pure.

A text that is one hole becomes the value itself; in a longer text the value is written into it. There are no
expressions: an answer that needs one is a service object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["NAMES", "fill", "unknown_name"]

#: The names of values: parameters of the call; the number of the call or event, from 1; the caller; the time in unix
#: seconds; a random UUID; the answer, for the events of a call.
NAMES: Final = ("params", "count", "user_id", "now", "uuid", "answer")
_HOLE: Final = re.compile(r"\{\{\s*([A-Za-z0-9_.-]+)\s*\}\}")


def unknown_name(value: Any) -> str | None:
    """Return the first name in ``value`` that stands for nothing, or None. ``value`` is JSON."""
    for match in _HOLE.finditer(json.dumps(value, ensure_ascii=False)):
        root = match[1].partition(".")[0]
        if root not in NAMES:
            return match[1]
    return None


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """Return ``value`` with its holes filled; a parameter that is missing is null, or empty within a text."""
    if isinstance(value, dict):
        return {name: fill(each, values) for name, each in value.items()}
    if isinstance(value, list):
        return [fill(each, values) for each in value]
    if not isinstance(value, str):
        return value
    if (whole := _HOLE.fullmatch(value.strip())) is not None:
        return _find(whole[1], values)
    return _HOLE.sub(lambda match: _written(_find(match[1], values)), value)


def _find(name: str, values: Mapping[str, Any]) -> Any:
    found: Any = values
    for part in name.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and len(part) < 6 and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found() if callable(found) else found


def _written(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
