"""Supervisor of worker processes: uvicorn's, with signals forwarded to the workers."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from uvicorn.supervisors import Multiprocess

from ._uvicorn import unsupervised

if TYPE_CHECKING:
    import uvicorn

__all__ = ["START_FAILED", "Supervisor", "supervise"]

logger = logging.getLogger(__name__)

#: Exit code of a worker that could not start; uvicorn recognises such a worker by the same code.
START_FAILED: Final = 3


class Supervisor(Multiprocess):
    """uvicorn's supervisor, changed to forward SIGHUP and a second stop signal to the workers.

    ``on_ready`` is called once, when the first worker serves.
    """

    def __init__(self, *args: Any, on_ready: Callable[[], object], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_ready: Callable[[], object] | None = on_ready

    def keep_subprocess_alive(self) -> None:
        """Replace dead workers; uvicorn calls this twice per second."""
        super().keep_subprocess_alive()
        if self._on_ready is not None and any(process.is_ready() for process in self.processes):
            self._on_ready()
            self._on_ready = None

    def handle_hup(self) -> None:
        """Forward SIGHUP, on which uvicorn would replace the workers and disconnect their clients."""
        self._signal_all(signal.SIGHUP)

    def join_all(self) -> None:
        """Wait for the workers to drain; a second stop signal ends the drain."""
        for process in self.processes:
            while process.exitcode is None:
                process.process.join(0.1)
                if {signal.SIGINT, signal.SIGTERM} & set(self.signal_queue):
                    self._signal_all(signal.SIGTERM)
                self.signal_queue.clear()

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)


def supervise(config: uvicorn.Config, listener: socket.socket, on_ready: Callable[[], object]) -> int:
    """Run workers until a signal stops them, and return the exit code.

    With a uvicorn that lacks a name on which :class:`Supervisor` relies, uvicorn's own supervisor is used.
    """
    supervisor: Multiprocess
    if (reason := unsupervised()) is None:
        supervisor = Supervisor(config, sockets=[listener], on_ready=on_ready)
    else:
        logger.warning(
            "SIGHUP replaces the workers, and a second stop signal does not end their drain: %s; install an older "
            "release of it, or a newer release of the gateway",
            reason,
        )
        on_ready()
        supervisor = Multiprocess(config, sockets=[listener])
    supervisor.run()
    exit_codes = [getattr(process, "exitcode", None) for process in getattr(supervisor, "processes", ())]
    return START_FAILED if START_FAILED in exit_codes else 0
