"""A gateway served as by its command line, with what no setting can change: ``python -m tests.servers.gateway``.

With a small ``--send-buffer`` a client that does not read is soon felt. With small ``--queue-expires`` and
``--queue-length`` the broker drops queues and events, and with a small ``--goodbye-spread`` clients come back, within
the time that a test has. At SIGUSR1 the process frees what it can, so that its memory can be compared with that of
another time, and says ``freed N``, for the Nth time.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import signal
import socket
import sys
from typing import Any

import uvicorn

from nuropb_gateway_asgi import handler_manager, sockets
from nuropb_gateway_asgi.gateway import create_app
from nuropb_gateway_asgi.mesh.rabbitmq import _events, _mesh
from nuropb_gateway_asgi.server import make_config
from nuropb_gateway_asgi.settings import Settings


def free_at_a_signal() -> None:
    """Collect garbage at SIGUSR1, and have the C library return its free memory to the system where it can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    numbers = itertools.count(1)

    def free(number: int, frame: object) -> None:
        gc.collect()
        if trim is not None:
            trim(0)
        print(f"freed {next(numbers)}", flush=True)

    signal.signal(signal.SIGUSR1, free)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--send-buffer", type=int, metavar="BYTES", help="of each connection, in the kernel")
    parser.add_argument("--queue-expires", type=int, metavar="SECONDS", default=_mesh.QUEUE_EXPIRES)
    parser.add_argument("--queue-length", type=int, metavar="EVENTS", default=_events.EVENT_QUEUE_LENGTH)
    parser.add_argument("--goodbye-spread", type=float, metavar="SECONDS", default=handler_manager.GOODBYE_SPREAD)
    options = parser.parse_args()
    # The kernel gives up on a client that takes nothing for 30 s, however long a write may last by WRITE_TIMEOUT.
    sockets.USER_TIMEOUT = 3600  # type: ignore[misc]
    _mesh.QUEUE_EXPIRES = options.queue_expires  # type: ignore[misc]
    _events.EVENT_QUEUE_LENGTH = options.queue_length  # type: ignore[misc]
    handler_manager.GOODBYE_SPREAD = options.goodbye_spread  # type: ignore[misc]
    listener = socket.create_server(("127.0.0.1", options.port), backlog=1024)
    if options.send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)  # the connections inherit it
    settings = Settings.from_env()
    # No pings of the server, which cut off a client that reads nothing for 40 s: those of the gateway suffice.
    chosen: dict[str, Any] = {"ws_per_message_deflate": False, "access_log": False, "ws_ping_interval": None}
    config = make_config(create_app(settings, announce=False), settings, **chosen)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # uvicorn raises it again at the end
    free_at_a_signal()
    print(f"listening on {listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
