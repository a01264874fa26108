"""The format of mock files: services, methods, answers and events. ``docs/development-without-a-mesh.md`` shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from ..protocol import is_method, is_service
from ..topics import check_topic
from .definition import ERRORS, Condition, EventDefinition, MethodDefinition, Response, ServiceDefinition
from .files import explained, read_file
from .nodes import Flaw, Node
from .schema import PYTHON_TYPES, Schema, check
from .templates import NAMES, unknown_name

__all__ = ["read_mocks", "reading"]

T = TypeVar("T")

#: Seconds of a delay, and of the time between two events of a timer.
MAX_SECONDS: Final = 3600.0
LEAST_INTERVAL: Final = 0.05
_RESPONSE: Final = frozenset({"answer", "error", "delay", "events"})
_METHOD: Final = _RESPONSE | {"answers", "description", "parameters", "required", "result", "when"}
_TESTS: Final = frozenset({"equals", "above", "below", "one_of", "missing"})


def read_mocks(path: Path) -> list[ServiceDefinition]:
    """Read the services of a file. Raises MockFileError with file, line and reason, and OSError for no file."""
    root = read_file(path)
    return reading(path, lambda: _services(root, str(path)))


def reading(path: Path, read: Callable[[], T]) -> T:
    """Return ``read()``; a flaw that it meets becomes the error of the file at ``path``."""
    try:
        return read()
    except Flaw as flaw:
        raise explained(path, flaw) from None


def _services(root: Node, source: str) -> list[ServiceDefinition]:
    root.check_keys("the file", frozenset({"services"}))
    services = root.value.get("services")
    if services is None or not services.mapping("services"):
        raise Flaw(root, "no service; expected services, with a mapping of names")
    return [_service(name, node, services, source) for name, node in services.value.items()]


def _service(name: str, node: Node, parent: Node, source: str) -> ServiceDefinition:
    if not is_service(name):
        at = parent.key_lines.get(name, 0) or node
        raise Flaw(at, f"{name[:40]!r} is no name of a service; expected 1 to 255 ASCII characters without spaces")
    node.check_keys(f"the service {name}", frozenset({"description", "version", "methods", "events"}))
    methods = node.value.get("methods", Node({}, node.line, node.path))
    defined = []
    for method, each in methods.mapping(f"methods of {name}").items():
        if not is_method(method) or method.startswith("_") or method == "nuropb_describe":
            at = methods.key_lines.get(method, 0) or each
            raise Flaw(
                at, f"{method[:40]!r} is no name of a method; expected ASCII letters, digits and _, and no _ first"
            )
        defined.append(_method(method, each))
    return ServiceDefinition(
        name,
        source,
        tuple(defined),
        _optional(node, "description", ""),
        str(node.value["version"].value) if "version" in node.value else "mock",
        tuple(_event(each, timed=True) for each in _listed(node, "events")),
    )


def _method(name: str, node: Node) -> MethodDefinition:
    node.check_keys(f"the method {name}", _METHOD)
    members = node.value
    given = [key for key in ("answer", "answers", "error") if key in members]
    if len(given) > 1:
        raise Flaw(members[given[1]], f"{name} has {given[0]} and {given[1]}; expected one of the two")
    result = _schema(members["result"]) if "result" in members else None
    if "answers" in members:
        listed = members["answers"].items("answers")
        if not listed:
            raise Flaw(members["answers"], "answers is empty; expected at least one")
        responses = tuple(_answer_in_order(each, result) for each in listed)
    else:
        responses = (_response(node, result),)
    parameters, required = _parameters(node)
    return MethodDefinition(
        name,
        _optional(node, "description", ""),
        parameters,
        required,
        tuple(_condition(each, result) for each in _listed(node, "when")),
        responses,
        _delay(node) or (0.0, 0.0),
        tuple(_event(each, timed=False) for each in _listed(node, "events")),
    )


def _answer_in_order(node: Node, result: Schema | None) -> Response:
    if isinstance(node.value, dict) and node.value and node.value.keys() <= _RESPONSE:
        return _response(node, result)
    return Response(_value(node, "an answer", result))


def _response(node: Node, result: Schema | None) -> Response:
    members = node.value
    if "error" in members and "answer" in members:
        raise Flaw(members["error"], "answer and error; expected one of the two")
    error = _error(members["error"]) if "error" in members else None
    answer = _value(members["answer"], "the answer", result) if "answer" in members else None
    events = tuple(_event(each, timed=False) for each in _listed(node, "events")) if "events" in members else None
    return Response(answer, error, _delay(node), events)


def _condition(node: Node, result: Schema | None) -> Condition:
    node.check_keys("a condition", _RESPONSE | {"params"})
    if "params" not in node.value:
        raise Flaw(node, "a condition without params; expected params, with the values that it is for")
    tests = []
    for path, each in node.value["params"].mapping("params").items():
        if isinstance(each.value, dict) and each.value and each.value.keys() <= _TESTS:
            for test, expected in each.value.items():
                tests.append((path, test, _expected(test, expected)))
        else:
            tests.append((path, "equals", each.plain))
    return Condition(tuple(tests), _response(node, result))


def _expected(test: str, node: Node) -> Any:
    if test in ("above", "below"):
        return _seconds_or_number(node, test)
    if test == "one_of":
        return [each.plain for each in node.items("one_of")]
    if test == "missing" and not isinstance(node.value, bool):
        raise Flaw(node, "missing is neither true nor false")
    return node.plain


def _error(node: Node) -> tuple[str, str]:
    if isinstance(node.value, str):
        code, description = node, ""
    else:
        node.check_keys("an error", frozenset({"code", "description"}))
        if "code" not in node.value:
            raise Flaw(node, "an error without code")
        code, description = node.value["code"], _optional(node, "description", "")
    name = code.text("code")
    if name not in ERRORS:
        raise Flaw(code, f"{name[:40]!r} is no error code of a service; expected {', '.join(ERRORS)}")
    return name, description


def _event(node: Node, *, timed: bool) -> EventDefinition:
    when = "every" if timed else "after"
    node.check_keys("an event", frozenset({"topic", "event", "users", when}))
    if "topic" not in node.value:
        raise Flaw(node, "an event without topic")
    topic = node.value["topic"].text("topic")
    if "{{" not in topic and (reason := check_topic(topic)) is not None:
        raise Flaw(node.value["topic"], f"topic: {reason}")
    seconds = 0.0
    if when in node.value:
        seconds = _seconds(node.value[when], when)
    elif timed:
        raise Flaw(node, "an event of a timer without every; expected the seconds between two events")
    if timed and seconds < LEAST_INTERVAL:
        raise Flaw(node.value[when], f"every is below {LEAST_INTERVAL:g} seconds")
    event = _value(node.value["event"], "an event", None) if "event" in node.value else None
    users = _value(node.value["users"], "users", None) if "users" in node.value else None
    _value(node.value["topic"], "topic", None)
    return EventDefinition(topic, event, users, **{when: seconds})


def _parameters(node: Node) -> tuple[Mapping[str, Schema] | None, tuple[str, ...]]:
    """Return the schemas of the parameters, and the names of those that are required: all without a default."""
    if "parameters" not in node.value:
        if "required" in node.value:
            raise Flaw(node.value["required"], "required without parameters")
        return None, ()
    members = node.value["parameters"].mapping("parameters")
    for name, each in members.items():
        if not name.isidentifier() or not name.isascii():
            raise Flaw(each, f"{name[:40]!r} is no name of a parameter; expected ASCII letters, digits and _")
    schemas = {name: _schema(each) for name, each in members.items()}
    if "required" not in node.value:
        return schemas, tuple(name for name, each in schemas.items() if "default" not in each)
    required = [each.text("required") for each in node.value["required"].items("required")]
    for name in required:
        if name not in schemas:
            raise Flaw(node.value["required"], f"{name[:40]!r} is required and not among the parameters")
    return schemas, tuple(required)


def _schema(node: Node) -> Schema:
    """Read a schema, or the name of a type."""
    types = (*PYTHON_TYPES, "null", "any")
    if isinstance(node.value, str):
        if node.value not in types:
            raise Flaw(node, f"{node.value[:40]!r} is no type; expected {', '.join(types)}, or a schema")
        return {} if node.value == "any" else {"type": node.value}
    members = node.mapping("a schema")
    if "type" in members:
        given = members["type"].value
        for each in given if isinstance(given, list) else [members["type"]]:
            if each.value not in types:
                raise Flaw(each, f"a type is none of {', '.join(types)}")
    for name in ("properties",):
        for each in members[name].mapping(name).values() if name in members else ():
            _schema(each)
    for name in ("anyOf", "oneOf", "allOf", "enum", "required"):
        if name in members:
            listed = members[name].items(name)
            for each in listed if name.endswith("Of") else ():
                _schema(each)
    if "items" in members:
        _schema(members["items"])
    schema: dict[str, Any] = node.plain
    return schema


def _value(node: Node, what: str, schema: Schema | None) -> Any:
    """Return a value with holes. Raises Flaw for an unknown name, and for a value that its schema refuses."""
    value = node.plain
    if (name := unknown_name(value)) is not None:
        raise Flaw(_having(node, name), f"{name[:40]!r} stands for nothing; expected one of {', '.join(NAMES)}")
    # A hole has no type before a call.
    if schema is not None and "{{" not in str(value) and (reason := check(value, schema, what)) is not None:
        raise Flaw(node, reason)
    return value


def _having(node: Node, name: str) -> Node:
    """Return the innermost node whose text has ``name``."""
    inner = node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    return next((_having(each, name) for each in inner if name in str(each.plain)), node)


def _delay(node: Node) -> tuple[float, float] | None:
    if "delay" not in node.value:
        return None
    delay = node.value["delay"]
    if not isinstance(delay.value, list):
        seconds = _seconds(delay, "delay")
        return seconds, seconds
    if len(delay.value) != 2:
        raise Flaw(delay, "delay is a list of another length than 2; expected seconds, or [from, to]")
    low, high = (_seconds(each, "delay") for each in delay.value)
    if low > high:
        raise Flaw(delay, "delay begins above its end")
    return low, high


def _seconds(node: Node, what: str) -> float:
    seconds = _seconds_or_number(node, what)
    if not 0 <= seconds <= MAX_SECONDS:
        raise Flaw(node, f"{what} is out of range; expected 0 to {MAX_SECONDS:g} seconds")
    return seconds


def _seconds_or_number(node: Node, what: str) -> float:
    if not isinstance(node.value, int | float) or isinstance(node.value, bool):
        raise Flaw(node, f"{what} is no number")
    return node.value


def _listed(node: Node, key: str) -> list[Node]:
    return node.value[key].items(key) if key in node.value else []


def _optional(node: Node, key: str, default: str) -> str:
    return node.value[key].text(key) if key in node.value else default
