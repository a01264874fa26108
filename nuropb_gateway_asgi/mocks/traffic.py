"""Recorded traffic of clients: one JSON object a line. ``docs/development-without-a-mesh.md`` has the format.

Tokens and the named members are redacted before anything is written.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from .nodes import MockFileError

__all__ = ["FORMAT", "REDACTED", "CallRecord", "EventRecord", "Head", "Recorder", "Redaction", "read_traffic"]

FORMAT: Final = "nuropb-traffic/1"
REDACTED: Final = "(redacted)"
#: Members that are redacted in every recording, whatever their case.
ALWAYS: Final = ("token", "access_token", "refresh_token", "id_token", "authorization", "password", "secret", "api_key")
#: Bytes of a file, of a line; lines of a file.
MAX_SIZE: Final = 256 << 20
MAX_LINE: Final = 4 << 20
MAX_LINES: Final = 200_000
#: Calls of a connection whose answers a recorder waits for.
MAX_PENDING: Final = 10_000
#: Events of the protocol itself, which no service publishes.
_OWN: Final = frozenset({"hello", "goodbye", "closed", "gap", "dropped", "unsubscribed", "recovered"})
#: A JSON web token, anywhere in a text.
_TOKEN: Final = re.compile(r"\bey[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")


class Head(msgspec.Struct, tag="head", tag_field="kind", omit_defaults=False):
    """The first line: the format, and the names of redacted members."""

    format: str = FORMAT
    redacted: tuple[str, ...] = ALWAYS


class CallRecord(msgspec.Struct, tag="call", tag_field="kind"):
    """A call: ``at`` seconds after the start, answered after ``ms`` milliseconds by ``result`` or ``error``.

    ``error`` has the members of the protocol's error: ``code``, ``description``, and more.
    """

    at: float
    service: str
    method: str
    params: dict[str, Any]
    type: Literal["request", "command"] = "request"
    result: Any = None
    error: dict[str, Any] | None = None
    ms: float = 0.0


class EventRecord(msgspec.Struct, tag="event", tag_field="kind"):
    """An event that a client received ``at`` seconds after the start."""

    at: float
    topic: str
    event: Any = None


Record: TypeAlias = Head | CallRecord | EventRecord

_decode = msgspec.json.Decoder(Record).decode


class Redaction:
    """Replaces the values of named members, at any depth, and all JSON web tokens."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = tuple(dict.fromkeys([*ALWAYS, *(name.lower() for name in names)]))

    def __call__(self, value: Any) -> Any:
        """Return ``value``, which is JSON, without the secrets."""
        if isinstance(value, dict):
            return {
                name: REDACTED if name.lower() in self.names and each is not None else self(each)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [self(each) for each in value]
        return _TOKEN.sub(REDACTED, value) if isinstance(value, str) else value


class Recorder:
    """Records one connection: every call with its answer, and every event. ``write`` gets the lines."""

    def __init__(self, write: Callable[[bytes], object], redaction: Redaction, started: float) -> None:
        self._write = write
        self._redact = redaction
        self._started = started
        self._pending: dict[str, tuple[CallRecord, float]] = {}

    def on_client(self, text: str | bytes) -> None:
        """Take a frame of the client."""
        type_, payload = _frame(text)
        id_, params = payload.get("id"), payload.get("params", {})
        service, method = payload.get("service"), payload.get("method")
        if type_ not in ("request", "command") or not isinstance(params, dict) or len(self._pending) >= MAX_PENDING:
            return
        if isinstance(id_, str) and isinstance(service, str) and isinstance(method, str):
            now = time.monotonic()
            kind: Any = type_
            record = CallRecord(round(now - self._started, 3), service, method, self._redact(params), type=kind)
            self._pending[id_] = record, now

    def on_gateway(self, text: str | bytes) -> None:
        """Take a frame of the gateway."""
        type_, payload = _frame(text)
        now = time.monotonic()
        if type_ == "event" and isinstance(topic := payload.get("topic"), str) and topic not in _OWN:
            self._put(EventRecord(round(now - self._started, 3), topic, self._redact(payload.get("event"))))
        elif type_ in ("response", "error") and isinstance(id_ := payload.get("id"), str) and id_ in self._pending:
            record, sent = self._pending.pop(id_)
            record.ms = round((now - sent) * 1000, 1)
            error = payload.get("error")
            if isinstance(error, dict):
                record.error = self._redact(error)
            else:
                record.result = self._redact(payload.get("result"))
            self._put(record)

    def _put(self, record: Record) -> None:
        self._write(msgspec.json.encode(record) + b"\n")


def _frame(text: str | bytes) -> tuple[str, dict[str, Any]]:
    try:
        frame = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", {}
    payload = frame.get("payload") if isinstance(frame, dict) else None
    return (str(frame.get("type")), payload) if isinstance(payload, dict) else ("", {})


def head(redaction: Redaction) -> bytes:
    """Return the first line of a recording."""
    return msgspec.json.encode(Head(redacted=redaction.names)) + b"\n"


def read_traffic(path: Path) -> tuple[Head, list[CallRecord | EventRecord]]:
    """Read a recording. Raises MockFileError with file, line and reason, and OSError for no file."""
    if (size := path.stat().st_size) > MAX_SIZE:
        raise MockFileError(f"{path}:1: the file has {size} bytes; expected at most {MAX_SIZE}")
    first: Head | None = None
    records: list[CallRecord | EventRecord] = []
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if len(line) > MAX_LINE or number > MAX_LINES:
                raise MockFileError(f"{path}:{number}: too long; expected {MAX_LINE} bytes a line, {MAX_LINES} lines")
            if not line.strip():
                continue
            try:
                record = _decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise MockFileError(f"{path}:{number}: no record ({error}); expected a line of 'record'") from None
            if first is None:
                if not isinstance(record, Head) or record.format != FORMAT:
                    raise MockFileError(f"{path}:{number}: another format; expected a head with {FORMAT} first")
                first = record
            elif isinstance(record, Head):
                raise MockFileError(f"{path}:{number}: a second head")
            else:
                records.append(record)
    if first is None:
        raise MockFileError(f"{path}:1: the file is empty; expected a recording")
    return first, records


def _lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE + 1):
        yield line
