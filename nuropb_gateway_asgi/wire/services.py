"""Calls and descriptions of service objects, by the rules of nuropb 0.1.8, without nuropb.

nuropb's decorators mark methods with attributes, and its exceptions are recognised by their class names. So services
written with nuropb work here, and nuropb need not be installed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import inspect
import json
import logging
import typing
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, Literal, Protocol, TypeVar, runtime_checkable

from ..exceptions import format_traceback
from ..topics import check_topic
from .arguments import faults_by_signature
from .errors import NuropbValidationError

__all__ = [
    "Outcome",
    "PublishEvent",
    "Runnable",
    "as_target",
    "call_service",
    "deliver_event",
    "describe_service",
    "to_json",
    "with_context",
]

logger = logging.getLogger(__name__)

#: Characters of a trace id in a log line; a longer one is not of a gateway.
_TRACE_ID_LENGTH: Final = 256


class _TracebackFilter(logging.Filter):
    """Gives a record the text of its traceback, from which the messages of exceptions were left out.

    Every formatter writes ``exc_text``; from ``exc_info`` it would make a traceback with the messages.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record: always. It is changed in place."""
        record.exc_text = getattr(record, "traceback_text", record.exc_text)
        return True


logger.addFilter(_TracebackFilter())

Method = TypeVar("Method", bound=Callable[..., Any])


class PublishEvent(Protocol):
    """The function by which a service publishes an event. ``event`` is any JSON value."""

    def __call__(self, topic: str, event: Any, target: list[str] | None = None) -> None:
        """Publish ``event`` to the subscribers of ``topic``, or to the users in ``target``.

        Never waits. While the mesh is disconnected the event is lost, with a line in the log. Raises ValueError or
        TypeError for a topic, event or target that cannot be sent.
        """


@runtime_checkable
class Runnable(Protocol):
    """A service with a task of its own, for example to publish events, as long as the mesh runs."""

    async def _run_(self, publish: PublishEvent) -> None:
        """Run until cancelled, or return. ``publish`` may be kept, and used by the methods too."""


def with_context(method: Method) -> Method:
    """Give a method the context of each call as its first argument, a dict: the caller, its token, the trace id.

    nuropb has ``nuropb_context`` for this, which passes an object.
    """
    parameters = list(inspect.signature(method).parameters)
    position = 1 if parameters[:1] == ["self"] else 0
    if len(parameters) <= position:
        raise TypeError(f"{method.__name__} has no argument for the context")
    method.__nuropb_context__ = True  # type: ignore[attr-defined]
    method.__nuropb_context_arg__ = parameters[position]  # type: ignore[attr-defined]
    return method


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a call. ``action`` is for the broker; ``error`` has NuroPb's members."""

    action: Literal["ack", "reject", "requeue"]
    result: bytes = b"null"
    error: dict[str, str] | None = None
    #: ``(topic, payload, target)`` of each event that the service published with its success.
    events: tuple[tuple[str, Any, list[str] | None], ...] = ()


async def call_service(
    instance: object,
    *,
    service: str,
    method: str,
    params: Mapping[str, Any],
    context: Mapping[str, Any],
    trace_id: str | None = None,
    redelivered: bool = False,
) -> Outcome:
    """Call ``method`` and return the outcome; an exception of the service is an outcome, too, and is logged.

    Parameters that do not fit the method's signature are a NuropbValidationError. Cancellation cancels an asynchronous
    method.
    """
    at_once = True
    try:
        result = _start(instance, service, method, params, context)
        if inspect.isawaitable(result):
            at_once = False
            result = await result
        if isinstance(result, Exception):  # returning an exception has the effect of raising it later
            at_once = False
            raise result
        return Outcome("ack", to_json(result))
    except (Exception, asyncio.CancelledError) as error:
        if _is_cancelled(error):
            raise
        _log(error, f"{service}.{method}", trace_id)
        try:
            return _failure(error, service, method, redelivered, at_once)
        except Exception as unspeakable:  # an exception or result that JSON cannot express
            _log(unspeakable, f"{service}.{method}", trace_id)
            return Outcome("reject", error=_error(type(unspeakable).__name__, "The outcome is not JSON"))


