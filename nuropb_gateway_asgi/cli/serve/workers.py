"""Worker processes: their start in the parent, and the application in each of them."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeAlias

import click

from ...exceptions import SettingsError
from ...settings import ENV_PREFIX

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

__all__ = ["START_FAILED", "OnReady", "reloaded_app", "run_workers", "worker_app"]

#: Exit code of a server that could not start; the same as in server.supervisor, which imports uvicorn.
START_FAILED: Final = 3

#: Called once the server listens.
OnReady: TypeAlias = Callable[[], object]

logger = logging.getLogger(__name__)


def run_workers(config: uvicorn.Config, listener: socket.socket, on_ready: OnReady) -> int:
    """Run workers until a signal stops them, and return the exit code. ``on_ready`` is called for the first one."""
    from ...server.supervisor import supervise

    with _metrics_directory():
        return supervise(config, listener, on_ready)


@contextlib.contextmanager
def _metrics_directory() -> Iterator[None]:
    """Share a directory among the workers, so that each of them can answer with the metrics of all."""
    name = "PROMETHEUS_MULTIPROC_DIR"
    if name in os.environ or importlib.util.find_spec("prometheus_client") is None:
        yield
        return
    try:
        temporary = tempfile.TemporaryDirectory(prefix="nuropb-gateway-metrics-")
    except OSError as error:  # a container with read-only file systems
        logger.warning(
            "no temporary directory for metrics (%s), so each worker answers /metrics with its own figures only; "
            "name a writable directory in TMPDIR or %s",
            error.strerror,
            name,
        )
        yield
        return
    with temporary as directory:
        os.environ[name] = directory
        yield


def worker_app() -> Starlette:
    """Make the application of one of several workers."""
    # Ctrl+C in a terminal would reach the workers twice, and a second signal ends the drain.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _explain_hangup)
    return reloaded_app()


def _explain_hangup(number: int, frame: FrameType | None) -> None:
    if signal.getsignal(number) is _explain_hangup:  # else the application reloads something, and then calls this
        logger.info("SIGHUP ignored: there is no policy file")


def reloaded_app() -> Starlette:
    """Make the application of a process that ends with its parent, whatever ends the parent."""
    from ...gateway import create_app
    from ...observability.logs import print_json_lines
    from ...server import tune_collector

    if os.environ.get(f"{ENV_PREFIX}LOG_FORMAT", "").lower() == "json":
        print_json_lines()

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="follow the parent", daemon=True).start()
    try:
        app = create_app(announce=False)
    except SettingsError as error:  # a file has changed since the parent checked the settings
        click.echo(f"nuropb-gateway: {error}", err=True)
        sys.exit(START_FAILED)
    tune_collector()
    return app
