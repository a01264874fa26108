"""The socket that the server listens at: a port, a Unix socket, or a file descriptor that is already bound."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ...sockets import set_options
from .._output import say
from .options import Options

if TYPE_CHECKING:
    import uvicorn

__all__ = ["DEFAULT_PORT", "choose_port", "listening", "shown_url"]

DEFAULT_PORT: Final = 8000
#: The ports from which a gateway in development takes the first free one.
PORTS: Final = 100


def choose_port(options: Options, *, may_move: bool) -> int:
    """Return the port to listen at. Raises OSError, with a remedy, if it is in use or not this user's to take.

    If the user named none, it is :data:`DEFAULT_PORT`; if that is in use and the gateway ``may_move``, as in
    development, it is the next free one, with a line that says so.
    """
    port = DEFAULT_PORT if options.port is None else options.port
    if options.uds is not None or options.fd is not None:
        return port
    try:
        _try_port(options.host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise OSError(error.errno, _why_not(options.host, port, error)) from error
        for other in range(port + 1, port + PORTS) if may_move and options.port is None else ():
            with contextlib.suppress(OSError):
                _try_port(options.host, other)
                say(f"port {port} is in use, so this gateway is at port {other}; --port names another one")
                return other
        raise OSError(error.errno, _why_not(options.host, port, error)) from error
    return port


def _try_port(host: str, port: int) -> None:
    """Bind a port as uvicorn would. Raises OSError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use by another program: stop it, or name another port (--port {port + 1})"
    if error.errno == errno.EACCES:
        return f"port {port} is for privileged users: name one above 1023, and let a proxy listen at {port}"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host} is no address of this machine: name one of its own (--host 0.0.0.0 for all of them)"
    return f"port {port} of {host}: {error.strerror or type(error).__name__}"


@contextlib.contextmanager
def listening(config: uvicorn.Config, options: Options) -> Iterator[socket.socket]:
    """Open the socket that ``options`` name, and close it at the end."""
    with _opened(config, options) as listener:
        set_options(listener)
        yield listener


def _opened(config: uvicorn.Config, options: Options) -> contextlib.AbstractContextManager[socket.socket]:
    if options.uds is not None:
        return _unix_socket(options.uds)
    return socket.socket(fileno=options.fd) if options.fd is not None else config.bind_socket()


def shown_url(listener: socket.socket, path: str, *, tls: bool) -> str:
    """Return the WebSocket URL of ``listener``; of a Unix socket, a description."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"{name} (a Unix socket), path {path}"
    host, port = name[:2]
    return f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}{path}"


@contextlib.contextmanager
def _unix_socket(path: str) -> Iterator[socket.socket]:
    """Bind a Unix socket for its owner and group. At the end it is removed, unless another file has replaced it."""
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
    """Whether ``path`` is a socket without a listener, as a killed process leaves it."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False
