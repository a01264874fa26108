"""Checks and examples of values by the common part of JSON Schema. Pure.

Known: type, enum, const, properties, required, additionalProperties, items, minimum, maximum, minLength, maxLength,
minItems, maxItems, anyOf, oneOf, allOf, nullable, default, example, examples, format. Other keywords are ignored:
a mock that refuses less than its service is still a mock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["PYTHON_TYPES", "Schema", "check", "example_of"]

Schema = Mapping[str, Any]

#: Levels of schemas within schemas, for schemas that refer to themselves.
MAX_DEPTH: Final = 12
#: JSON types as services describe them.
PYTHON_TYPES: Final = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
}
_FORMATS: Final = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "email": "alice@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "byte": "",
}


def check(value: Any, schema: Schema, at: str = "", depth: int = 0) -> str | None:
    """Return the first reason why ``value`` does not match, with its place, or None."""
    name = at or "the value"
    if depth > MAX_DEPTH:
        return None
    types = schema.get("type")
    if types is not None and not (value is None and schema.get("nullable") is True):
        allowed = [types] if isinstance(types, str) else list(types)
        if not any(_is(value, each) for each in allowed):
            return f"{name} must be {' or '.join(map(str, allowed))}"
    if "enum" in schema and not any(_equal(value, each) for each in schema["enum"]):
        return f"{name} must be one of {', '.join(map(str, schema['enum']))[:200]}"
    if "const" in schema and not _equal(value, schema["const"]):
        return f"{name} must be {schema['const']!r}"
    for key in ("anyOf", "oneOf"):
        if schema.get(key) and all(check(value, each, at, depth + 1) for each in schema[key]):
            return check(value, schema[key][0], at, depth + 1)
    for each in schema.get("allOf", ()):
        if (reason := check(value, each, at, depth + 1)) is not None:
            return reason
    return _check_size(value, schema, name) or _check_members(value, schema, at, depth)


def _check_size(value: Any, schema: Schema, name: str) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        size, unit, keys = value, "", ("minimum", "maximum")
    elif isinstance(value, str):
        size, unit, keys = len(value), " character", ("minLength", "maxLength")
    elif isinstance(value, list):
        size, unit, keys = len(value), " item", ("minItems", "maxItems")
    else:
        return None
    least, most = (schema.get(key) for key in keys)
    if isinstance(least, int | float) and size < least:
        return f"{name} must be at least {_counted(least, unit)}"
    if isinstance(most, int | float) and size > most:
        return f"{name} must be at most {_counted(most, unit)}"
    return None


def _counted(number: float, unit: str) -> str:
    return f"{number}{unit}{'s' if unit and number != 1 else ''}"


def _check_members(value: Any, schema: Schema, at: str, depth: int) -> str | None:
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                return f"{_member(at, name)} is missing"
        for name, each in value.items():
            if name in properties:
                if (reason := check(each, properties[name], _member(at, name), depth + 1)) is not None:
                    return reason
            elif schema.get("additionalProperties") is False:
                return f"{_member(at, name)} is unknown; expected {', '.join(properties) or 'no member'}"
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for index, each in enumerate(value):
            if (reason := check(each, schema["items"], f"{at}[{index}]", depth + 1)) is not None:
                return reason
    return None


def _member(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _is(value: Any, type_: Any) -> bool:
    if type_ == "null":
        return value is None
    if type_ == "boolean":
        return isinstance(value, bool)
    if type_ in ("integer", "number"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (type_ == "number" or float(value).is_integer())
    kinds: dict[Any, type] = {"string": str, "array": list, "object": dict}
    return isinstance(value, kinds[type_]) if type_ in kinds else True


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)


def example_of(schema: Any, depth: int = 0) -> Any:
    """Return a value that matches: the schema's own example or default if it has one, else the smallest."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return None
    for key in ("example", "default", "const"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    if isinstance(schema.get("allOf"), list):
        found = [example_of(each, depth + 1) for each in schema["allOf"]]
        merged = {name: each for part in found if isinstance(part, dict) for name, each in part.items()}
        return merged | (_example_object(schema, depth) if "properties" in schema else {})
    for key in ("oneOf", "anyOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return example_of(schema[key][0], depth + 1)
    type_ = schema.get("type", "object" if "properties" in schema else None)
    type_ = next((each for each in type_ if each != "null"), None) if isinstance(type_, list) else type_
    if type_ == "object":
        return _example_object(schema, depth)
    if type_ == "array":
        return [
            example_of(schema.get("items"), depth + 1) for _ in range(min(max(int(schema.get("minItems", 1)), 1), 10))
        ]
    if type_ == "string":
        text = _FORMATS.get(str(schema.get("format")), "text")
        return text.ljust(min(int(schema.get("minLength", 0)), 1000), "x")[: int(schema.get("maxLength", 1000))]
    if type_ in ("integer", "number"):
        return schema.get("minimum", min(1, schema.get("maximum", 1)))
    return True if type_ == "boolean" else None


def _example_object(schema: Schema, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    if depth >= MAX_DEPTH - 2:  # of a schema that refers to itself, its required members only
        properties = {name: each for name, each in properties.items() if name in schema.get("required", ())}
    return {name: example_of(each, depth + 1) for name, each in properties.items()}
