"""``serve``: the gateway on uvicorn, in one process or in several."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import multiprocessing
import os
import signal
import socket
import ssl
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from ..exceptions import SettingsError
from ..settings import ENV_PREFIX, Settings
from ._session import DEFAULT_URL

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

__all__ = ["serve"]

#: The exit code of a server that could not start; uvicorn's is the same, and it knows a worker's by it.
START_FAILED: Final = 3

logger = logging.getLogger(__name__)

EPILOG = f"""Everything else is set in the environment, see docs/deployment.md. Behind a proxy on another machine its
address has to be named with --forwarded-allow-ips, or the gateway sees the proxy in place of its clients.

\b
Signals:
  SIGTERM, SIGINT  nobody new, goodbye to all, wait for what is in flight; a second one ends that
  SIGHUP           with --workers: passed on to the workers

\b
Examples:
  nuropb-gateway serve
  nuropb-gateway serve --host 0.0.0.0 --port 8443 --ssl-certfile cert.pem --ssl-keyfile key.pem
  nuropb-gateway serve --uds /run/nuropb-gateway/socket --workers 4
  {ENV_PREFIX}MESH_URL=embedded://demo nuropb-gateway serve --reload --log-level debug

\b
Exit codes:
  0  it has ended because it was told to
  2  the command line or a setting is wrong
  3  the server could not start
"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    host: str
    port: int
    uds: str | None
    fd: int | None
    workers: int
    reload: bool
    proxy_headers: bool
    forwarded_allow_ips: str | None
    ssl_certfile: str | None
    ssl_keyfile: str | None
    deflate: bool
    log_level: str | None


@click.command(epilog=EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen at; 0 for a free one.",
)
@click.option("--uds", metavar="PATH", help="Listen at this unix socket instead; its owner and group may connect.")
@click.option("--fd", type=int, help="Listen at this file descriptor instead, a socket that is bound already.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, envvar="WEB_CONCURRENCY", help="Processes."
)
@click.option("--reload", is_flag=True, help="Start again whenever a Python file changes; for development.")
@click.option(
    "--proxy-headers/--no-proxy-headers",
    default=True,
    show_default=True,
    help="Take addresses of clients from X-Forwarded-For, if it comes from a proxy that is trusted.",
)
@click.option(
    "--forwarded-allow-ips",
    metavar="LIST",
    envvar="FORWARDED_ALLOW_IPS",
    help="Proxies that are trusted: addresses and networks, comma-separated.  [default: 127.0.0.1,::1; with --uds, "
    "whoever may connect]",
)
@click.option("--ssl-certfile", metavar="PATH", help="Certificate, for TLS without a proxy.")
@click.option("--ssl-keyfile", metavar="PATH", help="Its key.")
@click.option("--deflate/--no-deflate", default=False, show_default=True, help="Compression of messages.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    help=f"In place of {ENV_PREFIX}LOG_LEVEL.",
)
def serve(**options: Any) -> int:
    """Run the gateway (what happens if no command is named)."""
    chosen = _Options(**options)
    if chosen.uds is not None and chosen.fd is not None:
        raise click.UsageError("--uds and --fd exclude each other")
    if chosen.reload and chosen.workers > 1:
        raise click.UsageError("--reload and --workers exclude each other")
    if (chosen.ssl_certfile is None) != (chosen.ssl_keyfile is None):
        raise click.UsageError("--ssl-certfile and --ssl-keyfile belong together")
    if chosen.log_level is not None:
        os.environ[f"{ENV_PREFIX}LOG_LEVEL"] = chosen.log_level  # for the workers, too
    return _run(chosen)


def _run(options: _Options) -> int:
    # Only here, as it is slow, and other commands do not need it.
    import uvicorn
    from uvicorn.supervisors import ChangeReload

    from ..gateway import Gateway, create_app
    from ..observability.logs import configure_logging
    from ..server import allow_files, make_config, tune_collector, unprotected

    settings = Settings.from_env()
    _check_certificate(options)
    processes = options.workers > 1 or options.reload
    token: str | None = None
    app: Any
    if processes:
        configure_logging(settings)
        # Whatever is wrong with the settings is said once, and here.
        if Gateway(settings).development_token is not None:
            token = _share_secret(options)
        app = f"{__name__}:{'reloaded_app' if options.reload else 'worker_app'}"
    else:
        app = create_app(settings, announce=False)
        token = app.state.gateway.development_token
    config = make_config(
        app,
        settings,
        factory=processes,
        host=options.host,
        port=options.port,
        workers=options.workers,
        reload=options.reload,
        proxy_headers=options.proxy_headers,
        forwarded_allow_ips=options.forwarded_allow_ips or ("*" if options.uds else None),
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        ws_per_message_deflate=options.deflate,
    )
    if (room := allow_files(settings.max_connections)) is not None:
        logger.warning(
            "the limit of open files leaves room for %d of MAX_CONNECTIONS, %d", room, settings.max_connections
        )
    if (problem := unprotected()) is not None:
        logger.warning("uvicorn is used without the limits on heads, fragments and pings: %s", problem)
    with _listener(config, options) as listener:
        url = _url(listener, settings.path, tls=config.is_ssl)
        console = _console(url, settings)
        if options.reload:
            _announce(url, token, console)
            ChangeReload(config, target=uvicorn.Server(config).run, sockets=[listener]).run()
            return 0
        if processes:
            return _run_workers(config, listener, url, console)

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    # Only where the token was made in this process does the page take it from there.
                    link = console if console is None or token is None else f"{console}#token={token}"
                    _announce(url, token, link)

        # uvicorn raises the signal that ended it once more, after a graceful shutdown: that is no failure.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        server = Server(config)
        tune_collector()
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        return 0 if server.started else START_FAILED


