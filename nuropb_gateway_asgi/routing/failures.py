"""The failures of calls: what a service's error becomes for a client, and for the host application."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..exceptions import CallError, MeshUnavailable, MessageTooLarge
from ..protocol import ErrorCode, Failure
from ..settings import Settings
from ..wire.arguments import faults_by_description
from ..wire.description import Description
from ..wire.interface import CallMessage

__all__ = ["INTERNAL", "MESH_UNAVAILABLE", "call_error", "send_failure", "service_failure"]

logger = logging.getLogger(__name__)

#: Characters of a service's exception that are passed on.
MAX_NAME_LENGTH: Final = 200
#: The gateway failed, not the client.
INTERNAL: Final = Failure(ErrorCode.INTERNAL, "The gateway could not handle this frame")
#: The mesh takes no messages now.
MESH_UNAVAILABLE: Final = Failure(
    ErrorCode.MESH_UNAVAILABLE, "The service mesh is not reachable at the moment", retry_after_ms=1000
)
#: The error code of each NuroPb exception. A service raises them on purpose, so their text is meant for the caller.
_CODES: Final[Mapping[str, ErrorCode]] = {
    "NuropbMessageError": ErrorCode.BAD_REQUEST,
    "NuropbValidationError": ErrorCode.INVALID_PARAMS,
    "NuropbAuthenticationError": ErrorCode.UNAUTHENTICATED,
    "NuropbAuthorizationError": ErrorCode.PERMISSION_DENIED,
    "NuropbNotDeliveredError": ErrorCode.SERVICE_UNAVAILABLE,
    "NuropbTransportError": ErrorCode.MESH_UNAVAILABLE,
    "NuropbTimeoutError": ErrorCode.TIMEOUT,
    "NuropbDeprecatedError": ErrorCode.DEPRECATED,
    "NuropbHandlingError": ErrorCode.SERVICE_ERROR,
}

#: How nuropb reports an exception that is none of its own, with the name of its type.
_RUNTIME_EXCEPTION: Final = re.compile(r"Runtime exception calling [^:]{1,400}:([A-Za-z]{1,40}):")
#: The exceptions of a method whose arguments do not fit.
_OF_ARGUMENTS: Final = frozenset({"TypeError", "ValueError", "AttributeError", "KeyError", "IndexError"})


def service_failure(
    error: Mapping[str, Any], message: CallMessage, settings: Settings, known: Description | None = None
) -> Failure:
    """Translate a service's error for a client; ERROR_DETAILS decides whether the service's text is passed on.

    ``known`` is the description of the service. It explains an error by arguments that do not fit the method, for which
    nuropb's services have no error of their own.
    """
    name, text = str(error.get("error", ""))[:MAX_NAME_LENGTH], str(error.get("description", ""))
    details = settings.shown_errors
    code = _CODES.get(name, ErrorCode.SERVICE_ERROR)
    if name == "NuropbHandlingError" and text.startswith("Unknown method"):
        code = ErrorCode.METHOD_NOT_FOUND
    if code is ErrorCode.SERVICE_ERROR and (faults := _faults(name, text, message, known)):
        code, name, text = ErrorCode.INVALID_PARAMS, "NuropbValidationError", faults
    shown = details == "all" or (details == "nuropb" and name in _CODES)
    if shown and len(text) <= settings.outbox_size:
        return Failure(code, text, error=name)
    logger.info(
        "trace %s: %s.%s failed with %s",
        message.trace_id,
        message.service,
        message.method,
        name or "no name",
        extra={"trace_id": message.trace_id},
    )
    neutral = f"{message.service}.{message.method} failed; look for trace_id {message.trace_id}"
    return Failure(code, neutral, error=name if name.startswith("Nuropb") else "")


def _faults(name: str, text: str, message: CallMessage, known: Description | None) -> str:
    """Return why the arguments of a call that failed do not fit its method; "" if the error is another one."""
    method = None if known is None or known.methods is None else known.methods.get(message.method)
    raised = _RUNTIME_EXCEPTION.match(text) if name == "NuropbException" else None
    if method is None or (name if raised is None else raised[1]) not in _OF_ARGUMENTS:
        return ""
    try:
        params = msgspec.json.decode(message.params)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    faults = faults_by_description(method.parameters, params) if isinstance(params, dict) else ""
    return f"{message.service}.{message.method}: {faults}" if faults else ""


def send_failure(error: Exception, message: CallMessage) -> Failure:
    """Translate an error of a mesh that was to send a call."""
    if isinstance(error, MeshUnavailable):
        return MESH_UNAVAILABLE
    if isinstance(error, MessageTooLarge):
        return Failure(ErrorCode.PAYLOAD_TOO_LARGE, str(error))
    if isinstance(error, ValueError):  # a name that does not fit AMQP's limits
        return Failure(ErrorCode.BAD_REQUEST, str(error))
    logger.error(
        "trace %s: the mesh failed to send", message.trace_id, exc_info=error, extra={"trace_id": message.trace_id}
    )
    return INTERNAL


def call_error(failure: Failure) -> CallError:
    """Return the exception that the host application gets for a failed call."""
    error = failure.error or failure.code.nuropb_class
    return CallError(failure.code.value, error, failure.description, retryable=failure.code.retryable)
