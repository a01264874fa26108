"""A gateway whose socket systemd opens: passed as systemd passes it, and kept over a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.kit.processes import ROOT, SECRET, Process, run_process
from tests.kit.waiting import DEADLINE

#: Moves the sockets to the descriptors from 3 on, and becomes the gateway, whose id is known only then.
ACTIVATE: Final = """
import os, sys
count, fds = int(sys.argv[1]), [int(each) for each in sys.argv[2].split(",")]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": sys.argv[3]}
os.execv(sys.executable, [sys.executable, "-m", "nuropb_gateway_asgi", *sys.argv[4:]])
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def activated(
    listener: socket.socket, option: str, notified: Path | None = None
) -> AbstractAsyncContextManager[Process]:
    """Run a gateway with two sockets, of which the second is ``listener``, named ``clients``."""
    # Far from 3 and 4, to which it is moved.
    number = os.dup(listener.fileno())
    environment = {} if notified is None else {"NOTIFY_SOCKET": str(notified)}
    return run_process(
        *(sys.executable, "-c", ACTIVATE, "2", f"{number},{number}", "others:clients", "serve", "--fd", option),
        settings={"JWT_KEY": SECRET},
        environment=environment,
        pass_fds=[number],
        cwd=ROOT,
    )


async def told(manager: socket.socket) -> bytes:
    """Return the next message to the service manager."""
    async with asyncio.timeout(DEADLINE):
        return await asyncio.get_running_loop().sock_recv(manager, 100)


async def test_a_restart_refuses_no_client_and_the_manager_is_told_of_it(
    listener: socket.socket, tmp_path: Path
) -> None:
    port: int = listener.getsockname()[1]
    answers: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)

        async def ask() -> None:
            while True:
                async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as client:
                    answers.append((await client.get(f"http://127.0.0.1:{port}/livez")).status_code)

        async with activated(listener, "systemd:clients", tmp_path / "notify") as first:
            asking = asyncio.create_task(ask())
            assert await told(manager) == b"READY=1"
            await first.line(f"ws://127.0.0.1:{port}/ws")
            while not answers:
                await asyncio.sleep(0.01)
            first.signal(signal.SIGTERM)
            assert await told(manager) == b"STOPPING=1"
            assert await first.wait() == 0, first.output
        before = len(answers)
        async with activated(listener, "systemd:clients", tmp_path / "notify") as second:
            assert await told(manager) == b"READY=1"
            async with asyncio.timeout(DEADLINE):
                while len(answers) < before + 3:
                    assert not asking.done(), asking.exception()
                    await asyncio.sleep(0.01)
            asking.cancel()
            assert set(answers) == {200}
            second.signal(signal.SIGTERM)
            assert await second.wait() == 0, second.output
