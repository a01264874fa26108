"""What gets into a log: no token, cookie, query string or body, and no line that a client made up.

The gateway's own messages are written that way. This module sees to those of the server and of the libraries: uvicorn
logs query strings at its info level, websockets the headers of handshakes and the beginning of every frame at debug
level, and an exception may quote whatever it was raised for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Final

from ..exceptions import GatewayError
from ..settings import Settings

__all__ = ["JSONFormatter", "LogFilter", "configure_logging", "filtered_server_logs"]

_SERVER: Final = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")
#: C0, DEL, C1, and what else ends a line somewhere.
_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
#: What these say is about the process and its surroundings, and written to be read.
_SPEAKING: Final = (GatewayError, OSError)


class LogFilter(logging.Filter):
    """Takes what is a client's own out of log records.

    Of WebSocket connections only, unless the process is the gateway's as a ``whole``: then also of HTTP requests and of
    exceptions, which are told by their type and place.
    """

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self._whole = whole

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged; it is changed in place."""
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
            record.exc_info = None  # the client's fault, and a traceback for each would fill a disk
        if record.exc_info and self._whole:
            record.exc_text = _traceback(record.exc_info[1])
        return True

    def _without_content(self, arg: Any) -> Any:
        """An ASGI scope or message, which uvicorn logs at trace level, by its type."""
        if isinstance(arg, dict) and (self._whole or str(arg.get("type")).startswith("websocket")):
            return arg.get("type")
        return arg


def _escaped(arg: Any, *, query: bool) -> Any:
    if isinstance(arg, BaseException):
        return str(arg).translate(_ESCAPED)  # it may name an address, as a proxy gave it
    if not isinstance(arg, str):
        return arg
    return (arg if query else arg.partition("?")[0]).translate(_ESCAPED)


def _traceback(error: BaseException | None) -> str:
    """A traceback as Python prints it, but for the messages of exceptions that may quote what a client sent."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{_name(error)}")
        if isinstance(error, BaseExceptionGroup):
            parts[-1] += "".join(f"\n  of {_indented(_traceback(each))}" for each in error.exceptions)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nAnd then:\n\n".join(reversed(parts))


def _name(error: BaseException) -> str:
    name = type(error).__qualname__
    return f"{name}: {error}" if isinstance(error, _SPEAKING) and str(error) else name


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


@contextlib.contextmanager
def filtered_server_logs() -> Iterator[None]:
    """Keep the content of WebSocket connections out of the server's log, in a process that may be another's."""
    filter_ = LogFilter(whole=False)
    loggers = [logging.getLogger(name) for name in _SERVER]
    for logger in loggers:
        logger.addFilter(filter_)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(filter_)


class TextFormatter(logging.Formatter):
    """One line for each message, as uvicorn's look."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s:     %(name)s: %(message)s")


class JSONFormatter(logging.Formatter):
    """One JSON object for each message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(settings: Settings) -> None:
    """Log the gateway's own messages to standard error, as LOG_LEVEL and LOG_FORMAT say, and filter what the server
    logs. For processes that are the gateway's only: within a host application, logging is the host's.
    """
    package = logging.getLogger("nuropb_gateway_asgi")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if settings.log_format == "json" else TextFormatter())
    filter_ = LogFilter(whole=True)
    handler.addFilter(filter_)
    package.handlers = [handler]
    package.propagate = False
    package.setLevel(settings.log_level.upper())
    for name in (*_SERVER, "asyncio"):
        logger = logging.getLogger(name)
        logger.filters = [each for each in logger.filters if not isinstance(each, LogFilter)]
        logger.addFilter(filter_)
