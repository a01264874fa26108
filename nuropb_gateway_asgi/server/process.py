"""Tuning of a server's process: open files, event loop, garbage collector, and uvicorn's configuration."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..handlers.direct import SIZE_FACTOR
from ..observability.logs import JSONFormatter
from ..settings import Settings
from ._uvicorn import ACCEPT_FAILED, OWN_WAY, unprotected

if sys.platform != "win32":
    import resource
if TYPE_CHECKING:
    import uvicorn

__all__ = [
    "ACCEPTS_PER_TURN",
    "allow_files",
    "limit_event_loop",
    "make_config",
    "most_connections",
    "new_event_loop",
    "provide_files",
    "tune_collector",
]

logger = logging.getLogger(__name__)

#: Open files of a process beside its clients' connections: the broker's, the policy file, log files.
SPARE_FILES: Final = 64
#: Connections without a request that a process has files for, in addition to MAX_CONNECTIONS.
ROOM_FOR_HEADS: Final = 1000
#: Seconds for a TLS handshake; asyncio's default is 60.
TLS_HANDSHAKE_TIMEOUT: Final = 10.0
#: Connections that asyncio's own event loop accepts in one turn. With the default of asyncio and uvicorn, all that wait
#: in the backlog, up to 2048 clients that come back at once made turns of up to two seconds, for everybody.
ACCEPTS_PER_TURN: Final = 16
#: Connections that wait in the kernel where the caller does not say otherwise: asyncio's default.
BACKLOG: Final = 100
#: Seconds between two log lines about connections that cannot be accepted.
ACCEPT_LOG_INTERVAL: Final = 60.0
#: Seconds for uvicorn's shutdown to wait for connections, after the gateway's own drain.
SHUTDOWN_TIMEOUT: Final = 2
#: Seconds for a worker to answer its supervisor, which kills it otherwise. A worker that starts answers once it has
#: imported uvicorn: with uvicorn's own 5 s, a machine that is too busy for that would start and kill workers for ever.
WORKER_TIMEOUT: Final = 60
#: Thresholds of the garbage collector: new containers per collection of the youngest generation, and collections of a
#: generation per collection of the next older one.
COLLECT_AFTER: Final = (5000, 20, 50)


def most_connections() -> float:
    """Return the number of connections that this process has files for."""
    if sys.platform == "win32":
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else max(limit - SPARE_FILES, 1)


def allow_files(connections: int) -> int | None:
    """Raise the limit of open files as far as ``connections`` and a reserve for unfinished heads need.

    Returns the number of connections that fit if the hard limit is too low for ``connections``, else None.
    """
    if sys.platform == "win32":
        return None
    wanted = connections + ROOM_FOR_HEADS + SPARE_FILES
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != limit < wanted:
        possible = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        with contextlib.suppress(OSError, ValueError):  # macOS has a further limit, which it does not report
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, most))
            limit = possible
    room = limit - SPARE_FILES
    return None if limit == resource.RLIM_INFINITY or room >= connections else max(room, 1)


def provide_files(connections: int) -> None:
    """Raise the limit of open files for ``connections``, with a warning if the hard limit is too low."""
    if (room := allow_files(connections)) is not None:
        logger.warning(
            "the limit of open files allows only %d connections, MAX_CONNECTIONS is %d; raise the limit "
            "(ulimit -n, LimitNOFILE=)",
            room,
            connections,
        )


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop of uvicorn's choice, limited by :func:`limit_event_loop`."""
    try:
        from uvicorn.loops.auto import auto_loop_factory
    except ImportError:
        loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
    else:
        loop = auto_loop_factory()()
    limit_event_loop(loop)
    return loop


def limit_event_loop(loop: asyncio.AbstractEventLoop, *, tls: bool = True) -> None:
    """Have ``loop`` log connections that cannot be accepted once a minute; asyncio logs thousands per second.

    With ``tls``, its servers have a timeout for TLS handshakes, too, and asyncio's own loop accepts ACCEPTS_PER_TURN
    connections at a time; uvloop accepts all that wait. An application's own exception handler stays.
    """
    logged_at = -math.inf

    def on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal logged_at
        if context.get("message") != ACCEPT_FAILED:
            loop.default_exception_handler(context)
        elif loop.time() - logged_at >= ACCEPT_LOG_INTERVAL:
            logged_at = loop.time()
            logger.error("connections cannot be accepted: %s", context.get("exception"))

    if loop.get_exception_handler() is None:
        loop.set_exception_handler(on_exception)
    if not tls:
        return
    create_server: Callable[..., Any] = loop.create_server

    async def limited(*args: Any, **kwargs: Any) -> asyncio.Server:
        if kwargs.get("ssl") is not None:
            kwargs.setdefault("ssl_handshake_timeout", TLS_HANDSHAKE_TIMEOUT)
        backlog = kwargs.get("backlog", BACKLOG)
        if not isinstance(loop, asyncio.SelectorEventLoop) or backlog <= ACCEPTS_PER_TURN:
            made: asyncio.Server = await create_server(*args, **kwargs)
            return made
        # asyncio takes one number for both: the queue in the kernel, and the connections of a turn.
        server: asyncio.Server = await create_server(*args, **kwargs | {"backlog": ACCEPTS_PER_TURN})
        if server.is_serving():
            for each in server.sockets:
                with each.dup() as listener:
                    listener.listen(backlog)
        return server

    loop.create_server = limited  # type: ignore[method-assign]


def tune_collector() -> None:
    """Have the garbage collector visit long-lived objects rarely. To be called once the application is made.

    With Python's own thresholds, 3000 clients that connected within 5 s cost 2 s of CPU and a pause of 0.6 s.
    """
    gc.collect()
    gc.freeze()  # modules and their objects stay for the life of the process
    gc.set_threshold(*COLLECT_AFTER)


def make_config(app: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """Configure uvicorn for the gateway. ``app`` is the application, or the import string of a factory (``factory``).

    If :func:`unprotected` gives a reason, uvicorn uses its own protocols, and the caller should log the reason.
    """
    import uvicorn

    # Named in each case, so that the gateway's lifespan replaces nothing.
    options["http"], options["ws"] = OWN_WAY
    if unprotected() is None:
        options |= {"http": f"{__package__}:HTTPProtocol", "ws": f"{__package__}:WebSocketProtocol"}
    if settings.log_config:
        options["log_config"] = None  # the gateway has loaded that file, and filters what it logs
    elif (log_config := copy.deepcopy(getattr(uvicorn.config, "LOGGING_CONFIG", None))) is not None:
        if settings.log_format == "json":
            log_config["formatters"] = {name: {"()": JSONFormatter} for name in log_config["formatters"]}
        options["log_config"] = log_config
    return uvicorn.Config(
        app,
        loop=f"{__package__}:new_event_loop",
        ws_max_size=SIZE_FACTOR * settings.max_message_size,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        timeout_worker_healthcheck=WORKER_TIMEOUT,
        log_level=None if settings.log_config else settings.log_level,
        server_header=False,
        lifespan="on",
        **options,
    )
