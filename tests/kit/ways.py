"""Every way to run the gateway on uvicorn, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.authentication.keys import new_secret

from .clients import RawClient
from .processes import ROOT, Process, run_module
from .waiting import DEADLINE, eventually

__all__ = ["BEARER", "SERVE", "WAYS", "Running", "Way", "running"]

SECRET: Final = new_secret()
BEARER: Final = ("Authorization", f"Bearer {issue_token(SECRET, 'alice')}")
APP: Final = "nuropb_gateway_asgi:app"

MOUNTED: Final = """
from fastapi import FastAPI
from nuropb_gateway_asgi import Gateway

app = FastAPI()
Gateway().mount(app, "/gateway")
"""
SERVER: Final = """
import asyncio, threading, uvicorn
from nuropb_gateway_asgi import create_app

server = uvicorn.Server(uvicorn.Config(create_app(), port=0))
"""
OWN_LOOP: Final = f"""{SERVER}
async def main():
    await asyncio.gather(server.serve(), asyncio.sleep(0))

asyncio.run(main())
"""
THREAD: Final = f"""{SERVER}
threading.Thread(target=server.run).start()
"""


@dataclass(frozen=True)
class Way:
    """A command that starts a server, in which ``{{directory}}`` and ``{{fd}}`` are replaced."""

    command: Sequence[str]
    processes: int = 1
    path: str = "/ws"
    #: A Python file for the command.
    program: str = ""
    #: The signal that ends the server; without signal handlers, no server is told of SIGTERM.
    stop: signal.Signals = signal.SIGTERM


SERVE: Final = Way(("nuropb_gateway_asgi", "serve", "--port", "0"))
#: The ways in which another program configures uvicorn.
WAYS: Final = {
    "uvicorn": Way(("uvicorn", APP, "--port", "0")),
    "workers": Way(("uvicorn", APP, "--port", "0", "--workers", "2"), processes=2),
    "reload": Way(("uvicorn", APP, "--port", "0", "--reload", "--reload-dir", "{directory}")),
    "uds": Way(("uvicorn", APP, "--uds", "{directory}/socket")),
    "fd": Way(("uvicorn", APP, "--fd", "{fd}")),
    "h11": Way(("uvicorn", APP, "--port", "0", "--http", "h11", "--ws", "websockets-sansio")),
    "gunicorn": Way(
        ("gunicorn", APP, "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-b", "127.0.0.1:0"), processes=2
    ),
    "mounted": Way(
        ("uvicorn", "program:app", "--port", "0", "--app-dir", "{directory}"), path="/gateway/ws", program=MOUNTED
    ),
    "own loop": Way(("program",), program=OWN_LOOP),
    "thread": Way(("program",), program=THREAD, stop=signal.SIGKILL),
}


@dataclass(frozen=True)
class Running:
    """A server process, and its address: a port or the path of a Unix socket."""

    process: Process
    address: int | str

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[RawClient]:
        unix = isinstance(self.address, str)
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as connection:
            connection.setblocking(False)
            address: Any = self.address if unix else ("127.0.0.1", self.address)
            async with asyncio.timeout(DEADLINE):
                await asyncio.get_running_loop().sock_connect(connection, address)
            yield RawClient(connection)


@contextlib.asynccontextmanager
async def running(
    way: Way, directory: Path, *more: str, send_buffer: int | None = None, **settings: str
) -> AsyncIterator[Running]:
    """Run a server until its workers serve, and yield it.

    ``send_buffer`` is the kernel's for connections, in bytes, if the command takes ``{fd}``.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # the connections inherit it
        (directory / "program.py").write_text(way.program)
        filled = [each.format(directory=directory, fd=listener.fileno()) for each in (*way.command, *more)]
        options: dict[str, Any] = {"pass_fds": [listener.fileno()]}
        if not any("{fd}" in each for each in way.command):
            options.clear()
            listener.close()
        environment = {"PYTHONPATH": f"{ROOT}:{directory}"}
        chosen = {"JWT_KEY": SECRET, **settings}
        async with run_module(*filled, settings=chosen, environment=environment, **options) as process:
            where = (
                r"(?:running on http|Listening at: http|gateway is at ws)://127\.0\.0\.1:(\d+)|"
                r"unix socket (\S+)|on socket \('[^']*', (\d+)"
            )
            match = await process.line(where)
            await eventually(lambda: process.output.count("Application startup complete") >= way.processes)
            address = match[2] or int(match[1] or match[3])
            server = Running(process, address)
            await answers(server)
            try:
                yield server
            finally:
                process.signal(way.stop)  # workers of uvicorn would outlive a parent that is killed
                await process.wait()
            assert "Traceback" not in process.output, process.output


async def answers(server: Running) -> None:
    """Wait until the server listens: it may log its address before."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                async with server.connection():
                    return
            await asyncio.sleep(0.02)
