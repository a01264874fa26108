"""No segment waits for the acknowledgement of the one before (TCP_NODELAY): every transport, every way to listen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.authentication.keys import new_secret
from tests.kit.certificates import Certificate
from tests.kit.gateways import DEADLINE
from tests.kit.processes import ROOT, Process, run_module
from tests.kit.sockets import connections_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the sockets of other processes")

SECRET: Final = new_secret()
TOKEN: Final = issue_token(SECRET, "alice")
SERVE: Final = ("nuropb_gateway_asgi", "serve", "--port", "0")
PROTOCOLS: Final = (
    *("--http", "nuropb_gateway_asgi.server:HTTPProtocol"),
    *("--ws", "nuropb_gateway_asgi.server:WebSocketProtocol"),
)
AUTHORIZATION: Final = f"Host: gateway\r\nAuthorization: Bearer {TOKEN}\r\n"
CALL: Final = (
    f"POST /rpc/demo/add HTTP/1.1\r\n{AUTHORIZATION}Content-Type: application/json\r\nContent-Length: 13\r\n\r\n"
    + '{"a":1,"b":2}'
)
EVENTS: Final = f"GET /events?topic=demo.%23 HTTP/1.1\r\n{AUTHORIZATION}\r\n"


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str], tmp_path: Path, listener: socket.socket | None = None, **settings: str
) -> AsyncIterator[tuple[Process, int]]:
    """Run a gateway, and yield its process and port. Tests have no uvloop, which would set the option itself."""
    options: dict[str, object] = {} if listener is None else {"pass_fds": [listener.fileno()]}
    (tmp_path / "uvloop.py").write_text("raise ImportError('not in this test')\n")
    chosen = {"JWT_KEY": SECRET, "HTTP": "on", **settings}
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    async with run_module(*command, settings=chosen, environment={"PYTHONPATH": path}, **options) as process:
        port = int((await process.line(r"(?:gateway is at ws://|running on http://)127\.0\.0\.1:(\d+)"))[1])
        await process.line("Application startup complete")
        try:
            yield process, port
        finally:
            process.signal(signal.SIGTERM)  # uvicorn's own workers would outlive a parent that is killed
            await process.wait()


async def answered(port: int, question: str, marker: bytes) -> tuple[asyncio.StreamWriter, int]:
    """Ask on a new connection until the answer contains ``marker``; return the connection and its own port."""
    async with asyncio.timeout(DEADLINE):
        while True:  # uvicorn tells the address before it listens
            with contextlib.suppress(ConnectionRefusedError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            await asyncio.sleep(0.02)
        writer.write(question.encode())
        await reader.readuntil(marker)
    return writer, writer.get_extra_info("sockname")[1]


def servers(process: Process) -> list[int]:
    """Return the ids of the process and of its descendants."""
    found, i = [process.pid], 0
    while i < len(found):
        with contextlib.suppress(FileNotFoundError):
            found += map(int, Path(f"/proc/{found[i]}/task/{found[i]}/children").read_text().split())
        i += 1
    return found


def holds_nothing_back(process: Process, port: int) -> bool:
    """Whether the gateway's end of a connection has TCP_NODELAY; ``port`` is the client's, of either end."""
    for pid in servers(process):
        with connections_of(pid) as connections:
            for each in connections:
                with contextlib.suppress(OSError):
                    if port in (each.getpeername()[1], each.getsockname()[1]):
                        return each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    raise LookupError(f"no process has the connection with port {port}")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(SERVE, id="serve"),
        pytest.param((*SERVE, "--workers", "2"), id="workers"),
        pytest.param((*SERVE, "--reload"), id="reload"),
        pytest.param(("uvicorn", "nuropb_gateway_asgi:app", "--port", "0", *PROTOCOLS), id="uvicorn"),
        pytest.param(
            ("uvicorn", "nuropb_gateway_asgi:app", "--port", "0", "--workers", "2", *PROTOCOLS), id="uvicorn workers"
        ),
    ],
)
async def test_answers_and_events_over_http(command: tuple[str, ...], tmp_path: Path) -> None:
    async with running(command, tmp_path) as (process, port):
        for question, marker in ((CALL, b"\r\n\r\n3"), (EVENTS, b"event: hello")):
            writer, own = await answered(port, question, marker)
            assert holds_nothing_back(process, own)
            writer.close()


async def test_a_socket_that_is_bound_already(tmp_path: Path) -> None:
    with socket.socket() as listener:  # as made by a service manager: without the number of the protocol
        listener.bind(("127.0.0.1", 0))
        command = ("nuropb_gateway_asgi", "serve", "--fd", str(listener.fileno()))
        async with running(command, tmp_path, listener) as (process, port):
            writer, own = await answered(port, CALL, b"\r\n\r\n3")
            assert holds_nothing_back(process, own)
            writer.close()


async def test_a_server_with_its_own_protocols(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import nuropb_gateway_asgi.server._uvicorn as names\n"
        "names.unprotected.__wrapped__.__code__ = (lambda: 'a name is missing').__code__\n"
    )
    async with running(SERVE, tmp_path) as (process, port):
        await process.line("only uvicorn's own limits: a name is missing")
        writer, own = await answered(port, CALL, b"\r\n\r\n3")
        assert holds_nothing_back(process, own)
        writer.close()


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_lines_over_tcp(is_tls: bool, tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    files = (str(certificate.certificate), str(certificate.key)) if is_tls else ("", "")
    settings = dict(zip(("TCP_CERTIFICATE", "TCP_CERTIFICATE_KEY"), files, strict=True))
    async with running(SERVE, tmp_path, None, TCP="127.0.0.1:0", **settings) as (process, _):
        port = int((await process.line(r"listening on (?:tcp|tls)://127\.0\.0\.1:(\d+)"))[1])
        context = certificate.client() if is_tls else None
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b'{"type":"authorize","payload":{"token":"%s"}}\n' % TOKEN.encode())
        async with asyncio.timeout(DEADLINE):
            assert b'"topic":"hello"' in await reader.readline()
        assert holds_nothing_back(process, writer.get_extra_info("sockname")[1])
        writer.close()


@pytest.mark.parametrize("lane", ["fast", "plain"])
async def test_the_connection_to_the_broker(lane: str, tmp_path: Path) -> None:
    ports: list[int] = []

    async def greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.append(writer.get_extra_info("peername")[1])
        with contextlib.suppress(OSError):
            while await reader.read(100):
                pass
        writer.close()

    def look() -> bool:
        with contextlib.suppress(LookupError):  # the gateway has given up on the connection, and makes another
            return holds_nothing_back(process, ports[-1])
        return False

    async with await asyncio.start_server(greeted, "127.0.0.1", 0) as broker:
        address = broker.sockets[0].getsockname()
        url = f"amqp://guest:guest@127.0.0.1:{address[1]}/"
        async with running(SERVE, tmp_path, MESH_URL=url, MESH_LANE=lane) as (process, _):
            async with asyncio.timeout(DEADLINE):
                while not look():  # the option is set in a moment: this side may be connected earlier
                    await asyncio.sleep(0.05)


# --- make run ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")
@pytest.mark.parametrize("is_there", [True, False], ids=["uvloop", "no uvloop"])
def test_make_run_installs_uvloop_where_there_is_one(is_there: bool, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python, log = tmp_path / "bin" / "python", tmp_path / "log"
    refusal = "" if is_there else 'case "$*" in *uvloop*) exit 1;; esac\n'
    python.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n{refusal}')
    python.chmod(0o755)
    (tmp_path / ".made").touch()
    made = subprocess.run(
        ["make", "--no-print-directory", f"VENV={tmp_path}", "run"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert ("no uvloop" in made.stdout) is not is_there
    plain, fast, run = log.read_text().splitlines()
    assert plain.endswith("--editable .[mcp,metrics,oidc]")
    assert fast.endswith("--only-binary uvloop --editable .[mcp,metrics,oidc,uvloop]")
    assert run.startswith("-m nuropb_gateway_asgi serve")
