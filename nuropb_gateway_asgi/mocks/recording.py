"""A recording in the making: its file, and the recorder of a client's connection."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ..generation_cache import GenerationCache
from ..protocol import is_method, is_service
from ..topics import GATEWAY_TOPICS
from .traffic import MAX_LINE, MAX_LINES, MAX_SIZE, CallRecord, EventRecord, Head, Record, Redaction

__all__ = ["ConnectionTraffic", "Recorder", "Recording"]

logger = logging.getLogger(__name__)

#: Calls of a connection whose answers a recorder waits for.
MAX_PENDING: Final = 10_000
#: Events that a recording remembers, to write one that came to several connections once.
REMEMBERED: Final = 1000
#: Events of the protocol itself, which no service publishes.
_OWN: Final = GATEWAY_TOPICS | {"recovered"}


class Recording:
    """A new file of traffic, which several connections share. Only its owner may read it.

    A recording that cannot go on (a full disk, the size that a replay reads) ends with one warning; the calls and
    events themselves go on.
    """

    def __init__(self, path: Path, redacted: Iterable[str] = ()) -> None:
        self.path = path
        self.redact = Redaction(redacted)
        self._started = time.monotonic()
        self._file: io.FileIO | None = None
        self._size = self._lines = 0
        #: How often each event was written.
        self._written: GenerationCache[int, int] = GenerationCache(REMEMBERED)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the file, and close it at the end. Raises OSError, FileExistsError for a file that is there."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        # Without a buffer: a recording is read while it is made, and is whole if the process is killed.
        with open(descriptor, "wb", buffering=0) as self._file:
            self._started = time.monotonic()
            self.put(Head(redacted=self.redact.names))
            try:
                yield
            finally:
                self._file = None

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def put_event(self, record: EventRecord, key: int, count: int) -> None:
        """Write an event that a connection has for the ``count``-th time, unless another connection had it as often."""
        if count > (self._written.get(key) or 0):
            self._written.add(key, count)
            self.put(record)

    def put(self, record: Record) -> None:
        """Write a record, unless the recording has ended."""
        file = self._file
        if file is None:
            return
        line = msgspec.json.encode(record) + b"\n"
        if len(line) > MAX_LINE:
            logger.warning("a call or event was not recorded: it has more than %d bytes", MAX_LINE)
            return
        if self._size + len(line) > MAX_SIZE or self._lines >= MAX_LINES:
            self._end("it has the size that a replay reads")
            return
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):  # a half line would keep a replay from reading the file
                file.truncate(self._size)
            self._end(error.strerror or type(error).__name__)
            return
        self._size += len(line)
        self._lines += 1

    def _end(self, reason: str) -> None:
        self._file = None
        logger.warning("the recording ends, and all else goes on: %s: %s", self.path, reason)


class ConnectionTraffic:
    """The calls and events of one connection of a recording. An event that comes to several of them is written once."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        #: The calls without an answer, and the seconds at which they began.
        self._pending: dict[str, tuple[CallRecord, float]] = {}
        self._seen: GenerationCache[int, int] = GenerationCache(REMEMBERED)

    def begin(self, id_: str, type_: Literal["request", "command"], service: str, method: str, params: Any) -> None:
        """Note a call, if a replay can answer it. ``params`` is JSON."""
        if len(self._pending) < MAX_PENDING and isinstance(params, dict) and _is_recorded(service, method):
            now = self._recording.now()
            record = CallRecord(round(now, 3), service, method, self._recording.redact(params), type=type_)
            self._pending[id_] = record, now

    def end(self, id_: str, result: Any = None, error: dict[str, Any] | None = None) -> None:
        """Write a noted call with its answer."""
        if id_ in self._pending:
            record, began = self._pending.pop(id_)
            record.ms = round((self._recording.now() - began) * 1000, 1)
            record.result, record.error = self._recording.redact(result), self._recording.redact(error)
            self._recording.put(record)

    def accept(self, id_: str) -> None:
        """Write a noted command: it has no other answer than that the mesh has taken it."""
        if id_ in self._pending and self._pending[id_][0].type == "command":
            self.end(id_)

    def drop(self, id_: str) -> None:
        """Forget a call that gets no answer."""
        self._pending.pop(id_, None)

    def event(self, topic: str, event: Any, id_: str | None, users: list[str] | None = None) -> None:
        """Write an event, unless another connection had it, too. ``id_`` is the same for all of them."""
        if topic in _OWN:
            return
        record = EventRecord(round(self._recording.now(), 3), topic, self._recording.redact(event), users)
        # Counted, since a service may publish equal events one after the other.
        key = hash((id_, topic, msgspec.json.encode(record.event)))
        count = (self._seen.get(key) or 0) + 1
        self._seen.add(key, count)
        self._recording.put_event(record, key, count)


class Recorder:
    """Records one connection of a client, by its frames: every call with its answer, and every event."""

    def __init__(self, recording: Recording) -> None:
        self._traffic = ConnectionTraffic(recording)

    def on_client(self, text: str | bytes) -> None:
        """Take a frame of the client."""
        type_, payload = _frame(text)
        id_, service, method = payload.get("id"), payload.get("service"), payload.get("method")
        kind: Any = type_
        is_call = kind in ("request", "command") and isinstance(id_, str)
        if is_call and isinstance(service, str) and isinstance(method, str):
            self._traffic.begin(str(id_), kind, service, method, payload.get("params", {}))

    def on_gateway(self, text: str | bytes) -> None:
        """Take a frame of the gateway."""
        type_, payload = _frame(text)
        if type_ == "event" and isinstance(topic := payload.get("topic"), str):
            trace_id = payload.get("trace_id")
            self._traffic.event(topic, payload.get("event"), trace_id if isinstance(trace_id, str) else None)
        elif type_ in ("response", "error") and isinstance(id_ := payload.get("id"), str):
            error = payload.get("error")
            self._traffic.end(id_, payload.get("result"), error if isinstance(error, dict) else None)


def _is_recorded(service: str, method: str) -> bool:
    """Return whether a replay can answer calls of this method; the look-ups before a first call have no record."""
    return is_service(service) and is_method(method) and not method.startswith("_") and method != "nuropb_describe"


def _frame(text: str | bytes) -> tuple[str, dict[str, Any]]:
    try:
        frame = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", {}
    payload = frame.get("payload") if isinstance(frame, dict) else None
    return (str(frame.get("type")), payload) if isinstance(payload, dict) else ("", {})
