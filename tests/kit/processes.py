"""The gateway in a process of its own, with an environment and a command line, as operators run it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import secrets
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.settings import ENV_PREFIX
from tests.servers.forks import Forks

from .waiting import DEADLINE

__all__ = [
    "ROOT",
    "GatewayProcess",
    "Process",
    "run_forked",
    "run_gateway_process",
    "run_module",
    "run_process",
    "token_of",
]

ROOT: Final = Path(__file__).resolve().parents[2]
#: What a gateway and the command line import sooner or later.
MODULES: Final = (
    "nuropb_gateway_asgi.cli",
    "nuropb_gateway_asgi.gateway",
    "nuropb_gateway_asgi.mesh.rabbitmq",
    "nuropb_gateway_asgi.server",
    "uvicorn.lifespan.on",
    "uvicorn.logging",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
#: The variables by which coverage follows processes.
COVERAGE: Final = frozenset({"COV_CORE_SOURCE", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"})
SECRET: Final = secrets.token_urlsafe(48)


class Fork:
    """What :class:`Process` needs of a process that is no child of this one, but of ``tests.servers.forks``."""

    def __init__(
        self, pid: int, account: asyncio.StreamReader, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader
    ) -> None:
        self.pid = pid
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._follower = asyncio.create_task(self._follow(account))

    async def _follow(self, account: asyncio.StreamReader) -> None:
        with contextlib.suppress(ValueError):  # nobody tells
            self.returncode = int(await account.readline())
        await account.read()  # to its end, which closes the pipe
        self._ended.set()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode


class Process:
    """A running process, and all its output so far."""

    def __init__(self, process: asyncio.subprocess.Process | Fork) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._news = asyncio.Event()
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.stdout)),
            asyncio.create_task(self._read(process.stderr, self.stderr)),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; None while the process runs."""
        return self._process.returncode

    @property
    def ended(self) -> bool:
        """Whether the output has ended."""
        return all(reader.done() for reader in self._readers)

    async def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line of output that matches ``pattern``, and return the match."""
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    for line in self.stdout + self.stderr:
                        if match := re.search(pattern, line):
                            return match
                    assert not self.ended, "the process has ended"
                    self._news.clear()
                    await self._news.wait()
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"no line with {pattern!r} in:\n{self.output}") from error

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for the end of the process and of its output, and return the exit status."""
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._readers)
            return await self._process.wait()

    @property
    def output(self) -> str:
        return "\n".join(self.stdout + self.stderr)

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode().rstrip("\n"))
            self._news.set()
        self._news.set()

    async def end(self) -> None:
        """Kill the process, unless it has ended, and the processes that it has started."""
        if self.returncode is None:
            for pid in [*_descendants(self.pid), self.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await self.wait()


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started. Linux tells them."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in map(int, tasks.read_text().split()):
                    found += [*_descendants(child), child]
    return found


@functools.cache
def _forks() -> Forks:
    return Forks(sys.executable, *MODULES, environment={"PYTHONPATH": str(ROOT)})


async def _pipe() -> tuple[asyncio.StreamReader, int]:
    """Make a pipe; return its one end as a stream, and the descriptor of the other."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
    )
    return reader, writing


async def _fork(arguments: tuple[str, ...], folder: Path | str, variables: Mapping[str, str]) -> Fork:
    (stdout, one), (stderr, two), (account, three) = [await _pipe() for _ in range(3)]
    module, *rest = arguments
    given = os.open(os.devnull, os.O_RDONLY)
    request = {"module": module, "arguments": rest, "folder": str(folder), "environment": dict(variables)}
    try:
        _forks().start([given, one, two], three, **request)
    finally:
        for descriptor in (given, one, two, three):
            os.close(descriptor)
    return Fork(int(await account.readline()), account, stdout, stderr)


@contextlib.asynccontextmanager
async def run_process(
    *command: str,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    forked: bool = False,
    **options: Any,
) -> AsyncIterator[Process]:
    """Run a command in an empty folder, or in ``cwd``, with only these ``settings`` (named without prefix).

    ``environment`` is added to that of the tests; ``options`` are those of subprocess.Popen. With ``forked``, the
    command is that of :func:`run_forked`.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    variables |= {"PYTHONPATH": str(ROOT)}
    variables |= {f"{ENV_PREFIX}{name}": value for name, value in (settings or {}).items()}
    variables |= environment or {}
    with contextlib.ExitStack() as stack:
        # The gateway keeps its key for development in the folder in which it is started.
        folder = cwd or stack.enter_context(tempfile.TemporaryDirectory(prefix="nuropb-gateway-test-"))
        process = Process(
            await _fork(command, folder, variables)
            if forked
            else await asyncio.create_subprocess_exec(
                *command, cwd=folder, env=variables, stdout=PIPE, stderr=PIPE, **options
            )
        )
        try:
            yield process
        finally:
            await process.end()


def run_module(*arguments: str, **options: Any) -> contextlib.AbstractAsyncContextManager[Process]:
    """Run ``python -m`` with these arguments, and the options of :func:`run_process`."""
    return run_process(sys.executable, "-m", *arguments, **options)


def run_forked(
    *arguments: str, environment: Mapping[str, str] | None = None, **options: Any
) -> contextlib.AbstractAsyncContextManager[Process]:
    """Run ``python -m`` with these arguments, in a fork of a process that has imported the gateway.

    That saves 0.6 s of CPU. A test of the start itself uses :func:`run_module`, and so does this function where
    coverage is measured, which begins with Python, or where the ``environment`` has a variable of Python. The
    options are ``settings``, ``environment`` and ``cwd`` of :func:`run_process`.
    """
    python = any(name.startswith("PYTHON") for name in environment or {})
    if python or not sys.platform.startswith("linux") or COVERAGE.intersection(os.environ):
        return run_module(*arguments, environment=environment, **options)
    return run_process(*arguments, environment=environment, forked=True, **options)


def token_of(user_id: str, **claims: Any) -> str:
    """Return a token for gateways of :func:`run_gateway_process`."""
    return issue_token(SECRET, user_id, **claims)


@dataclass(frozen=True)
class GatewayProcess:
    """A gateway in a process of its own, and the URL of its WebSocket endpoint."""

    process: Process
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def ready(self) -> None:
        """Wait until the gateway lets clients in."""
        await self.process.line("mesh: revocations are read")

    async def metric(self, name: str, **labels: str) -> float:
        """Return a value from ``/metrics`` for WebSockets, 0 if there is none with these labels."""
        async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
            text = (await http.get(f"http://127.0.0.1:{self.port}/metrics")).text
        wanted = ",".join(f'{label}="{value}"' for label, value in (labels | {"transport": "websocket"}).items())
        line = re.search(rf"^nuropb_gateway_{name}{{{wanted}}} (.*)$", text, re.MULTILINE)
        return 0.0 if line is None else float(line[1])

    def freeze(self) -> None:
        """Suspend the process: its connections stay open."""
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process."""
        self.process.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process with SIGKILL: it cannot notify clients."""
        self.process.signal(signal.SIGKILL)

    async def stop(self) -> None:
        """Stop the process in an orderly way."""
        self.process.signal(signal.SIGTERM)
        assert await self.process.wait() == 0, self.process.output


@contextlib.asynccontextmanager
async def run_gateway_process(mesh_url: str, *options: str, **settings: str) -> AsyncIterator[GatewayProcess]:
    """Run ``tests.servers.gateway`` with these options, and wait until it is connected to the mesh.

    Calls are not refused in an overload, unless a setting says so: all clients of a test call at once.
    """
    chosen = {"MESH_URL": mesh_url, "JWT_KEY": SECRET, "OVERLOAD_DELAY": "0"}
    chosen |= {name.upper(): value for name, value in settings.items()}
    async with run_forked("tests.servers.gateway", *options, settings=chosen) as process:
        gateway = GatewayProcess(process, int((await process.line(r"listening on (\d+)"))[1]))
        await gateway.ready()
        yield gateway
