"""The socket that the server listens at: a port, a Unix socket, or a file descriptor that is already bound."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...sockets import set_options
from .options import Options

if TYPE_CHECKING:
    import uvicorn

__all__ = ["listening", "shown_url"]


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