def _start(instance: object, service: str, method: str, params: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    if method == "nuropb_describe":
        return describe_service(instance)
    function = None if method.startswith("_") else getattr(instance, method, None)
    if not callable(function):
        raise _UnknownMethod(f"Unknown method {method}")
    arguments = (dict(context),) if getattr(function, "__nuropb_context__", False) else ()
    faults = faults_by_signature(function, len(arguments), params)
    if faults:
        raise NuropbValidationError(f"{service}.{method}: {faults}")
    return function(*arguments, **params)


def _log(error: BaseException, name: str, trace_id: str | None) -> None:
    """Log the error of a service, without its message, which may quote a caller; at level debug with it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    shown = trace_id if trace_id and trace_id.isprintable() and len(trace_id) <= _TRACE_ID_LENGTH else "unknown"
    if isinstance(error, _UnknownMethod) or kinds & {"NuropbSuccess", "NuropbCallAgain"}:
        logger.debug("trace %s: %s raised", shown, name, exc_info=error)
    elif "NuropbException" in kinds:  # an answer that the service gives on purpose
        logger.info("trace %s: %s answered with %s", shown, name, type(error).__name__)
    else:
        report = format_traceback(error, without=__file__)
        logger.error("trace %s: %s raised %s", shown, name, type(error).__name__, extra={"traceback_text": report})
        logger.debug("trace %s: %s raised", shown, name, exc_info=error)


class _UnknownMethod(Exception):
    """A call of a method that does not exist; NuropbHandlingError on the wire."""


def _is_cancelled(error: BaseException) -> bool:
    """Return whether ``error`` cancels this task.

    If not, it comes from something that the service awaited, and in a task group it would cancel all other tasks.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _error(name: str, description: str) -> dict[str, str]:
    return {"error": name, "description": description}


def _failure(error: BaseException, service: str, method: str, redelivered: bool, at_once: bool) -> Outcome:
    name = type(error).__name__
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, _UnknownMethod):
        return Outcome("reject", error=_error("NuropbHandlingError", str(error)))
    if "NuropbSuccess" in kinds:
        events = tuple(_event(event) for event in getattr(error, "events", ()))
        return Outcome("ack", to_json(getattr(error, "result", None)), events=events)
    if "NuropbCallAgain" in kinds:
        if not redelivered:
            return Outcome("requeue")
        return Outcome("reject", error=_error("NuropbCallAgainReject", f"{service}.{method} was called again once"))
    if "NuropbException" in kinds:
        cause = getattr(error, "exception", None) or error
        return Outcome("reject", error=_error(name, str(getattr(error, "description", None) or cause)))
    if not at_once:
        return Outcome("reject", error=_error(name, str(error)))
    description = f"Runtime exception calling {service}.{method}:{name}: {error}"
    return Outcome("reject", error=_error("NuropbException", description))


def _event(event: Mapping[str, Any]) -> tuple[str, Any, list[str] | None]:
    """Check an event that comes with a success. An invalid event is an error of the service, raised here."""
    topic, payload, target = event["topic"], event["payload"], event.get("target")
    reason = check_topic(topic) if isinstance(topic, str) else "not a string"
    if reason is not None:
        raise ValueError(f"topic: {reason}")
    to_json(payload)
    return topic, payload, as_target(target)


def as_target(users: Iterable[str] | None) -> list[str] | None:
    """Return the users that an event is for; None is everybody. Raises TypeError for a single text or for no list."""
    if users is None:
        return None
    if isinstance(users, str | bytes | Mapping) or not isinstance(users, Iterable):
        raise TypeError("target: not a list of user ids")  # each letter of a text would be a user
    return [str(user_id) for user_id in users]


async def deliver_event(
    instance: object,
    topic: str,
    event: Any,
    target: list[str] | None,
    context: Mapping[str, Any],
    trace_id: str | None = None,
) -> None:
    """Give an event to ``instance._handle_event_``, which may be a plain function or a coroutine function.

    Its exceptions are logged, as no caller waits for a reply.
    """
    handler = getattr(instance, "_handle_event_", None)
    if handler is None:
        return
    try:
        result = handler(topic, event, target, dict(context))
        if inspect.isawaitable(result):
            await result
    except (Exception, asyncio.CancelledError) as error:
        if _is_cancelled(error):
            raise
        _log(error, f"{type(instance).__name__}._handle_event_ (topic {topic})", trace_id)


