"""Recorded traffic: one JSON object a line. ``docs/development-without-a-mesh.md`` has the format.

Tokens and the named members are redacted before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from .nodes import MockFileError

__all__ = [
    "FORMAT",
    "MAX_LINE",
    "MAX_LINES",
    "MAX_SIZE",
    "REDACTED",
    "CallRecord",
    "EventRecord",
    "Head",
    "Record",
    "Redaction",
    "read_traffic",
]

FORMAT: Final = "nuropb-traffic/1"
REDACTED: Final = "(redacted)"
#: Members that are redacted in every recording, whatever their case.
ALWAYS: Final = ("token", "access_token", "refresh_token", "id_token", "authorization", "password", "secret", "api_key")
#: Bytes of a file, of a line; lines of a file.
MAX_SIZE: Final = 256 << 20
MAX_LINE: Final = 4 << 20
MAX_LINES: Final = 200_000
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


class EventRecord(msgspec.Struct, tag="event", tag_field="kind", omit_defaults=True):
    """An event that came ``at`` seconds after the start.

    ``users`` are the user ids that its publisher named; None for the subscribers of the topic, and in the recording of
    a client, which does not learn them.
    """

    at: float
    topic: str
    event: Any = None
    users: list[str] | None = None


Record: TypeAlias = Head | CallRecord | EventRecord

_decode = msgspec.json.Decoder(Record).decode


class Redaction:
    """Replaces the values of named members, at any depth, and all JSON web tokens."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = tuple(dict.fromkeys([*ALWAYS, *(name.lower() for name in names)]))

    def __call__(self, value: Any) -> Any:
        """Return ``value``, which is JSON, without the secrets; nothing of it if it is too deep to look through."""
        try:
            return self._of(value)
        except RecursionError:
            return REDACTED

    def _of(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: REDACTED if name.lower() in self.names and each is not None else self._of(each)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [self._of(each) for each in value]
        return _TOKEN.sub(REDACTED, value) if isinstance(value, str) else value


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
