"""The command line, started by ``python -m nuropb_gateway_asgi``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # First of all: a process with the id 1, as in a container, ignores SIGTERM until it has a handler, and the imports
    # take a second.
    is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with contextlib.suppress(ValueError):  # not in the main thread
        if is_default:
            signal.signal(signal.SIGTERM, _end)
    try:
        from .cli import main as run

        return run(arguments)
    finally:
        if is_default and signal.getsignal(signal.SIGTERM) is _end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    """End at once. An exception could be lost: Python swallows those that it finds in a finalizer."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the process with the id 1 is still there


if __name__ == "__main__":
    sys.exit(main())
