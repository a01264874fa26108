"""Log output without content of clients: no token, cookie, query string or body, and no forged lines.

The gateway's own messages are written that way. This module filters the messages of the server and of libraries:
uvicorn logs query strings at level info, websockets logs the headers of handshakes and the beginning of every frame at
level debug, and the message of an exception may quote its cause.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime as dt
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Final, TextIO

from ..exceptions import GatewayError, format_traceback
from ..journal import ACCESS_LOGGER
from ..settings import ENV_PREFIX, Settings
from .log_files import handlers, load_log_config
from .refusal_lines import RefusalFilter, is_of_anybody

__all__ = [
    "JSONFormatter",
    "LogFilter",
    "TextFormatter",
    "configure_logging",
    "filtered_server_logs",
    "level_of_log",
    "print_json_lines",
    "set_level_of_log",
]

_SERVER: Final = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")
#: Loggers of the gateway whose lines are about refused connections and requests.
_REFUSALS: Final = (
    "nuropb_gateway_asgi.handlers.refusals",
    "nuropb_gateway_asgi.handlers.handshake",
    "nuropb_gateway_asgi.handler_manager.refreshes",
)
#: Control characters (C0, DEL, C1), and the line separators of Unicode.
_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
#: Characters of a client's address or path in a line of the server, and of any other argument of a line. A client
#: chooses its path (64 KiB), and behind a trusted proxy its address, so it could fill a disk with few requests.
MAX_SERVER_TEXT: Final = 256
MAX_TEXT: Final = 4096
#: The end of a text that has been cut. A record may pass several filters.
_CUT_END: Final = re.compile(r"\.\.\. \([0-9]{1,20} characters\)\Z")
#: Characters of that end at most, and of one escaped character.
_CUT_END_LENGTH: Final = 37
_ESCAPED_LENGTH: Final = 6
#: A trace id of W3C Trace Context; the gateway's own ids are of this form.
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
#: Exceptions whose messages are about the process and its environment, and quote no client.
_QUOTABLE: Final = (GatewayError, OSError)


class LogFilter(logging.Filter):
    """Removes content of clients from log records.

    By default, only from records about WebSocket connections. With ``whole``, for a process that is the gateway's own,
    also from records about HTTP requests and exceptions; an exception is logged with type and place only.
    """

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self._whole = whole

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record, which is changed in place."""
        if record.levelno < logging.INFO and "websockets" in PurePath(record.pathname).parts:
            return False  # headers and frames
        if isinstance(record.args, tuple):
            args = record.args
            if record.name == "uvicorn.asgi":
                args = tuple(self._without_content(arg) for arg in args)
            if self._whole or '"WebSocket ' in str(record.msg):
                of_server = record.name.startswith("uvicorn.")
                args = tuple(_escaped(arg, query=not of_server) for arg in args)
            record.args = args
        if record.exc_info and str(record.msg).startswith("Invalid UTF-8"):
            record.exc_info = None  # caused by a client, which could fill a disk with tracebacks
        if record.exc_info and self._whole:
            record.exc_text = format_traceback(record.exc_info[1], quotable=_QUOTABLE)
        return True

    def _without_content(self, arg: Any) -> Any:
        """Replace an ASGI scope or message, which uvicorn logs at level trace, by its type."""
        if isinstance(arg, dict) and (self._whole or str(arg.get("type")).startswith("websocket")):
            return arg.get("type")
        return arg


def _escaped(arg: Any, *, query: bool) -> Any:
    if isinstance(arg, BaseException):
        return _cut(str(arg), MAX_TEXT).translate(_ESCAPED)  # may contain a client's address as a proxy passed it on
    if not isinstance(arg, str):
        return arg
    if query:
        return _cut(arg, MAX_TEXT).translate(_ESCAPED)
    return _cut(arg.partition("?")[0], MAX_SERVER_TEXT).translate(_ESCAPED)