def _check_certificate(options: _Options) -> None:
    if options.ssl_certfile is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
        except OSError as error:  # an SSLError is one, too
            raise ValueError(f"--ssl-certfile, --ssl-keyfile: {error}") from error


# --- several processes --------------------------------------------------------------------------------------------


def _share_secret(options: _Options) -> str:
    """Have the process that is started again and again take the same token; returns one."""
    from ..authentication import issue_token, new_secret
    from ..gateway import DEVELOPMENT_TOKEN_LIFETIME

    if not options.reload:
        raise SettingsError(
            f"{ENV_PREFIX}JWT_KEY: it is not set, and every worker would make up a key of its own; allowed is a "
            "secret of at least 32 bytes"
        )
    secret = os.environ[f"{ENV_PREFIX}JWT_KEY"] = new_secret()
    return issue_token(secret, "dev", username="Developer", lifetime=DEVELOPMENT_TOKEN_LIFETIME)


def _run_workers(config: uvicorn.Config, listener: socket.socket, url: str, console: str | None) -> int:
    from uvicorn.supervisors import Multiprocess

    class Supervisor(Multiprocess):
        """uvicorn's, but that SIGHUP and a second signal to stop are the workers' to hear.

        It relies on how uvicorn 0.54 keeps ``processes`` and ``signal_queue``, which is not its public interface.
        """

        announced = False

        def keep_subprocess_alive(self) -> None:  # twice a second
            super().keep_subprocess_alive()
            if not self.announced and any(process.is_ready() for process in self.processes):
                self.announced = True
                _announce(url, None, console)

        def handle_hup(self) -> None:
            self._signal_all(signal.SIGHUP)

        def join_all(self) -> None:
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

    with _metrics_directory():
        supervisor = Supervisor(config, sockets=[listener])
        supervisor.run()
    return START_FAILED if any(process.exitcode == START_FAILED for process in supervisor.processes) else 0


@contextlib.contextmanager
def _metrics_directory() -> Iterator[None]:
    """Let whichever worker is asked for metrics answer for all."""
    name = "PROMETHEUS_MULTIPROC_DIR"
    if name in os.environ or importlib.util.find_spec("prometheus_client") is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="nuropb-gateway-metrics-") as directory:
        os.environ[name] = directory
        yield


def worker_app() -> Starlette:
    """The application of one worker of several."""
    # Ctrl+C in a terminal would reach the workers twice, and a second signal ends the drain.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: logger.info("SIGHUP: there is nothing to reload"))
    return reloaded_app()


def reloaded_app() -> Starlette:
    """The application of a process that ends with its parent, however that ends."""
    from ..gateway import create_app
    from ..server import tune_collector

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="follow the parent", daemon=True).start()
    try:
        app = create_app(announce=False)
    except SettingsError as error:  # a file has changed since the parent looked
        click.echo(f"nuropb-gateway: {error}", err=True)
        sys.exit(START_FAILED)
    tune_collector()
    return app


# --- where it listens ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _listener(config: uvicorn.Config, options: _Options) -> Iterator[socket.socket]:
    if options.uds is not None:
        with _unix_socket(options.uds) as listener:
            yield listener
    elif options.fd is not None:
        with socket.socket(fileno=options.fd) as listener:
            yield listener
    else:
        with config.bind_socket() as listener:
            yield listener


@contextlib.contextmanager
def _unix_socket(path: str) -> Iterator[socket.socket]:
    """A unix socket for owner and group, which is removed at the end, unless it is another's by then."""
    with socket.socket(socket.AF_UNIX) as listener:
        if _is_abandoned(path):
            os.unlink(path)
        mask = os.umask(0o117)
        try:
            listener.bind(path)
        except OSError as error:
            raise OSError(error.errno, f"{path}: {error.strerror}") from error
        finally:
            os.umask(mask)
        made = os.stat(path).st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == made:
                    os.unlink(path)


def _is_abandoned(path: str) -> bool:
    """Whether it is a socket at which nobody listens: of a process that was killed."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False


def _url(listener: socket.socket, path: str, *, tls: bool) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"{name} (a unix socket), path {path}"
    host, port = name[:2]
    return f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}{path}"


def _console(url: str, settings: Settings) -> str | None:
    """Where the console is, if it is served and a browser gets there."""
    if not settings.has_console or not url.startswith("ws"):
        return None
    return f"http{url.removeprefix('ws').removesuffix(settings.path)}/"


def _announce(url: str, token: str | None, console: str | None) -> None:
    click.echo(f"\nThe gateway is at {url}")
    if console is not None and token is None:
        click.echo(f"Its console is at {console}")
    elif console is not None:
        # What is behind the # never leaves the browser.
        signed_in = ", signed in by this link" if "#" in console else ""
        click.echo(f"Its console is here{signed_in}:\n\n{console}\n")
    if token is not None:
        click.echo(
            f"Its mesh is embedded, with a service called demo. A token for this run (user dev, one day):\n\n{token}"
        )
        if url.startswith("ws"):  # it is no unix socket, which the client knows nothing about
            click.echo(_invitation(url, token))
    sys.stdout.flush()


def _invitation(url: str, token: str) -> str:
    program = os.path.relpath(sys.executable)
    program = program if not program.startswith("..") else sys.executable
    variables = {"TOKEN": token} if url == DEFAULT_URL else {"URL": url, "TOKEN": token}
    exports = [f"export {ENV_PREFIX}{name}={value}" for name, value in variables.items()]
    command = f"{program} -m nuropb_gateway_asgi call demo add a:=2 b:=3"
    return "\n".join(["", "Try it from another terminal:", "", *exports, command, ""])
