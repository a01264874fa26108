"""JSON of frames: a value that JSON lacks is refused with its path, and never silently becomes another value.

Values with one usual text are written as it: dates and times (RFC 3339), UUIDs, decimals, members of enumerations.
Bytes are written as ``{"$bytes": "<base64>"}``, and such objects are read as bytes, where the application asks for it.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import enum
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from ..protocol import check_limits

__all__ = ["TAG", "decode", "encode", "tagged"]

#: The one member of an object that stands for bytes.
TAG: Final = "$bytes"

#: Levels of nesting that are searched for a value that JSON lacks. More are a cycle, or too deep for any gateway.
MAX_DEPTH: Final = 200

_BYTES: Final = (bytes, bytearray, memoryview)
_WITH_TEXT: Final = (dt.datetime, dt.date, dt.time, uuid.UUID, Decimal, enum.Enum)


def _text_of(value: object) -> object:
    if isinstance(value, _WITH_TEXT):
        return msgspec.to_builtins(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _text_or_bytes_of(value: object) -> object:
    return tagged(value) if isinstance(value, _BYTES) else _text_of(value)


def tagged(data: bytes | bytearray | memoryview) -> dict[str, str]:
    """Return the object that stands for bytes."""
    return {TAG: base64.b64encode(data).decode()}


_options: Final[dict[str, Any]] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
_encode = json.JSONEncoder(**_options, default=_text_of).encode
_encode_binary = json.JSONEncoder(**_options, default=_text_or_bytes_of).encode


def decode(text: str) -> object:
    """Decode JSON, with bytes for the objects that stand for them. Raises ValueError or RecursionError."""
    return json.loads(text, object_hook=_untagged, parse_constant=_refuse)


def _untagged(members: dict[str, Any]) -> object:
    text = members.get(TAG)
    if len(members) != 1 or not isinstance(text, str):
        return members
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return members


def _refuse(constant: str) -> object:
    raise ValueError(f"JSON lacks {constant}")


def encode(value: Mapping[str, object], max_depth: int, *, binary: bool = False) -> bytes:
    """Encode an object as JSON in UTF-8. Raises TypeError with the path of a value that JSON lacks.

    JSON has None, bool, int, finite float, str without lone surrogates, list, tuple, and dict with str as keys;
    ``binary`` adds bytes, bytearray and memoryview. An integer that does not fit 64 bits, and more than ``max_depth``
    levels, are a TypeError: no gateway accepts them.
    """
    try:
        text = (_encode_binary if binary else _encode)(value).encode()
        reason = check_limits(text, max_depth)
        if reason is not None:
            raise TypeError(f"params: {reason}")
        return text
    except (TypeError, ValueError, RecursionError) as error:
        fault = next(_faults(value, "", binary), str(error))
        raise TypeError(fault) from error


def _faults(value: object, path: str, binary: bool, depth: int = 0) -> Iterator[str]:
    if depth > MAX_DEPTH:
        yield f"{path[:100]}...: nested more than {MAX_DEPTH} levels deep, or within itself"
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield f"{path}: a string with half of a surrogate pair, which UTF-8 cannot express"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{path}: {value}, which JSON lacks"
    elif isinstance(value, dict):
        for name, each in value.items():
            where = f"{path}.{name}" if path else str(name)
            if isinstance(name, str):
                yield from _faults(name, f"{path} (a key)", binary)
            elif name is not None and not isinstance(name, int | float):
                yield f"{path}: a key of type {type(name).__name__}; expected str"
            yield from _faults(each, where, binary, depth + 1)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _faults(each, f"{path}[{number}]", binary, depth + 1)
    elif value is not None and not isinstance(value, (bool, int, *_WITH_TEXT, *(_BYTES if binary else ()))):
        yield f"{path}: a value of type {type(value).__name__}, which JSON lacks"