# --- JSON -----------------------------------------------------------------------------------------------------


def _jsonable(value: Any) -> Any:
    # The same spellings as nuropb's encoder: a service's results look the same on both meshes. Times are the exception,
    # those of RFC 3339: nuropb writes a Z behind an offset and behind a date, too.
    if isinstance(value, dt.datetime | dt.time):
        return value.isoformat() if value.utcoffset() else value.isoformat().removesuffix("+00:00") + "Z"
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return f"{value:f}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


#: ``json.dumps`` would make one for every value.
_ENCODER: Final = json.JSONEncoder(default=_jsonable)


def to_json(value: Any) -> bytes:
    """Encode ``value`` as nuropb would. Raises TypeError, ValueError or RecursionError if that is impossible."""
    return _ENCODER.encode(value).encode()


# --- describe -------------------------------------------------------------------------------------------------


def describe_service(instance: object) -> dict[str, Any]:
    """Describe a service as nuropb would, including annotations and defaults that nuropb itself fails on."""
    methods = {}
    for name in dir(type(instance)) + list(getattr(instance, "__dict__", {})):
        function = None if name.startswith("_") else getattr(instance, name, None)
        if callable(function) and not getattr(function, "__nuropb_mesh_hidden__", False):
            methods[name] = _describe_method(function)
    encrypted = any(spec["requires_encryption"] for spec in methods.values())
    doc = instance.__doc__  # an object may have one of its own
    # Only a gateway's controller has the mark: nuropb's descriptions have no such member.
    mark = {"nuropb_gateway": True} if getattr(instance, "_is_gateway_", False) is True else {}
    return {
        "service_name": getattr(instance, "_service_name", None) or getattr(instance, "service_name", None),
        "service_version": getattr(instance, "_version", None),
        "description": doc.strip() if doc else doc,
        "warnings": [],
        "encrypted_methods": encrypted,
        "public_key": _public_key(instance) if encrypted else None,
        "methods": dict(sorted(methods.items())),
        **mark,
    }


#: The names of ``description.CATCH_ALL``, by the kinds of parameters that have them.
_CATCH_ALL: Final[Mapping[object, str]] = {
    inspect.Parameter.VAR_POSITIONAL: "args",
    inspect.Parameter.VAR_KEYWORD: "kwargs",
}


def _describe_method(function: Any) -> dict[str, Any]:
    context_argument = getattr(function, "__nuropb_context_arg__", "ctx")
    properties: list[tuple[str, dict[str, Any]]] = []
    required = []
    parameters: Mapping[str, inspect.Parameter]
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins have none
        parameters = {}
    for name, parameter in parameters.items():
        if name in ("self", "cls", context_argument):
            continue
        # A description has no kinds of parameters: its readers know catch-alls by these names.
        shown = _CATCH_ALL.get(parameter.kind, name)
        default = "" if parameter.default is parameter.empty else parameter.default
        if parameter.default is parameter.empty:
            required.append(shown)
        properties.append((shown, {"type": _type_name(parameter.annotation), "description": "", "default": default}))
    return {
        "description": getattr(function, "__nuropb_description__", inspect.getdoc(function)),
        "requires_encryption": bool(getattr(function, "__nuropb_requires_encryption__", False)),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }


def _type_name(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, str):  # from __future__ import annotations
        return annotation.partition("|")[0].partition("[")[0].strip()
    arguments = [item for item in typing.get_args(annotation) if item is not type(None)]
    if typing.get_origin(annotation) is not None:
        return getattr(arguments[0], "__name__", "") if len(arguments) == 1 else ""
    return getattr(annotation, "__name__", "")


def _public_key(instance: object) -> str | None:
    private_key = getattr(instance, "_private_key", None)
    if private_key is None:
        return None
    from cryptography.hazmat.primitives import serialization

    encoded: bytes = private_key.public_key().public_bytes(
        encoding=serialization.Encoding.PEM, format=serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded.decode("ascii")
