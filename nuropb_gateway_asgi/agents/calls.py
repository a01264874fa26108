"""Calls of tools: a frame from a tool's name and arguments, and an outcome for the agent from its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ..exceptions import ProtocolError
from ..handlers.exchange import FRAME_ID, Answer
from ..protocol import ErrorCode, TraceContext, encode_call, encode_json, is_method, is_service
from .audit import log_call
from .handler import AgentHandler
from .names import method_of
from .recent import RecentCall, RecentCalls
from .tool_lists import ToolLists

__all__ = ["Outcome", "ToolCalls", "UnknownTool"]

#: Characters of a result that an agent gets. Its context has room for some ten thousand words, and hosts cut longer
#: results themselves, without a note.
MAX_RESULT: Final = 65536
_RETRY: Final = "Nothing was done; try again later."
_UNCERTAIN: Final = "Find out whether it was done before you try again."
#: The remedies for an agent, by error code; any other error is explained by its description.
_REMEDIES: Final[Mapping[str, str]] = {
    ErrorCode.BAD_REQUEST: "Correct the arguments.",
    ErrorCode.INVALID_PARAMS: "Correct the arguments by the tool's input schema.",
    ErrorCode.UNAUTHENTICATED: "Ask the user to sign in again.",
    ErrorCode.PERMISSION_DENIED: "Do not try again; list the tools to see those that this user's agent may use.",
    ErrorCode.METHOD_NOT_FOUND: "List the tools again: they have changed.",
    ErrorCode.SERVICE_UNAVAILABLE: _RETRY,
    ErrorCode.MESH_UNAVAILABLE: _RETRY,
    ErrorCode.TOO_MANY_REQUESTS: _RETRY,
    ErrorCode.TIMEOUT: _UNCERTAIN,
    ErrorCode.CANCELLED: _UNCERTAIN,
    ErrorCode.PAYLOAD_TOO_LARGE: "Ask for less: a narrower filter, fewer items or a smaller page.",
}


class UnknownTool(Exception):
    """Raised for a name that no tool of the caller has."""


class Outcome(NamedTuple):
    """The outcome of a call for the agent: a text, and the same as an object unless the text was cut."""

    text: str
    structured: dict[str, Any] | None
    is_error: bool = False


class ToolCalls:
    """Makes the calls of tools. Whether a call is allowed is decided where the frame of any client is."""

    def __init__(self, lists: ToolLists, recent: RecentCalls, *, logs_arguments: bool) -> None:
        self._lists = lists
        self._recent = recent
        self._logs_arguments = logs_arguments

    async def call(
        self, handler: AgentHandler, name: str, arguments: Mapping[str, Any], trace_id: str, meta: Mapping[str, Any]
    ) -> Outcome:
        """Call a tool. Raises UnknownTool. After a cancellation the call ends with the handler.

        ``meta`` is the request's ``_meta``, which may have the host's trace context.
        """
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        named = method_of(name)
        if named is None or not (is_service(named[0]) and is_method(named[1])):
            tool = await self._lists.find(identity, handler.token, name)
            if tool is None:
                raise UnknownTool
            named = tool.service, tool.method
        is_command = self._lists.policy.options(identity, *named).is_command
        started, code = time.monotonic(), "abandoned"
        try:
            trace = None if handler.tracing is None else handler.tracing.ambient(meta)
            answer = await self._ask(handler, named, arguments, trace_id, trace, is_command=is_command)
            outcome, code = _outcome(answer, is_command=is_command)
        finally:
            logged = arguments if self._logs_arguments else None
            title, seconds = ".".join(named), time.monotonic() - started
            log_call(identity.user_id, title, code, seconds, trace_id, logged)
            ended = RecentCall(time.time(), title, code, round(seconds * 1000), trace_id)
            self._recent.add(identity.user_id, ended)
        return outcome

    @staticmethod
    async def _ask(
        handler: AgentHandler,
        named: tuple[str, str],
        arguments: Mapping[str, Any],
        trace_id: str,
        trace: TraceContext | None,
        *,
        is_command: bool,
    ) -> Answer | str:
        """Return the answer, or why there can be none."""
        try:
            params = encode_json(arguments)
            kind: Literal["request", "command"] = "command" if is_command else "request"
            frame = encode_call(kind, *named, params, id_=FRAME_ID, trace_id=trace_id, trace=trace)
        except ProtocolError as error:
            return error.description
        except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
            return "The arguments cannot be written as JSON"
        return await handler.ask(frame, added=len(frame) - len(params))


def _outcome(answer: Answer | str, *, is_command: bool) -> tuple[Outcome, str]:
    """Return the outcome and its code for the log."""
    if isinstance(answer, str):
        return _error({"code": ErrorCode.BAD_REQUEST.value, "description": answer, "retryable": False})
    if answer.status != 200:
        return _error(msgspec.json.decode(answer.body))
    if is_command:
        said = {"accepted": True}
        return Outcome("Accepted. The service does it now or later, and reports no result.", said), "ok"
    text = answer.body.decode()
    if len(text) > MAX_RESULT:
        note = (
            f"\n[cut: {MAX_RESULT} of {len(text)} characters. Ask for less, such as a narrower filter, fewer items "
            "or a smaller page, if the tool has a parameter for it.]"
        )
        return Outcome(text[:MAX_RESULT] + note, None), "ok"
    result = msgspec.json.decode(answer.body)
    return Outcome(text, result if isinstance(result, dict) else {"result": result}), "ok"


def _error(members: dict[str, Any]) -> tuple[Outcome, str]:
    code = members["code"]
    wait = members.get("retry_after_ms")
    after = "" if wait is None else f" Wait {max(round(wait / 1000), 1)} s before that."
    text = " ".join(filter(None, (f"{code}: {members['description']}.", _REMEDIES.get(code, "")))) + after
    return Outcome(text, {"error": members}, is_error=True), code