def _cut(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    if len(text) <= _ESCAPED_LENGTH * length + _CUT_END_LENGTH and _CUT_END.search(text, length):
        return text
    return f"{text[:length]}... ({len(text)} characters)"


class _FormatterFilter(LogFilter):
    """A filter in front of a formatter that may not use the filtered text of an exception, but the exception itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record, which is changed in place."""
        if not super().filter(record):
            return False
        if record.exc_info:
            record.exc_info = None  # every formatter writes exc_text
        return True


@contextlib.contextmanager
def filtered_server_logs() -> Iterator[None]:
    """Keep content of WebSocket connections out of the server's log, also in a host application's process.

    The lines about refused connections are bounded there, too.
    """
    content, refusals = LogFilter(whole=False), RefusalFilter()
    filters: list[tuple[str, logging.Filter]] = [(name, content) for name in _SERVER]
    filters += [(name, refusals) for name in ("uvicorn.error", *_REFUSALS)]
    for name, each in filters:
        logging.getLogger(name).addFilter(each)
    try:
        yield
    finally:
        for name, each in filters:
            logging.getLogger(name).removeFilter(each)
        for filter_ in (refusals, *(each for name in _SERVER for each in logging.getLogger(name).filters)):
            if isinstance(filter_, RefusalFilter):
                filter_.report()


class TextFormatter(logging.Formatter):
    """Plain lines, in the style of uvicorn. The attributes of an event follow its text."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s:     %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of logging
        """Format the line of a record, without its exception."""
        line = super().formatMessage(record)
        attributes = dict(getattr(record, "attributes", None) or {})
        if (trace_id := getattr(record, "trace_id", None)) is not None and "attributes" in vars(record):
            attributes["trace_id"] = trace_id
        return " ".join([line, *(f"{name}={_plain(value)}" for name, value in attributes.items())])


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isprintable() and text and not {" ", '"', "="} & set(text) else json.dumps(text)


class JSONFormatter(logging.Formatter):
    """Lines of JSON, an object per message, with the names of OpenTelemetry's log data model (``docs/logs.md``).

    ``service_name`` is that of the resource; SERVICE_NAME by default.
    """

    def __init__(self, service_name: str = "") -> None:
        super().__init__()
        self._service_name = service_name or os.environ.get(f"{ENV_PREFIX}SERVICE_NAME", "") or Settings.service_name

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        time = dt.datetime.fromtimestamp(record.created, dt.UTC)
        entry: dict[str, Any] = {
            "Timestamp": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "SeverityText": record.levelname,
            "SeverityNumber": _severity(record.levelno),
            "Body": record.getMessage(),
            "InstrumentationScope": {"Name": record.name},
            "Resource": {"service.name": self._service_name, "process.pid": record.process},
        }
        if (event := getattr(record, "event_name", None)) is not None:
            entry["EventName"] = event
        trace_id = getattr(record, "trace_id", None)
        attributes = dict(getattr(record, "attributes", None) or {})
        if isinstance(trace_id, str):
            if _TRACE_ID.fullmatch(trace_id):
                entry["TraceId"] = trace_id
            else:  # a client may choose any text for the id of its call
                attributes["nuropb.trace_id"] = trace_id[:MAX_SERVER_TEXT]
        if record.exc_text or record.exc_info:
            trace = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
            attributes["exception.stacktrace"] = trace
        if attributes:
            entry["Attributes"] = attributes
        return json.dumps(entry)


def _severity(level: int) -> int:
    """Return the number of a level in OpenTelemetry: 1 for TRACE, 5 for DEBUG, 9 for INFO, ... 21 for CRITICAL."""
    return 1 if level < logging.DEBUG else min(1 + level // 10 * 4, 21)


class _JSONLines:
    """A text stream whose lines are JSON. A line that is not, such as one of a traceback, becomes a message."""

    def __init__(self, stream: TextIO, name: str, level: int) -> None:
        self._stream = stream
        self._name = name
        self._level = level
        self._formatter = JSONFormatter()
        self._unfinished = ""

    def write(self, text: str) -> int:
        """Write all whole lines; the beginning of another waits for its end."""
        if not isinstance(text, str):  # click tries bytes, to find out
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        *lines, self._unfinished = f"{self._unfinished}{text}".split("\n")
        for line in filter(str.strip, lines):
            self._stream.write(f"{line if _is_object(line) else self._message(line)}\n")
        return len(text)

    def finish(self) -> None:
        """Write a last line without its end."""
        self.write("\n")
        self._stream.flush()

    def _message(self, line: str) -> str:
        return self._formatter.format(logging.LogRecord(self._name, self._level, "", 0, line, None, None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_object(line: str) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return line.startswith("{") and isinstance(json.loads(line), dict)
    return False


def print_json_lines() -> None:
    """Have every line on standard output and standard error be JSON, whatever writes it."""
    for name, level in (("stdout", logging.INFO), ("stderr", logging.WARNING)):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _JSONLines):
            wrapped = _JSONLines(stream, name, level)
            setattr(sys, name, wrapped)
            atexit.register(wrapped.finish)


def configure_logging(settings: Settings) -> None:
    """Log the gateway's messages to standard error by LOG_LEVEL and LOG_FORMAT, and filter the server's log.

    With LOG_CONFIG, log by that file, and filter whatever its handlers get; its levels hold unless LOG_LEVEL is set.
    For processes that are the gateway's own: a host application configures logging itself. Raises SettingsError for a
    file that cannot be used.
    """
    package = logging.getLogger("nuropb_gateway_asgi")
    filter_ = LogFilter(whole=True)
    if settings.log_config:
        _configure_by_file(package, settings)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JSONFormatter(settings.service_name) if settings.log_format == "json" else TextFormatter())
        handler.addFilter(filter_)
        for each in (package, logging.getLogger(ACCESS_LOGGER)):
            each.handlers = [handler]
            each.propagate = False
        package.setLevel(settings.log_level.upper())
        logging.getLogger(ACCESS_LOGGER).setLevel(logging.INFO)
    for name in (*_SERVER, "asyncio"):
        logger = logging.getLogger(name)
        logger.filters = [each for each in logger.filters if not isinstance(each, LogFilter | RefusalFilter)]
        logger.addFilter(filter_)
    # Only here: the lines about other connections and requests of a host application are its own matter.
    logging.getLogger("uvicorn.access").addFilter(RefusalFilter())
    anybodys = RefusalFilter(is_of_anybody, "connections, and requests without a token,")
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).addFilter(anybodys)


def level_of_log() -> str:
    """Return the level of the gateway's loggers in this process."""
    return logging.getLevelName(logging.getLogger("nuropb_gateway_asgi").getEffectiveLevel()).lower()


def set_level_of_log(level: str) -> None:
    """Set the level of the gateway's loggers, and of the server's, in this process."""
    for name in ("nuropb_gateway_asgi", *_SERVER):
        logging.getLogger(name).setLevel(level.upper())


def _configure_by_file(package: logging.Logger, settings: Settings) -> None:
    for each in (package, logging.getLogger(ACCESS_LOGGER)):
        each.handlers = []
        each.propagate = True
        each.setLevel(logging.NOTSET)
    load_log_config(settings.log_config)
    filter_ = _FormatterFilter(whole=True)
    for handler in handlers():
        if not any(isinstance(each, _FormatterFilter) for each in handler.filters):
            handler.addFilter(filter_)
    if settings.log_level != "info" or os.environ.get(f"{ENV_PREFIX}LOG_LEVEL"):
        for name in (package.name, *_SERVER):
            logging.getLogger(name).setLevel(settings.log_level.upper())
