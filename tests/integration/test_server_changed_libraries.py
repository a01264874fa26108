"""The fall-back to uvicorn's own protocols, with a name missing in uvicorn, websockets or h11.

Each test runs the gateway on copies of the installed libraries in which one name is replaced throughout. Such a copy
works by itself, so the gateway must work on uvicorn's own protocols, and log one warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.server._uvicorn import OWN_WAY, PLACEMENT, RELIED_ON, SUPERVISION
from tests.kit.changed_libraries import Rename, renames, renames_of_classes
from tests.kit.clients import CLOSE, CONTINUATION, TEXT, RawClient
from tests.kit.gateways import DEADLINE
from tests.kit.processes import ROOT, Process, run_process

SECRET: Final = "a secret that is long enough to sign with, and no longer"
BEARER: Final = ("Authorization", f"Bearer {issue_token(SECRET, 'alice')}")
#: Processes that run at the same time.
AT_A_TIME: Final = 4

UVICORN: Final = (
    *(sys.executable, "-m", "uvicorn", "nuropb_gateway_asgi:app", "--port", "0"),
    *("--http", "nuropb_gateway_asgi.server:HTTPProtocol"),
    *("--ws", "nuropb_gateway_asgi.server:WebSocketProtocol"),
)
#: uvicorn in which the gateway puts its protocols in place.
STOCK: Final = UVICORN[:6]
SERVE: Final = (sys.executable, "-m", "nuropb_gateway_asgi", "serve", "--port", "0")
#: One worker under the gateway's supervisor.
SUPERVISED: Final = """
import sys
from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.server import make_config
from nuropb_gateway_asgi.server.supervisor import supervise

if __name__ == "__main__":
    config = make_config("nuropb_gateway_asgi:create_app", Settings.from_env(), factory=True, port=0)
    sys.exit(supervise(config, config.bind_socket(), on_ready=lambda: print("ready", flush=True)))
"""

RENAMES: Final = {str(rename): rename for rename in [*renames(RELIED_ON), *renames_of_classes()]}
SUPERVISOR_RENAMES: Final = {str(rename): rename for rename in renames(SUPERVISION)}
PLACEMENT_RENAMES: Final = {str(rename): rename for rename in renames(PLACEMENT)}
#: Renames of every kind: module, class, variable and function of a module; methods called and overridden, attributes
#: read and set.
SOME: Final = (
    "h11_impl",
    "WebSocketsSansIOProtocol",
    "LOGGING_CONFIG",
    "auto_loop_factory",
    "H11Protocol.handle_websocket_upgrade",
    "RequestResponseCycle.response_complete",
    "WebSocketsSansIOProtocol.send_receive_event_to_app",
    "WebSocketsSansIOProtocol.queue",
    "ServerProtocol.send_close",
    "Connection.next_event",
)
#: Of a module, a function, a method and an attribute; of each library.
FEW: Final = (
    "h11_impl",
    "auto_loop_factory",
    "WebSocketsSansIOProtocol.queue",
    "ServerProtocol.send_close",
    "Connection.next_event",
)


async def listening(port: int) -> None:
    """Wait until a server listens: it may log its port before."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                async with RawClient.open(f"ws://127.0.0.1:{port}"):
                    return
            await asyncio.sleep(0.01)


