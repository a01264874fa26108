"""The audit log's file, or standard output, and the formatter of its lines."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import Final

from ..exceptions import SettingsError
from ..journal import AUDIT_LOGGER, AccessLog, Audit, Journal
from ..settings import ENV_PREFIX, Settings
from .logs import JSONFormatter

__all__ = ["AuditFile", "journal_of", "written_audit"]

logger = logging.getLogger(__name__)

STANDARD_OUTPUT: Final = "-"
#: Seconds between two log lines about an audit log that cannot be written.
PROBLEM_INTERVAL: Final = 60.0


class AuditFile(logging.Handler):
    """Appends each record to a file as one line of JSON, in one write, so that several processes can share the file.

    The file has mode 600. Raises SettingsError if it cannot be opened at the start; later failures are logged, once a
    minute, and counted in ``lost``. ``path`` "-" is standard output.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())
        self._path = path
        self._file = -1
        self._logged_at = -PROBLEM_INTERVAL
        #: Lines that could not be written.
        self.lost = 0
        try:
            self._open()
        except OSError as error:
            expected = "the name of a file that the gateway may append to, or - for standard output"
            raise SettingsError(f"{ENV_PREFIX}AUDIT_LOG: {error.strerror}; expected {expected}") from error

    def _open(self) -> None:
        if self._path == STANDARD_OUTPUT:
            return
        # Without O_NONBLOCK the opening of a pipe without a reader would never end.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        file = os.open(self._path, flags, 0o600)
        try:
            mode = os.fstat(file).st_mode
            if not stat.S_ISREG(mode):
                raise OSError(0, "not a regular file")
            if stat.S_IMODE(mode) & 0o077:
                os.chmod(self._path, 0o600)
        except OSError:
            os.close(file)
            raise
        former, self._file = self._file, file
        if former >= 0:
            os.close(former)

    def reopen(self) -> None:
        """Open the file again by its name, once logrotate has moved it. If that fails, the former file stays in use."""
        try:
            self._open()
        except OSError as error:
            logger.error("the audit log cannot be opened again: %s; its former file is in use", error.strerror)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. Never raises."""
        try:
            line = f"{self.format(record)}\n"
            if self._path == STANDARD_OUTPUT:
                sys.stdout.write(line)
                sys.stdout.flush()
            elif os.write(self._file, line.encode()) < len(line.encode()):
                raise OSError(0, "the disk is full")
        except (OSError, ValueError) as error:  # ValueError: standard output is closed
            self.lost += 1
            if time.monotonic() - self._logged_at >= PROBLEM_INTERVAL:
                self._logged_at = time.monotonic()
                reason = getattr(error, "strerror", None) or type(error).__name__
                logger.error("the audit log cannot be written: %s; %d lines are lost so far", reason, self.lost)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        super().close()


def journal_of(settings: Settings) -> Journal:
    """Return the journal of a process with these settings."""
    access: AccessLog | None = None
    if settings.access_log != "off":
        access = AccessLog(settings.access_log_rate, calls=settings.access_log == "calls")
    return Journal(access, Audit() if settings.audit_log else None)


@contextlib.contextmanager
def written_audit(settings: Settings, audit: Audit | None) -> Iterator[None]:
    """Write the audit log to its file for as long as the context lasts. Raises SettingsError."""
    if audit is None:
        yield
        return
    handler = AuditFile(settings.audit_log)
    log = logging.getLogger(AUDIT_LOGGER)
    level, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # a stream of its own, and not a part of the log
    audit.reopen = handler.reopen
    try:
        yield
    finally:
        audit.close()
        audit.reopen = lambda: None
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
        handler.close()
