"""The gateway on uvicorn: in this process, in workers, or in a process that restarts when a file changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from ...exceptions import SettingsError
from ...settings import ENV_PREFIX, Settings
from .._development import share_key, with_kept_key
from .._output import say
from .._recording import opened
from . import workers
from .activation import notify
from .announcement import announce, console_url, tools_url
from .listener import choose_port, listening, shown_url
from .options import Options
from .workers import START_FAILED, run_workers

if TYPE_CHECKING:
    import uvicorn

    from ...mocks.recording import Recording
    from ...wire.interface import Mesh

__all__ = ["run", "run_here"]

logger = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Run the gateway until a signal stops it, and return the exit code."""
    # Imported here, as these are slow and other commands do without them.
    import uvicorn
    from uvicorn.supervisors import ChangeReload

    from ...gateway import Gateway, create_app
    from ...observability.logs import configure_logging
    from ...server import make_config, provide_files, unprotected

    settings = Settings.from_env()
    _check_certificate(options)
    processes = options.workers > 1 or options.reload
    if options.workers == 1:
        settings = with_kept_key(settings, make=True)
    token: str | None = None
    app: Any
    recording: Recording | None = None
    if processes:
        configure_logging(settings)
        # Invalid settings are reported here, once, and not by every worker.
        token = Gateway(settings).development_token
        if token is not None:
            token = _share_secret(options, settings, token)
        app = f"{workers.__name__}:{'reloaded_app' if options.reload else 'worker_app'}"
    else:
        mesh, recording = _recorded(options, settings)
        app = create_app(settings, announce=False, mesh=mesh)
        token = app.state.gateway.development_token
    try:
        port = choose_port(options, may_move=settings.embedded)
    except OSError as error:
        say(error.strerror or str(error))
        return START_FAILED
    config = make_config(
        app,
        settings,
        factory=processes,
        host=options.host,
        port=port,
        workers=options.workers,
        reload=options.reload,
        proxy_headers=options.proxy_headers,
        forwarded_allow_ips=options.forwarded_allow_ips or ("*" if options.uds else None),
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        ws_per_message_deflate=options.deflate,
        root_path=options.root_path.rstrip("/"),
    )
    provide_files(settings.max_connections)
    if (problem := unprotected()) is not None:
        logger.warning("request heads, fragments and pings have only uvicorn's own limits: %s", problem)
    # Until uvicorn has its handlers, a signal must not leave a Unix socket or a directory behind. After a graceful
    # shutdown uvicorn raises the signal again that caused it; that must not look like a failure.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with listening(config, options) as listener:
        url = shown_url(listener, settings.path, tls=config.is_ssl)
        console, tools = console_url(url, settings), tools_url(url, settings)
        # The console takes a token from its link if the serving process has made the token's key, or has read it.
        is_own = token is not None and (not processes or bool(settings.development_key_file))
        link = f"{console}#token={token}" if console is not None and is_own else console
        if options.reload:
            listener.listen(config.backlog)  # clients wait for the first process, and are not refused until it is there
            announce(url, settings, token, link, tools)
            ChangeReload(config, target=uvicorn.Server(config).run, sockets=[listener]).run()
            return 0
        if processes:
            return run_workers(config, listener, on_ready=lambda: _announce_ready(url, settings, None, console, tools))
        with contextlib.nullcontext() if recording is None else opened(recording):
            if recording is not None:
                say(f"all calls to services, their answers and all events are recorded in {recording.path}")
            return run_here(
                config,
                listener,
                lambda: _announce_ready(url, settings, token, link, tools),
                is_shared=options.fd is not None,
            )


def _announce_ready(*lines: Any) -> None:
    announce(*lines)
    notify("READY=1")


def _recorded(options: Options, settings: Settings) -> tuple[Mesh | None, Recording | None]:
    """Make the mesh with its recording, if the options name a file."""
    if options.record is None:
        return None, None
    from ...assembly import make_mesh, naming_variables
    from ...mocks.mesh_recording import recorded_mesh
    from ...mocks.recording import Recording

    recording = Recording(options.record, options.redact)
    with naming_variables():
        return recorded_mesh(make_mesh(settings), recording), recording


def run_here(
    config: uvicorn.Config, listener: socket.socket, on_ready: workers.OnReady, *, is_shared: bool = False
) -> int:
    """Serve in this process, and return the exit code.

    A listener that is shared with the program that has opened it is let go at the first stop signal: clients that come
    later wait in the kernel for the next process, in the place of a refusal.
    """
    import uvicorn

    from ...server import tune_collector

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.started:
                return
            # The gateway's own handlers have been in place since the lifespan began.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _before(signal.getsignal(number), asyncio.get_running_loop(), self._leave))
            on_ready()

        def _leave(self) -> None:
            notify("STOPPING=1")
            loop = asyncio.get_running_loop()
            for each in self.servers if is_shared else ():
                for listener in each.sockets:
                    loop.remove_reader(listener.fileno())
                # asyncio makes the transport of an accepted connection in a task, which fails if the server is closed.
                loop.call_soon(loop.call_soon, each.close)

    server = Server(config)
    tune_collector()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0 if server.started else START_FAILED


def _before(handler: Any, loop: asyncio.AbstractEventLoop, action: Callable[[], object]) -> Any:
    """Return a signal handler that has the event loop do ``action``, and then does what ``handler`` does."""
    if not callable(handler):
        return handler

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(action)
        handler(number, frame)

    return on_signal


def _check_certificate(options: Options) -> None:
    """Raise ValueError unless certificate and key can be loaded."""
    if options.ssl_certfile is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
        except OSError as error:  # an SSLError is one, too
            raise ValueError(f"--ssl-certfile, --ssl-keyfile: {error}") from error


def _share_secret(options: Options, settings: Settings, token: str) -> str:
    """Give all restarts of the process one development key, and return a token that it signs."""
    from ...authentication import issue_token, new_secret
    from ...gateway import DEVELOPMENT_TOKEN_LIFETIME

    if not options.reload:
        raise SettingsError(
            f"{ENV_PREFIX}JWT_KEY: not set, so every worker would generate a key of its own; expected a secret of at "
            "least 32 bytes"
        )
    if settings.development_key_file:
        share_key(settings)
        return token
    secret = os.environ[f"{ENV_PREFIX}JWT_KEY"] = new_secret()
    return issue_token(secret, "dev", username="Developer", lifetime=DEVELOPMENT_TOKEN_LIFETIME)