async def converse(port: str) -> None:
    """Send requests, a text, a text in fragments, and a close frame; each must be answered."""
    url = f"ws://127.0.0.1:{port}/ws"
    async with RawClient.open(url) as raw:
        for _ in range(2):
            await raw.send(b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert (await raw.read_until(b'{"alive":true}')).startswith(b"HTTP/1.1 200 ")
        assert (await raw.handshake("/ws", BEARER)).startswith("HTTP/1.1 101 ")
        assert b"hello" in (await raw.read_frame())[1]
        ping, pong = b'{"type":"ping","payload":1}', (TEXT, b'{"type":"pong","payload":1}')
        await raw.send(RawClient.frame(ping))
        assert await raw.read_frame() == pong
        await raw.send(RawClient.frame(ping[:9], fin=False) + RawClient.frame(ping[9:12], CONTINUATION, fin=False))
        await raw.send(RawClient.frame(ping[12:], CONTINUATION))
        assert await raw.read_frame() == pong
        await raw.send(RawClient.frame(ping))
        assert await raw.read_frame() == pong
        await raw.send(RawClient.frame(b"\x03\xe8", CLOSE))
        assert await raw.read_frame() == (CLOSE, b"\x03\xe8")
        assert await raw.ended() == b""
    async with RawClient.open(url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.send(RawClient.frame(b"binary", 2))
        assert await raw.close_code() == 1003
        await raw.send(RawClient.frame(b"\x03\xeb", CLOSE))
        await raw.ended()


def warnings(process: Process) -> list[str]:
    return [line for line in process.stderr if re.search(r": (uvicorn|websockets|h11) \S+ (has|no longer) ", line)]


async def start_and_converse(command: tuple[str, ...], path: Path | None = None) -> list[str]:
    """Run a command on the libraries in ``path``, and return its warnings."""
    environment = {"PYTHONPATH": os.pathsep.join(map(str, [path, ROOT] if path else [ROOT]))}
    async with run_process(*command, settings={"JWT_KEY": SECRET}, environment=environment) as process:
        port = (await process.line(r"running on http://[^:]+:(\d+)"))[1]
        await process.line("Application startup complete")
        told = warnings(process)  # before the first connection
        await listening(int(port))
        await converse(port)
        process.signal(signal.SIGTERM)
        assert await process.wait() in (0, -signal.SIGTERM)
        assert "Traceback" not in process.output, process.output
        assert warnings(process) == told
        return told


async def all_at_once(command: tuple[str, ...], tried: Iterable[Rename], directory: Path) -> dict[str, str]:
    """Run the command on each renamed copy, a few at a time, and return the failures."""
    free = asyncio.Semaphore(AT_A_TIME)
    problems: dict[str, str] = {}

    async def try_one(rename: Rename) -> None:
        async with free:
            try:
                (text,) = await start_and_converse(command, rename.apply(directory))
                assert re.search(rf"has no .*\b({rename}|{rename.name})\b", text), text
            except (AssertionError, EOFError, OSError, TimeoutError, ValueError) as error:
                problems[str(rename)] = repr(error)

    await asyncio.gather(*map(try_one, tried))
    return problems


@pytest.mark.parametrize("command", [UVICORN, STOCK, SERVE], ids=["uvicorn by name", "uvicorn", "serve"])
async def test_the_installed_releases_need_no_warning(command: tuple[str, ...]) -> None:
    assert await start_and_converse(command) == []


async def test_plain_uvicorn_without_a_name_uses_its_own_protocols(tmp_path: Path) -> None:
    # tests/matrix has all the names.
    assert await all_at_once(UVICORN, [RENAMES[name] for name in FEW], tmp_path) == {}


async def test_a_uvicorn_of_another_program_without_a_name_keeps_its_own_protocols(tmp_path: Path) -> None:
    # tests/matrix has all the names.
    needed = [*[*PLACEMENT_RENAMES.values()][::3], RENAMES[SOME[1]]]
    assert await all_at_once(STOCK, needed, tmp_path) == {}


async def test_the_command_line_without_a_name_uses_uvicorns_own_protocols(tmp_path: Path) -> None:
    # tests/matrix has more of them.
    assert await all_at_once(SERVE, [RENAMES[SOME[2]]], tmp_path) == {}


async def test_every_worker_without_a_name_uses_uvicorns_own_protocols(tmp_path: Path) -> None:
    path = RENAMES["WebSocketsSansIOProtocol.send_receive_event_to_app"].apply(tmp_path)
    assert len(await start_and_converse((*SERVE, "--workers", "2"), path)) == 1


def supervised(directory: Path) -> tuple[str, str]:
    """Return the command of a supervised worker, whose program is put into ``directory``."""
    program = directory / "supervised.py"
    program.write_text(SUPERVISED)
    return sys.executable, str(program)


async def test_a_supervisor_without_a_name_is_uvicorns_own(tmp_path: Path) -> None:
    # tests/matrix has all the names.
    assert await start_and_converse(supervised(tmp_path)) == []
    assert await all_at_once(supervised(tmp_path), [*SUPERVISOR_RENAMES.values()][:1], tmp_path) == {}


@pytest.mark.parametrize("name", [path.rpartition(":")[2] for path in OWN_WAY])
async def test_uvicorns_own_protocols_are_not_needed_otherwise(tmp_path: Path, name: str) -> None:
    assert await start_and_converse(UVICORN, Rename("uvicorn", name).apply(tmp_path)) == []
