"""The service of a definition: it answers calls and publishes events as its file says."""

from __future__ import annotations

import itertools
import random
import time
import uuid
from collections.abc import Mapping
from typing import Any

import anyio
import anyio.abc

from ..topics import check_topic
from ..wire import errors
from ..wire.errors import NuropbException, NuropbValidationError
from ..wire.services import PublishEvent, with_context
from .definition import ERRORS, Condition, EventDefinition, MethodDefinition, Response, ServiceDefinition
from .schema import PYTHON_TYPES, check
from .service import MockMethod, MockService
from .templates import fill

__all__ = ["FileService"]


class FileService(MockService):
    """The service of ``definition``. Delays are drawn from ``random``, so a seed repeats them."""

    def __init__(self, definition: ServiceDefinition, random: random.Random) -> None:
        self._definition = definition
        self._random = random
        self._publish: PublishEvent | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        methods = {each.name: self._made(each) for each in definition.methods}
        super().__init__(definition.name, methods, version=definition.version, description=definition.description)

    async def _run_(self, publish: PublishEvent) -> None:
        """Publish the events of timers, and those after calls."""
        self._publish = publish
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for event in self._definition.events:
                tasks.start_soon(self._repeat, event)
            await anyio.sleep_forever()

    async def _repeat(self, event: EventDefinition) -> None:
        started = time.monotonic()
        for count in itertools.count(1):
            # Counted from the start, so that the time for publishing does not add up.
            await anyio.sleep(max(started + count * event.every - time.monotonic(), 0.0))
            self._emit(event, {"count": count})

    def _made(self, method: MethodDefinition) -> MockMethod:
        numbers = itertools.count(1)

        @with_context
        async def answer(ctx: dict[str, Any], **params: Any) -> Any:
            count = next(numbers)
            self._check(method, params)
            given = {name: each["default"] for name, each in (method.parameters or {}).items() if "default" in each}
            params = given | params
            response = _chosen(method, params, count)
            low, high = response.delay or method.delay
            if high:
                await anyio.sleep(self._random.uniform(low, high))
            if response.error is not None:
                code, text = response.error
                raise _exception(ERRORS[code], fill(text or f"The mock answers with {code}", {"params": params}))
            values = {"params": params, "count": count, "user_id": ctx.get("user_id")}
            result = fill(response.answer, _values(values))
            for event in method.events if response.events is None else response.events:
                self._after(event, values | {"answer": result})
            return result

        described = None
        if method.parameters is not None:
            described = {name: PYTHON_TYPES.get(str(each.get("type")), "") for name, each in method.parameters.items()}
        return MockMethod(answer, description=method.description, parameters=described, required=method.required)

    def _check(self, method: MethodDefinition, params: Mapping[str, Any]) -> None:
        if method.parameters is None:
            return
        schema = {"properties": method.parameters, "required": method.required, "additionalProperties": False}
        if (reason := check(dict(params), schema)) is not None:
            raise NuropbValidationError(reason)

    def _after(self, event: EventDefinition, values: Mapping[str, Any]) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._emit_later, event, values)

    async def _emit_later(self, event: EventDefinition, values: Mapping[str, Any]) -> None:
        await anyio.sleep(event.after)
        self._emit(event, values)

    def _emit(self, event: EventDefinition, values: Mapping[str, Any]) -> None:
        values = _values(values)
        topic, users = str(fill(event.topic, values)), fill(event.users, values)
        if self._publish is not None and check_topic(topic) is None:  # a parameter within the topic may be anything
            self._publish(topic, fill(event.event, values), users if users is None else [str(each) for each in users])


def _values(more: Mapping[str, Any]) -> dict[str, Any]:
    return {"now": time.time, "uuid": lambda: str(uuid.uuid4()), **more}


def _exception(name: str, text: Any) -> Exception:
    """Make a NuroPb exception: on the mesh only its name counts."""
    kind = getattr(errors, name, None) or type(name, (NuropbException,), {})
    made: Exception = kind(text)
    return made


def _chosen(method: MethodDefinition, params: Mapping[str, Any], count: int) -> Response:
    for condition in method.conditions:
        if _holds(condition, params):
            return condition.response
    return method.responses[min(count, len(method.responses)) - 1]


def _holds(condition: Condition, params: Mapping[str, Any]) -> bool:
    return all(_passes(_at(params, path), test, expected) for path, test, expected in condition.tests)


_MISSING = object()


def _at(params: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(params, Mapping) or part not in params:
            return _MISSING
        params = params[part]
    return params


def _passes(value: Any, test: str, expected: Any) -> bool:
    if test == "missing":
        return (value is _MISSING) is expected
    if value is _MISSING:
        return False
    if test in ("above", "below"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (value > expected if test == "above" else value < expected)
    if test == "one_of":
        return value in expected
    return bool(value == expected) and isinstance(value, bool) is isinstance(expected, bool)
