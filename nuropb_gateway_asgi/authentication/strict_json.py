"""Strict readers for untrusted JSON and base64url: text that another reader could read differently is refused. Pure."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Unacceptable", "base64url_decode", "parse_items", "parse_object"]


class Unacceptable(ValueError):
    """Untrusted input (a token, a key, a document) is refused. The message has the reason, and never the input."""


def base64url_decode(part: str) -> bytes:
    """Read base64url without padding (RFC 7515, 2), or raise Unacceptable."""
    # RFC 4648, 3.5. Python's decoder, which python-jose 3.5.0 uses, skips foreign characters, accepts padding and
    # ignores unused trailing bits. Here only the text that an encoder writes is accepted.
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise Unacceptable("not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") != part:
        raise Unacceptable("not canonical base64url")
    return data


def parse_object(data: bytes, what: str, max_depth: int) -> dict[str, Any]:
    """Read JSON (RFC 8259) without duplicate names and lone surrogates, or raise Unacceptable, which names ``what``."""
    try:
        text = data.decode("utf-8")
        value = _json_decoder.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises for a lone surrogate
    except (ValueError, RecursionError):  # python-jose 3.5.0 lets RecursionError out, before any signature check
        raise Unacceptable(f"the {what} is not strict JSON") from None
    if not isinstance(value, dict):
        raise Unacceptable(f"the {what} is not an object")
    if not _is_within(value, max_depth):
        raise Unacceptable(f"the {what} is nested too deeply")
    return value


def parse_items(data: bytes, what: str, name: str, max_depth: int) -> list[object]:
    """Read the list ``name`` of a JSON object, item by item; an item that is not strict JSON becomes an Unacceptable.

    Raises Unacceptable, which names ``what``, if the list cannot be read at all.
    """
    try:
        # Bytes that are not UTF-8 become lone surrogates here, and spoil their item alone.
        document = _item_decoder.decode(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        raise Unacceptable(f"the {what} is not strict JSON") from None
    if document is _FLAW:
        raise Unacceptable(f"the {what} is not strict JSON")
    if not isinstance(document, dict):
        raise Unacceptable(f"the {what} is not an object")
    items = document.get(name)
    if not isinstance(items, list):
        raise Unacceptable(f"the {what} has no list of {name}")
    return [_checked_item(item, max_depth - 2) for item in items]


def _checked_item(item: object, max_depth: int) -> object:
    if not _is_within(item, max_depth):
        return Unacceptable("it is nested too deeply")
    try:
        json.dumps(item, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError):  # _FLAW, or a lone surrogate
        return Unacceptable("it is not strict JSON")
    return item


def _is_within(value: object, max_depth: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return True
    return max_depth > 0 and all(_is_within(child, max_depth - 1) for child in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 7519, 4 allows the last duplicate to win; two readers could then see two different users.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999, and with parse_constant NaN and Infinity
        raise ValueError
    return value


#: A value that strict JSON does not have, in the place where it was read.
_FLAW: Final = object()


def _flawed(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read_or_mark(raw: Any) -> Any:
        try:
            return read(raw)
        except ValueError:
            return _FLAW

    return read_or_mark


_item_decoder = json.JSONDecoder(
    object_pairs_hook=_flawed(_unique),
    parse_float=_flawed(_finite),
    parse_constant=_flawed(_finite),
    parse_int=_flawed(int),  # Python refuses more than 4300 digits
)
_json_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
